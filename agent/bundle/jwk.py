"""Keys: what each kind may be used for, and the arithmetic that opens a recipient.

Four kinds of key, one class each, so that none is used for another's purpose:

================ ==================== ==============================================
:class:`SigningKey`    the sender's     signs bundles
:class:`VerifyKey`     public half      pinned by workers (:mod:`agent.bundle.trust`)
:class:`RecipientKey`  public half      bundles are sealed to it
:class:`OpeningKey`    the worker's     opens them, when it is in our own memory
================ ==================== ==============================================

The arithmetic is on ``cryptography`` rather than on a JOSE library because the secret half may live in a KMS: then the
service answers with the raw shared secret, or the unwrapped key, and everything after that must be ours. The sealing
side uses joserfc, so each of our own round trips is a meeting of two implementations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, x25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from agent.bundle.codes import Code
from agent.bundle.envelope import KEY_ID, EphemeralKey, KeyAlg, Recipient
from agent.bundle.key_text import (
    CONTENT_KEY_BYTES,
    COORDINATE_BYTES,
    LARGEST_KEY_TEXT,
    AnyKey,
    Kind,
    from_jwk,
    from_pem,
    generate,
    kind_of,
    private_members,
    public_members,
    public_of,
    thumbprint,
)
from agent.bundle.strict import json_object, shown
from agent.core.errors import FormatError, SealError


class _Key:
    """The common part of the four: a key, its kind and its id."""

    __slots__ = ("_key", "kid", "kind")

    _kinds: tuple[Kind, ...] = ()
    _private = False
    _use = ""
    _what = "key"

    def __init__(self, key: AnyKey, *, kid: str | None = None) -> None:
        kind = kind_of(key)
        if kind not in self._kinds:
            raise FormatError(f"a {self._what} must be one of {', '.join(self._kinds)}; got {kind}", code=Code.KEY)
        if kid is not None and not KEY_ID.match(kid):
            raise FormatError("kid must be 1 to 256 plain characters", code=Code.KEY)
        self._key: Any = key
        self.kind: Kind = kind
        self.kid: str = kid or thumbprint(public_members(key))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.kind} {self.kid}>"

    @classmethod
    def parse(cls, text: str | bytes | Mapping[str, object], *, kid: str | None = None) -> Self:
        """Read exactly one key from a JWK, a JWK Set of one, or PEM.

        Args:
            text: the document, or the JWK as a mapping.
            kid: the id to use; by default the JWK's own ``kid``, else the thumbprint.

        Raises:
            FormatError: code ``key``; the message never has key material in it.
        """
        keys = cls.parse_all(text, kid=kid)
        if len(keys) != 1:
            raise FormatError(f"one {cls._what} is expected, got a set of {len(keys)}", code=Code.KEY)
        return keys[0]

    @classmethod
    def parse_all(cls, text: str | bytes | Mapping[str, object], *, kid: str | None = None) -> tuple[Self, ...]:
        """Read the keys of a JWK Set (RFC 7517 section 5), of a single JWK, or of PEM. See :meth:`parse`."""
        if isinstance(text, Mapping):
            jwk: Mapping[str, object] = text
        else:
            raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
            if len(raw) > LARGEST_KEY_TEXT:
                raise FormatError(f"a key file must be at most {LARGEST_KEY_TEXT} bytes", code=Code.KEY)
            raw = raw.strip()
            if raw.startswith(b"-----BEGIN"):
                return (cls(from_pem(raw, private=cls._private, what=cls._what), kid=kid),)
            if not raw.startswith(b"{"):
                raise FormatError(f"a {cls._what} must be a JWK (JSON) or PEM", code=Code.KEY)
            jwk = json_object(raw, "the JWK", depth=4)
        entries = jwk.get("keys", [jwk])
        if not isinstance(entries, list) or not entries or not all(isinstance(e, Mapping) for e in entries):
            raise FormatError("keys must be a list of JWKs", code=Code.KEY)
        if kid is not None and len(entries) != 1:
            raise FormatError("a kid can be given to a single key only", code=Code.KEY)
        return tuple(cls.from_jwk(entry, kid) for entry in entries)

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, object], kid: str | None) -> Self:
        own = jwk.get("kid")
        if own is not None and not isinstance(own, str):
            raise FormatError("kid of a JWK must be a string", code=Code.KEY)
        if jwk.get("use") not in (None, cls._use):
            raise FormatError(f"the JWK is marked for another use than {cls._use!r}", code=Code.KEY)
        key = cls(from_jwk(jwk, private=cls._private, what=cls._what), kid=kid or own)
        alg = jwk.get("alg")
        if alg is not None and alg not in key._algs():
            raise FormatError(f"the JWK is marked for alg {shown(str(alg))!r}, not {key._algs()[0]}", code=Code.KEY)
        return key

    def _algs(self) -> tuple[str, ...]:
        raise NotImplementedError

    def public_jwk(self) -> dict[str, str]:
        """The public half as a JWK, with ``kid`` and ``use``."""
        if self.kind == "oct":
            raise FormatError("a shared key has no public half", code=Code.KEY)
        return {**public_members(self._key), "kid": self.kid, "use": self._use}

    def public_pem(self) -> str:
        """The public half as PEM (SubjectPublicKeyInfo)."""
        if self.kind == "oct":
            raise FormatError("a shared key has no public half", code=Code.KEY)
        return (
            public_of(self._key)
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode("ascii")
        )


class VerifyKey(_Key):
    """The public half of a signer."""

    __slots__ = ()
    _kinds = ("P-256", "Ed25519")
    _use = "sig"
    _what = "signer's public key"

    def _algs(self) -> tuple[str, ...]:
        # RFC 9864 renames EdDSA to Ed25519; libraries will speak both for years, and they mean the same signature.
        return ("ES256",) if self.kind == "P-256" else ("Ed25519", "EdDSA")

    @property
    def algs(self) -> tuple[str, ...]:
        """The JWS algorithm names under which this key may sign: its own, never what a header asks for."""
        return self._algs()

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether ``signature`` (raw, RFC 7518 section 3.4 or RFC 8037) is this key's over ``message``."""
        try:
            if self.kind == "Ed25519":
                self._key.verify(signature, message)
            else:
                if len(signature) != 2 * COORDINATE_BYTES:
                    return False
                r, s = (int.from_bytes(signature[i : i + 32], "big") for i in (0, 32))
                self._key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


