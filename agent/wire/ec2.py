"""The EC2 instance metadata dialect (IMDSv2): names, documents, session tokens.

Sources: the EC2 user guide ("Instance metadata", "Retrieve security credentials from instance metadata") and measured
behaviour of the SDKs, which is stricter than the guide:

* The role list is the bare name and the token the bare token, with no newline: object_store panics on one, and most
  others break.
* ``Expiration`` has no fraction and no offset: aws-config (Rust) and JS refuse ``+00:00``, botocore's own extension of
  expiring credentials cannot read a fraction.
* ``Code`` must be ``Success`` (Go), and ``Token`` and ``Expiration`` present (awscrt aborts its process otherwise).
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, TypeVar

import msgspec

from agent.core.errors import WireError
from agent.core.model import AwsCredential
from agent.core.secret import Secret
from agent.core.strictjson import NotThatShapeError, decode
from agent.core.text import instant
from agent.wire.http import TEXT, Response

_T = TypeVar("_T", bound=msgspec.Struct)

MIN_TTL_SECONDS: Final = 1
MAX_TTL_SECONDS: Final = 21600

SERVER: Final = ("Server", "EC2ws")
VERSION_SEGMENT: Final = re.compile(r"(?:latest|1\.0|20[0-9]{2}-[01][0-9]-[0-3][0-9])\Z")
"""The first segment of every path: EC2 keeps dated versions of the whole tree."""

MAX_DOCUMENT_BYTES: Final = 10_000
"""The CRT reads no more than this of a credential document."""


def parse_timestamp(text: str) -> datetime:
    """Read what AWS services write: RFC 3339 with ``Z`` or an offset, with or without a fraction.

    Raises:
        WireError: it is not that, or has no zone.
    """
    try:
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is None:
            raise WireError("expected a timestamp with a zone, got one without")
        return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        raise WireError("expected an rfc 3339 timestamp") from None


# ---------------------------------------------------------------------------------------------------------------------
# Session tokens. Stateless: any number of them cost no memory, and with the key kept over a restart they survive it.
# aws-config (Rust) never drops a token on 401 and would be broken until the token's end, up to six hours.

_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 6
_MAC_BYTES: Final = 24
_TOKEN_BYTES: Final = 1 + 5 + _NONCE_BYTES + _MAC_BYTES
_TOKEN_TEXT: Final = re.compile(r"[A-Za-z0-9_-]{48}\Z")
MIN_KEY_BYTES: Final = 16


class TokenKey:
    """Makes session tokens and reads them. What a MAC costs of the key alone (RFC 2104) is computed once.

    Args:
        key: the HMAC key, at least :data:`MIN_KEY_BYTES` bytes.

    Raises:
        ValueError: it is shorter.
    """

    __slots__ = ("_keyed",)

    def __init__(self, key: bytes) -> None:
        if len(key) < MIN_KEY_BYTES:
            raise ValueError(f"expected a token key of at least {MIN_KEY_BYTES} bytes, got {len(key)}")
        self._keyed = hmac.new(key, digestmod="sha256")

    def make(self, ends: float, nonce: bytes) -> str:
        """A session token that ends at ``ends``.

        Args:
            ends: seconds of the clock that :meth:`ends` is later compared with; fractions are rounded up.
            nonce: six random bytes, so that no two tokens are equal.
        """
        payload = _VERSION + int(-(-ends // 1)).to_bytes(5, "big") + nonce
        return urlsafe_b64encode(payload + self._mac(payload)).decode("ascii")

    def ends(self, token: str) -> int | None:
        """The end of a token that was made with this key; ``None`` for any other text. Constant time in the token."""
        if not _TOKEN_TEXT.match(token):
            return None
        raw = urlsafe_b64decode(token)
        payload, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if not hmac.compare_digest(self._mac(payload), mac):
            return None
        return int.from_bytes(payload[1:6], "big")

    def _mac(self, payload: bytes) -> bytes:
        mac = self._keyed.copy()
        mac.update(payload)
        return mac.digest()[:_MAC_BYTES]


def ttl_asked(text: str | None) -> int | None:
    """The TTL a client asks for, in seconds; ``None`` when EC2 would answer 400."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 5:
        return None
    ttl = int(text)
    return ttl if MIN_TTL_SECONDS <= ttl <= MAX_TTL_SECONDS else None


# ---------------------------------------------------------------------------------------------------------------------
# Documents


def _document(pairs: Mapping[str, str | None]) -> bytes:
    # EC2's own layout, a space on either side of the colon: somebody greps it.
    lines = [f'  "{name}" : {msgspec.json.encode(value).decode()}' for name, value in pairs.items()]
    return ("{\n" + ",\n".join(lines) + "\n}").encode()


