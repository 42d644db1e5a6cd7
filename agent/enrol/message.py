"""The question and its answer, as bytes. Strict in what decides; what a later version adds is ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from agent.bundle import RecipientKey
from agent.bundle import thumbprint as jwk_thumbprint
from agent.bundle.strict import json_object
from agent.core.errors import EvidenceError, FormatError
from agent.enrol.binding import check_nonce

VERSION: Final = 1
LARGEST_QUESTION: Final = 1024
LARGEST_ENROLMENT: Final = 65_536
_LONGEST_TEXT: Final = 1024
_LONGEST_LIST: Final = 64
_PUBLIC: Final = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}


class AwsSts(msgspec.Struct, frozen=True, tag_field="kind", tag="aws-sts"):
    """A signed request for ``sts:GetCallerIdentity``, to be sent by whoever wants to know."""

    url: str
    method: str
    headers: dict[str, str]
    body: str

    def __repr__(self) -> str:
        return "AwsSts(...)"  # a session token is in it


class AwsWebIdentity(msgspec.Struct, frozen=True, tag_field="kind", tag="aws-web-identity"):
    """A token of ``sts:GetWebIdentityToken``."""

    token: str

    def __repr__(self) -> str:
        return "AwsWebIdentity(...)"


class GcpIdentity(msgspec.Struct, frozen=True, tag_field="kind", tag="gcp-identity"):
    """The identity token of a GCE instance, ``format=full``."""

    token: str

    def __repr__(self) -> str:
        return "GcpIdentity(...)"


Evidence = AwsSts | AwsWebIdentity | GcpIdentity
_KINDS: Final[Mapping[str, type[Evidence]]] = {
    "aws-sts": AwsSts,
    "aws-web-identity": AwsWebIdentity,
    "gcp-identity": GcpIdentity,
}


class Missing(msgspec.Struct, frozen=True):
    """Why there is no evidence of a kind.

    Attributes:
        code: for programs: ``no-machine``, ``no-role``, ``off``, ``unavailable``, ``denied``.
        reason: for people.
    """

    kind: str
    code: str
    reason: str


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's answer. Only ``evidence``, once verified, says anything about who gave it.

    Attributes:
        nonce: of the question.
        key: the public JWK of the key to seal to.
        thumbprint: of it (RFC 7638).
        audiences: what the worker says that it answers to.
        host: its name, by its own word.
        evidence: at most one of a kind.
        missing: why a kind is not there.
    """

    nonce: str
    key: dict[str, str]
    thumbprint: str
    audiences: tuple[str, ...]
    host: str
    evidence: tuple[Evidence, ...] = ()
    missing: tuple[Missing, ...] = ()

    @property
    def recipient(self) -> RecipientKey:
        """The key, to seal to."""
        return RecipientKey.parse(self.key)


def thumbprint_of(jwk: Mapping[str, str]) -> str:
    """The thumbprint (RFC 7638, SHA-256) of a public key.

    Raises:
        EvidenceError: code ``key``: it is no public key, or has a private half.
    """
    names = _PUBLIC.get(jwk.get("kty", ""))
    if names is None or not all(isinstance(jwk.get(name), str) for name in names):
        raise EvidenceError("key: expected a public key of kty EC, OKP or RSA", code="key")
    return jwk_thumbprint({name: jwk[name] for name in names})


def write_question(nonce: str) -> bytes:
    """The body of ``POST /v1/enrol``."""
    return msgspec.json.encode({"nonce": check_nonce(nonce)})


def read_question(data: bytes) -> str:
    """The nonce of a question.

    Raises:
        EvidenceError: codes ``form``, ``nonce``.
    """
    nonce = _object(data, LARGEST_QUESTION, "the question").get("nonce")
    if not isinstance(nonce, str):
        raise EvidenceError('expected {"nonce": TEXT}', code="form")
    return check_nonce(nonce)


def write_enrolment(enrolment: Enrolment) -> bytes:
    """The bytes of an enrolment, as the couriers' socket answers them (PROTOCOL.md)."""
    return msgspec.json.encode({"ver": VERSION, **msgspec.to_builtins(enrolment)}) + b"\n"


def read_enrolment(data: bytes, *, nonce: str) -> Enrolment:
    """An answer to the question with ``nonce``. Whether its evidence holds is another matter.

    Raises:
        EvidenceError: codes ``form``, ``nonce``, ``key``.
    """
    top = _object(data, LARGEST_ENROLMENT, "the enrolment")
    if top.get("ver") != VERSION:
        raise EvidenceError(f"ver: expected {VERSION}, got {_shown(top.get('ver'))}", code="form")
    if top.get("nonce") != nonce:
        raise EvidenceError("nonce: the answer is to another question", code="nonce")
    key, thumbprint = _key(top)
    return Enrolment(
        nonce=nonce,
        key=key,
        thumbprint=thumbprint,
        audiences=tuple(_text(one, "audiences") for one in _list(top, "audiences")),
        host=_text(top.get("host"), "host"),
        evidence=_evidence(top),
        missing=tuple(_converted(one, Missing, "missing") for one in _list(top, "missing") if isinstance(one, dict)),
    )


def _key(top: dict[str, Any]) -> tuple[dict[str, str], str]:
    jwk = top.get("key")
    if not isinstance(jwk, dict) or not all(isinstance(value, str) for value in jwk.values()):
        raise EvidenceError("key: expected a jwk of texts", code="key")
    thumbprint = thumbprint_of(jwk)
    try:
        recipient = RecipientKey.parse(jwk)
    except FormatError as error:
        raise EvidenceError(f"key: {error.message}", code="key") from None
    # We seal to the key as the library read it: its thumbprint must be the one that was vouched for.
    if top.get("thumbprint") != thumbprint or thumbprint_of(recipient.public_jwk()) != thumbprint:
        raise EvidenceError("thumbprint: it is not that of the key", code="key")
    return recipient.public_jwk(), thumbprint


def _evidence(top: dict[str, Any]) -> tuple[Evidence, ...]:
    found: dict[str, Evidence] = {}
    for one in _list(top, "evidence"):
        kind = one.get("kind") if isinstance(one, dict) else None
        if not isinstance(kind, str):
            raise EvidenceError("evidence: expected objects with a kind", code="form")
        if kind not in _KINDS:
            continue  # of a later version
        if kind in found:
            raise EvidenceError(f"evidence: {kind} is there twice", code="form")
        found[kind] = _converted(one, _KINDS[kind], "evidence")
    return tuple(found.values())


def _object(data: bytes, largest: int, what: str) -> dict[str, Any]:
    if len(data) > largest:
        raise EvidenceError(f"{what}: expected at most {largest} bytes, got {len(data)}", code="form")
    try:
        return json_object(data, what, depth=5)
    except FormatError as error:
        raise EvidenceError(error.message, code="form") from None


def _list(top: dict[str, Any], name: str) -> list[Any]:
    value = top.get(name, [])
    if not isinstance(value, list) or len(value) > _LONGEST_LIST:
        raise EvidenceError(f"{name}: expected a list of at most {_LONGEST_LIST}", code="form")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not value.isprintable():
        raise EvidenceError(f"{name}: expected printable text of at most {_LONGEST_TEXT} characters", code="form")
    return value


def _converted(value: Any, shape: Any, name: str) -> Any:
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError:
        raise EvidenceError(f"{name}: a member is missing or of another type", code="form") from None


def _shown(value: object) -> str:
    return json.dumps(value, default=str)[:60]