class SigningKey(_Key):
    """A sender's private half. Keep it where the control plane keeps its other keys; workers pin the public one."""

    __slots__ = ()
    _kinds = ("P-256", "Ed25519")
    _private = True
    _use = "sig"
    _what = "signing key"

    def _algs(self) -> tuple[str, ...]:
        return ("ES256",) if self.kind == "P-256" else ("Ed25519", "EdDSA")

    @property
    def alg(self) -> str:
        """The JWS algorithm it signs with."""
        return self._algs()[0]

    @classmethod
    def generate(cls, kind: Literal["Ed25519", "P-256"] = "Ed25519") -> Self:
        """Make a new one."""
        return cls(generate(kind))

    def verify_key(self) -> VerifyKey:
        """Its public half."""
        return VerifyKey(public_of(self._key), kid=self.kid)

    def private_jwk(self) -> dict[str, str]:
        """The whole key as a JWK. Secret."""
        return {**private_members(self._key), "kid": self.kid, "use": self._use}


class RecipientKey(_Key):
    """A recipient of bundles: a worker's public key, or (kind ``oct``) the key that a group of workers shares.

    A sender needs nothing else, no cloud account and no network, even when the private half lives in a KMS.
    """

    __slots__ = ()
    _kinds = ("P-256", "X25519", "RSA", "oct")
    _use = "enc"
    _what = "recipient key"

    def _algs(self) -> tuple[str, ...]:
        return _key_algs(self.kind)

    @property
    def alg(self) -> KeyAlg:
        """The key management algorithm used to seal to it."""
        return KeyAlg(self._algs()[0])

    def jwk(self) -> dict[str, str]:
        """The key as a JWK. Secret for a shared key."""
        return {**public_members(self._key), "kid": self.kid, "use": self._use}

    def public_numbers(self) -> Any:
        """The ``cryptography`` key object (bytes for a shared key)."""
        return self._key