def render_credential(credential: AwsCredential, *, account_id: str | None = None) -> bytes:
    """The document of a role.

    Args:
        credential: must be unexpired; the caller's duty.
        account_id: added as ``AccountId`` (``security-credentials-extended`` has it, the older path has not).
    """
    pairs: dict[str, str | None] = {
        "Code": "Success",
        "LastUpdated": instant(credential.issued_at),
        "Type": "AWS-HMAC",
        "AccessKeyId": credential.access_key_id,
        "SecretAccessKey": credential.secret_access_key.reveal(),
        "Token": credential.session_token.reveal(),
        "Expiration": instant(credential.expires_at),
    }
    if account_id is not None:
        pairs["AccountId"] = account_id
    return _document(pairs)


class _CredentialDocument(msgspec.Struct, frozen=True, rename="pascal"):
    code: str = "Success"
    access_key_id: str = ""
    secret_access_key: str = ""
    token: str = ""
    expiration: str = ""
    last_updated: str = ""
    account_id: str | None = None
    message: str | None = None


def parse_credential(data: bytes, *, role_name: str | None = None) -> AwsCredential:
    """Read a role's document.

    Raises:
        WireError: it is not one, or EC2 says in it that there is no credential (``Code``).
    """
    document = _decode(data, _CredentialDocument, "an ec2 credential document")
    if document.code != "Success":
        raise WireError(f"expected Code Success in the ec2 credential document, got {document.code[:64]!r}")
    if not (document.access_key_id and document.secret_access_key and document.token):
        raise WireError("the ec2 credential document lacks AccessKeyId, SecretAccessKey or Token")
    expires_at = parse_timestamp(document.expiration)
    issued_at = parse_timestamp(document.last_updated) if document.last_updated else expires_at
    return AwsCredential(
        access_key_id=document.access_key_id,
        secret_access_key=Secret(document.secret_access_key),
        session_token=Secret(document.token),
        issued_at=issued_at,
        expires_at=expires_at,
        account_id=document.account_id,
        role_name=role_name,
    )


_ROLE_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{1,64}\Z")


def parse_role_list(data: bytes) -> str | None:
    """The role of an instance profile: the first line; ``None`` when the list is empty.

    Raises:
        WireError: the text is not a role name (a page of HTML, say).
    """
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise WireError("expected an ascii role name in the ec2 role list") from None
    name = lines[0].strip()
    if not name:
        return None
    if not _ROLE_NAME.match(name):
        raise WireError("expected a role name in the ec2 role list, got something else")
    return name


def parse_token(data: bytes) -> str:
    """A session token as the service gave it.

    Raises:
        WireError: it could not stand in a header.
    """
    token = data.decode("latin-1").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token or len(token) > 1024:
        raise WireError("expected an ec2 session token in printable ascii")
    return token


def render_instance_profile(*, arn: str, updated: datetime) -> bytes:
    """``iam/info``. The profile's id is not known to us: the placeholder has its form and no meaning."""
    return _document(
        {
            "Code": "Success",
            "LastUpdated": instant(updated),
            "InstanceProfileArn": arn,
            "InstanceProfileId": "AIPA" + "0" * 17,
        }
    )


class InstanceIdentity(msgspec.Struct, frozen=True, rename="camel"):
    """The instance identity document, as far as SDKs read it."""

    region: str
    account_id: str | None = None
    availability_zone: str | None = None
    instance_id: str | None = None
    instance_type: str | None = None
    image_id: str | None = None
    private_ip: str | None = None


def parse_identity(data: bytes) -> InstanceIdentity:
    """Read ``dynamic/instance-identity/document``.

    Raises:
        WireError: it is not one.
    """
    return _decode(data, InstanceIdentity, "an ec2 instance identity document")


def render_identity(identity: InstanceIdentity) -> bytes:
    """The document in EC2's layout, keys in its order. It carries no signature: it proves nothing, it informs."""
    return _document(
        {
            "accountId": identity.account_id,
            "architecture": None,
            "availabilityZone": identity.availability_zone,
            "billingProducts": None,
            "devpayProductCodes": None,
            "marketplaceProductCodes": None,
            "imageId": identity.image_id,
            "instanceId": identity.instance_id,
            "instanceType": identity.instance_type,
            "kernelId": None,
            "pendingTime": None,
            "privateIp": identity.private_ip,
            "ramdiskId": None,
            "region": identity.region,
            "version": "2017-09-30",
        }
    )


def _decode(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        return decode(data, kind)
    except NotThatShapeError:
        # The decoder's own text may quote what it met, and what it met may be a secret.
        raise WireError(f"expected {what}, got something else") from None


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def text(body: bytes, *headers: tuple[str, str]) -> Response:
    """200 with a plain body, as EC2 sends it."""
    return Response(200, (TEXT, ("Accept-Ranges", "none"), SERVER, *headers), body)


def failure(status: int, *headers: tuple[str, str]) -> Response:
    """Any status but 200, *with an empty body*: awscrt takes the body of a 404 for a role, GDAL for a credential."""
    return Response(status, (TEXT, SERVER, *headers))
