"""The container: bytes to :class:`Envelope`, by the grammar of FORMAT.md and nothing else (JWE, RFC 7516).

This module reads text that anyone may have written. So it does three things only: bound, parse, name. It holds no key,
follows no hint (``jku``, ``x5u``, ``jwk``, ``x5c`` are refused as unknown), never decompresses (``zip`` is refused: a
bomb of a few kilobytes was CVE-2024-28176 and its kin), and knows no algorithm that derives a key from a password
(PBES2's iteration count is the attacker's, CVE-2023-50967).

What is *not* decided here: whose bundle it is. The headers of a recipient are not protected by the content's tag (RFC
7516 section 7.2.1), so they only say which of our keys to try; policy comes from the signed claims alone.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from agent.bundle.codes import Code
from agent.bundle.strict import base64url, json_object, shown
from agent.core.errors import FormatError
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.wire.names import BUNDLE_MEDIA_TYPE, BUNDLE_TYPE

MAX_BYTES: Final = 65_536
"""The size accepted unless the caller says otherwise; four times what EC2 user-data can hold."""
LARGEST_BYTES: Final = MAX_BUNDLE_BYTES
"""The most a caller may ask for: the size of a GCE metadata value."""
MAX_RECIPIENTS: Final = 256

OUTER_TYPE: Final = BUNDLE_TYPE
INNER_TYPE: Final = "credbundle+jwt"
MEDIA_TYPE: Final = BUNDLE_MEDIA_TYPE

KEY_ID: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,256}\Z")

_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16
_WRAPPED_BYTES: Final = 40  # a 256-bit key under AES key wrap, RFC 3394
_RSA_BYTES: Final = (256, 1024)  # moduli of 2,048 to 8,192 bits
_EPK_MEMBERS: Final = {"P-256": {"kty", "crv", "x", "y"}, "X25519": {"kty", "crv", "x"}}
_EPK_TYPE: Final = {"P-256": "EC", "X25519": "OKP"}
_COORDINATE_BYTES: Final = 32
_RECIPIENT_PARAMS: Final = {"alg", "kid", "epk"}
_COMPACT_PARTS: Final = 5
_SEALED_MEMBERS: Final = ("iv", "ciphertext", "tag")


class KeyAlg(enum.StrEnum):
    """How the content key reaches a recipient (RFC 7518 section 4). The list is closed."""

    ECDH_ES = "ECDH-ES"
    ECDH_ES_A256KW = "ECDH-ES+A256KW"
    RSA_OAEP_256 = "RSA-OAEP-256"
    A256KW = "A256KW"


class EphemeralKey(msgspec.Struct, frozen=True):
    """The sender's half of an ECDH agreement, in raw coordinates. Not yet known to be a point of its curve."""

    curve: Literal["P-256", "X25519"]
    x: bytes
    y: bytes = b""


class Recipient(msgspec.Struct, frozen=True):
    """One way to the content key.

    Attributes:
        kid: the key it is meant for.
        encrypted_key: the wrapped content key; empty for ``ECDH-ES``.
        epk: the sender's ephemeral key; ``None`` unless the algorithm is an ECDH one.
    """

    alg: KeyAlg
    kid: str
    encrypted_key: bytes
    epk: EphemeralKey | None = None


class Envelope(msgspec.Struct, frozen=True):
    """A parsed JWE: who may open it, and what is to be opened.

    Attributes:
        form: the serialization it came in.
        protected: the protected header as it was transmitted: the additional authenticated data of the content.
    """

    form: Literal["compact", "flattened", "general"]
    protected: bytes
    recipients: tuple[Recipient, ...]
    iv: bytes
    ciphertext: bytes
    tag: bytes


def parse_envelope(data: bytes, *, max_bytes: int = MAX_BYTES) -> Envelope:
    """Parse the container. Costs one pass over the bytes; no cryptography.

    Args:
        data: the sealed bundle. ASCII white space around it is ignored, since files end in a line break.
        max_bytes: the size above which it is refused unread, at most :data:`LARGEST_BYTES`.

    Raises:
        FormatError: codes ``size``, ``encoding``, ``json``, ``header``, ``algorithm``, ``recipients``.
    """
    if max_bytes > LARGEST_BYTES:
        raise RuntimeError(f"max_bytes must be at most {LARGEST_BYTES}, got {max_bytes}")
    if len(data) > max_bytes:
        raise FormatError(f"a bundle must be at most {max_bytes} bytes, got {len(data)}", code=Code.SIZE)
    trimmed = data.strip(b" \t\r\n")
    if not trimmed:
        raise FormatError("a bundle is expected, got nothing", code=Code.SIZE)
    return _json(trimmed) if trimmed.startswith(b"{") else _compact(trimmed)