class OpeningKey(_Key):
    """A worker's private half, held in memory."""

    __slots__ = ()
    _kinds = ("P-256", "X25519", "RSA", "oct")
    _private = True
    _use = "enc"
    _what = "worker key"

    def _algs(self) -> tuple[str, ...]:
        return _key_algs(self.kind)

    @classmethod
    def generate(cls, kind: Literal["P-256", "X25519", "RSA", "oct"] = "P-256") -> Self:
        """Make a new one. P-256 is understood by every JOSE library and every KMS; RSA has 3,072 bits."""
        return cls(generate(kind))

    def recipient_key(self) -> RecipientKey:
        """The key that a sender seals to: the public half, or the same key if it is a shared one."""
        return RecipientKey(self._key if self.kind == "oct" else public_of(self._key), kid=self.kid)

    def private_jwk(self) -> dict[str, str]:
        """The whole key as a JWK. Secret."""
        return {**private_members(self._key), "kid": self.kid, "use": self._use}

    def content_key(self, recipient: Recipient) -> bytes:
        """Open one recipient entry.

        Raises:
            SealError: code ``unwrap``: the entry is for another kind of key, or was not made for this one.
        """
        if recipient.alg not in self._algs():
            raise SealError(f"key {self.kid} is {self.kind} and cannot open {recipient.alg}", code=Code.UNWRAP)
        if recipient.epk is not None:
            return content_key_from_secret(recipient, self._agree(recipient.epk))
        if self.kind == "oct":
            return _unwrap(self._key, recipient.encrypted_key)
        return checked_content_key(self._rsa_decrypt(recipient.encrypted_key))

    def _agree(self, epk: EphemeralKey) -> bytes:
        if epk.curve != self.kind:
            raise SealError(f"key {self.kid} is on {self.kind}, epk on {epk.curve}", code=Code.UNWRAP)
        peer = ephemeral_public_key(epk)
        secret: bytes | None
        try:
            secret = self._key.exchange(ec.ECDH(), peer) if self.kind == "P-256" else self._key.exchange(peer)
        except ValueError:  # X25519: a point of small order, the shared secret would be zero (RFC 7748 section 6.1)
            secret = None
        if secret is None:
            raise SealError("epk is a point of small order", code=Code.UNWRAP)
        return secret

    def _rsa_decrypt(self, wrapped: bytes) -> bytes:
        out: bytes | None
        try:
            out = self._key.decrypt(wrapped, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
        except ValueError:
            out = None
        if out is None:
            raise SealError(f"key {self.kid} does not open its recipient entry", code=Code.UNWRAP)
        return out


def ephemeral_public_key(epk: EphemeralKey) -> ec.EllipticCurvePublicKey | x25519.X25519PublicKey:
    """The sender's ephemeral key as a key object, checked to lie on its curve (an invalid one would leak our key).

    Raises:
        SealError: code ``unwrap``.
    """
    if epk.curve == "X25519":
        return x25519.X25519PublicKey.from_public_bytes(epk.x)
    point: ec.EllipticCurvePublicKey | None
    try:
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + epk.x + epk.y)
    except ValueError:
        point = None
    if point is None:
        raise SealError("epk is not a point of P-256", code=Code.UNWRAP)
    return point


def ephemeral_public_key_der(recipient: Recipient) -> bytes:
    """The sender's ephemeral P-256 key as SubjectPublicKeyInfo, as a KMS wants it; on its curve, or it is refused.

    Raises:
        SealError: code ``unwrap``.
    """
    if recipient.epk is None or recipient.epk.curve != "P-256":
        raise SealError("epk must be on P-256", code=Code.UNWRAP)
    return ephemeral_public_key(recipient.epk).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def content_key_from_secret(recipient: Recipient, shared_secret: bytes) -> bytes:
    """The content key of an ECDH recipient, once the shared secret ``Z`` is known (RFC 7518 section 4.6.2).

    For keys in a KMS: the service does the agreement and this is the rest.

    Raises:
        SealError: code ``unwrap``: the entry was made for another key, or altered.
    """
    # With A256KW the KDF's AlgorithmID is the alg; in direct mode it is the enc, since the output *is* the content key.
    direct = recipient.alg is KeyAlg.ECDH_ES
    algorithm = b"A256GCM" if direct else recipient.alg.encode("ascii")
    length = CONTENT_KEY_BYTES
    other_info = (
        len(algorithm).to_bytes(4, "big")
        + algorithm
        + bytes(4)  # apu and apv are refused by the grammar, so both are empty
        + bytes(4)
        + (length * 8).to_bytes(4, "big")
    )
    derived = ConcatKDFHash(hashes.SHA256(), length, other_info).derive(shared_secret)
    return derived if direct else _unwrap(derived, recipient.encrypted_key)


def checked_content_key(key: bytes) -> bytes:
    """``key``, if it can be an AES-256 key at all.

    Raises:
        SealError: code ``unwrap``.
    """
    if len(key) != CONTENT_KEY_BYTES:
        raise SealError(f"the content key must be {CONTENT_KEY_BYTES} bytes, got {len(key)}", code=Code.UNWRAP)
    return key


def _unwrap(kek: bytes, wrapped: bytes) -> bytes:
    out: bytes | None
    try:
        out = aes_key_unwrap(kek, wrapped)
    except InvalidUnwrap:
        out = None
    if out is None:
        raise SealError("the recipient entry was made for another key, or altered", code=Code.UNWRAP)
    return checked_content_key(out)


def _key_algs(kind: Kind) -> tuple[str, ...]:
    if kind == "RSA":
        return (KeyAlg.RSA_OAEP_256,)
    if kind == "oct":
        return (KeyAlg.A256KW,)
    return (KeyAlg.ECDH_ES_A256KW, KeyAlg.ECDH_ES)
