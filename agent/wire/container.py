"""The container credentials dialect: ECS tasks and EKS pod identity.

Two forms of one thing. EKS: ``GET /v1/credentials`` with an ``Authorization`` header whose value is a file's content.
ECS: ``GET /v2/credentials/ID``, where the unguessable id is itself the permission.

Sources: the ECS developer guide ("Task IAM role"), the SDKs reference ("Container credential provider"), and measured
behaviour: error bodies are JSON with ``code`` and ``message`` (Go, Java) and again with capitals (JS), and the content
type is bare ``application/json`` (Go).
"""

from __future__ import annotations

import hmac
from datetime import datetime
from typing import Final

import msgspec

from agent.core.errors import WireError
from agent.core.model import AwsCredential
from agent.core.secret import Secret
from agent.core.strictjson import NotThatShapeError, decode
from agent.core.text import instant
from agent.wire.ec2 import parse_timestamp
from agent.wire.http import JSON, Response, segments_of
from agent.wire.names import ECS_PREFIX, EKS_PATH

EKS: Final = segments_of(EKS_PATH)
ECS: Final = segments_of(ECS_PREFIX)
ROOTS: Final = frozenset({EKS[0], ECS[0]})


class _Document(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    access_key_id: str
    secret_access_key: str
    token: str
    expiration: str
    account_id: str | None = None
    role_arn: str | None = None


def render_credential(credential: AwsCredential) -> bytes:
    """The document. ``Expiration`` in the one format that every SDK reads."""
    return msgspec.json.encode(
        _Document(
            access_key_id=credential.access_key_id,
            secret_access_key=credential.secret_access_key.reveal(),
            token=credential.session_token.reveal(),
            expiration=instant(credential.expires_at),
            account_id=credential.account_id,
            role_arn=credential.role_arn,
        )
    )


def parse_credential(data: bytes, *, received: datetime | None = None) -> AwsCredential:
    """Read the document of another server of this dialect (a broker).

    Args:
        data: the body.
        received: the instant of receipt, taken for the time of issue, which the dialect lacks; without it the end
            is taken for that.

    Raises:
        WireError: it is not one, or a part is missing.
    """
    try:
        document = decode(data, _Document)
    except NotThatShapeError:
        raise WireError("expected a container credentials document, got something else") from None
    if not (document.access_key_id and document.secret_access_key and document.token):
        raise WireError("the container credentials document lacks AccessKeyId, SecretAccessKey or Token")
    expires_at = parse_timestamp(document.expiration)
    return AwsCredential(
        access_key_id=document.access_key_id,
        secret_access_key=Secret(document.secret_access_key),
        session_token=Secret(document.token),
        issued_at=expires_at if received is None else received,
        expires_at=expires_at,
        account_id=document.account_id,
        role_arn=document.role_arn,
    )


def authorized(presented: str | None, tokens: tuple[Secret, ...]) -> bool:
    """Whether ``presented`` is one of ``tokens``. Each is compared in constant time, and all of them are.

    Clients send the token file's content as it is; a ``Bearer`` in front, which people add by habit, is allowed.
    """
    if not presented:
        return False
    scheme, _, rest = presented.partition(" ")
    candidates = (presented, rest.strip()) if scheme.lower() == "bearer" and rest else (presented,)
    found = False
    for token in tokens:
        expected = token.reveal().encode()
        for candidate in candidates:
            found |= hmac.compare_digest(candidate.encode("utf-8", "surrogateescape"), expected) and bool(expected)
    return found


def document(body: bytes) -> Response:
    """200 with a credential."""
    return Response(200, (JSON, ("Cache-Control", "no-store")), body)


def failure(status: int, code: str, message: str, *headers: tuple[str, str]) -> Response:
    """A refusal that a person will read in a stack trace: it names the cause and the next step."""
    body = msgspec.json.encode({"code": code, "message": message, "Code": code, "Message": message})
    return Response(status, (JSON, ("Cache-Control", "no-store"), *headers), body)