def _compact(data: bytes) -> Envelope:
    parts = data.split(b".")
    if len(parts) != _COMPACT_PARTS:
        raise FormatError(
            f"a bundle must be a JWE: a JSON object, or {_COMPACT_PARTS} parts joined by dots; got {len(parts)} parts",
            hint="is this a bare JWS, a page of HTML, or base64 of the bundle rather than the bundle?",
            code=Code.ENCODING,
        )
    protected = _protected(parts[0])
    recipient = _recipient(protected, parts[1], direct=True)
    return _envelope("compact", parts[0], (recipient,), parts[2:])


def _json(data: bytes) -> Envelope:
    # {"recipients":[{"header":{"epk":{}}}]} is the deepest there is.
    top = json_object(data, "the bundle", depth=5)
    if "recipients" in top:
        return _general(top)
    _members(top, "the bundle", {"protected", "encrypted_key", "iv", "ciphertext", "tag"}, {"header"})
    protected_raw = _text(top["protected"], "protected").encode("utf-8", "replace")
    recipient = _joined(_protected(protected_raw), top)
    return _envelope("flattened", protected_raw, (recipient,), [top[m] for m in _SEALED_MEMBERS])


def _general(top: dict[str, Any]) -> Envelope:
    _members(top, "the bundle", {"protected", "recipients", "iv", "ciphertext", "tag"}, {"encrypted_key"})
    protected_raw = _text(top["protected"], "protected").encode("utf-8", "replace")
    protected = _protected(protected_raw)
    entries = top["recipients"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_RECIPIENTS:
        raise FormatError(f"recipients must be a list of 1 to {MAX_RECIPIENTS}", code=Code.RECIPIENTS)
    first = entries[0].get("encrypted_key") if isinstance(entries[0], dict) else None
    if top.get("encrypted_key", first) != first:
        # go-jose repeats the first recipient's here (RFC 7516 has it in the flattened form only). A repetition says
        # nothing; anything else would be a second reading.
        raise FormatError("encrypted_key beside recipients must repeat that of the first", code=Code.HEADER)
    recipients = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise FormatError("every recipient must be an object", code=Code.RECIPIENTS)
        _members(entry, "a recipient", {"encrypted_key"}, {"header"})
        recipients.append(_joined(protected, entry))
    if len({r.kid for r in recipients}) != len(recipients):
        # One kid twice would make "which one did you open?" a question.
        raise FormatError("every recipient must have a kid of its own", code=Code.RECIPIENTS)
    return _envelope("general", protected_raw, tuple(recipients), [top[m] for m in _SEALED_MEMBERS])


def _envelope(
    form: Literal["compact", "flattened", "general"],
    protected: bytes,
    recipients: tuple[Recipient, ...],
    sealed: Sequence[Any],
) -> Envelope:
    iv, ciphertext, tag = (_bytes(value, name) for value, name in zip(sealed, _SEALED_MEMBERS, strict=True))
    envelope = Envelope(form=form, protected=protected, recipients=recipients, iv=iv, ciphertext=ciphertext, tag=tag)
    # GCM with another nonce length hashes the nonce, and a short tag is a guessable one (RFC 7518 section 5.3).
    if len(envelope.iv) != _IV_BYTES:
        raise FormatError(f"iv must be {_IV_BYTES} bytes, got {len(envelope.iv)}", code=Code.ENCODING)
    if len(envelope.tag) != _TAG_BYTES:
        raise FormatError(f"tag must be {_TAG_BYTES} bytes, got {len(envelope.tag)}", code=Code.ENCODING)
    if not envelope.ciphertext:
        raise FormatError("ciphertext must not be empty", code=Code.ENCODING)
    return envelope


def _protected(raw: bytes) -> dict[str, Any]:
    header = json_object(base64url(raw, "the protected header"), "the protected header", depth=2)
    for name, expected in (("typ", OUTER_TYPE), ("cty", INNER_TYPE)):
        if header.get(name) != expected:
            raise FormatError(f"the protected header must have {name} {expected!r}", code=Code.HEADER)
    if header.get("enc") != "A256GCM":
        raise FormatError("the protected header must have enc 'A256GCM'", code=Code.ALGORITHM)
    foreign = header.keys() - {"typ", "cty", "enc"} - _RECIPIENT_PARAMS
    if foreign:
        raise FormatError(f"the protected header must not have {shown(min(foreign))!r}", code=Code.HEADER)
    return header


def _joined(protected: dict[str, Any], entry: dict[str, Any]) -> Recipient:
    """The recipient of a JSON serialization: its own header and the protected one, which must not overlap."""
    header = entry.get("header", {})
    if not isinstance(header, dict):
        raise FormatError("header must be an object", code=Code.HEADER)
    foreign = header.keys() - _RECIPIENT_PARAMS
    if foreign:
        raise FormatError(f"a recipient's header must not have {shown(min(foreign))!r}", code=Code.HEADER)
    twice = header.keys() & protected.keys()
    if twice:
        raise FormatError(f"{min(twice)!r} must be in one header only", code=Code.HEADER)
    return _recipient({**protected, **header}, entry["encrypted_key"], direct=False)


def _recipient(header: dict[str, Any], encrypted_key: str | bytes, *, direct: bool) -> Recipient:
    alg_name = header.get("alg")
    allowed = [a.value for a in KeyAlg if direct or a is not KeyAlg.ECDH_ES]
    if alg_name not in allowed:
        got = f"got {shown(alg_name)!r}" if isinstance(alg_name, str) else "got none"
        raise FormatError(f"alg must be one of {', '.join(allowed)}; {got}", code=Code.ALGORITHM)
    alg = KeyAlg(alg_name)
    kid = header.get("kid")
    if not isinstance(kid, str) or not KEY_ID.match(kid):
        raise FormatError("every recipient must have a kid of 1 to 256 plain characters", code=Code.RECIPIENTS)
    epk = None
    if alg in (KeyAlg.ECDH_ES, KeyAlg.ECDH_ES_A256KW):
        epk = _epk(header.get("epk"))
    elif "epk" in header:
        raise FormatError(f"{alg} must not have epk", code=Code.HEADER)
    wrapped = _bytes(encrypted_key, "encrypted_key")
    low, high = {
        KeyAlg.ECDH_ES: (0, 0),
        KeyAlg.RSA_OAEP_256: _RSA_BYTES,
    }.get(alg, (_WRAPPED_BYTES, _WRAPPED_BYTES))
    if not low <= len(wrapped) <= high:
        expected = str(low) if low == high else f"{low} to {high}"
        raise FormatError(f"encrypted_key of {alg} must be {expected} bytes, got {len(wrapped)}", code=Code.ENCODING)
    return Recipient(alg=alg, kid=kid, encrypted_key=wrapped, epk=epk)


def _epk(value: Any) -> EphemeralKey:
    curve = value.get("crv") if isinstance(value, dict) else None
    if curve not in ("P-256", "X25519") or value.get("kty") != _EPK_TYPE[curve]:
        raise FormatError("epk must be a P-256 or X25519 public key", code=Code.ALGORITHM)
    if value.keys() != _EPK_MEMBERS[curve]:
        raise FormatError(f"epk must have exactly {', '.join(sorted(_EPK_MEMBERS[curve]))}", code=Code.HEADER)
    x = _bytes(value["x"], "epk x")
    y = _bytes(value["y"], "epk y") if curve == "P-256" else b""
    if len(x) != _COORDINATE_BYTES or (curve == "P-256" and len(y) != _COORDINATE_BYTES):
        raise FormatError(f"the coordinates of epk must be {_COORDINATE_BYTES} bytes", code=Code.ENCODING)
    return EphemeralKey(curve=curve, x=x, y=y)


def _members(value: dict[str, Any], what: str, required: set[str], optional: set[str]) -> None:
    missing = required - value.keys()
    if missing:
        raise FormatError(f"{what} must have {min(missing)!r}", code=Code.HEADER)
    foreign = value.keys() - required - optional
    if foreign:
        raise FormatError(f"{what} must not have {shown(min(foreign))!r}", code=Code.HEADER)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise FormatError(f"{what} must be a string", code=Code.ENCODING)
    return value


def _bytes(value: Any, what: str) -> bytes:
    if not isinstance(value, str | bytes):
        raise FormatError(f"{what} must be a string", code=Code.ENCODING)
    return base64url(value, what)
