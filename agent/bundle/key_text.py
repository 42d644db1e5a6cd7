"""The text of keys: JWK (RFC 7517, RFC 8037) and PEM in, JWK and thumbprints (RFC 7638) out.

Which use of a key is allowed is decided in :mod:`agent.bundle.jwk`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any, Final, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519

from agent.bundle.codes import Code
from agent.bundle.strict import base64url, base64url_encode
from agent.core.errors import FormatError

Kind = Literal["P-256", "X25519", "RSA", "Ed25519", "oct"]

CONTENT_KEY_BYTES: Final = 32
COORDINATE_BYTES: Final = 32
_RSA_BITS: Final = (2048, 8192)
LARGEST_KEY_TEXT: Final = 65_536
_REQUIRED: Final = {"EC": ("crv", "x", "y"), "OKP": ("crv", "x"), "RSA": ("e", "n"), "oct": ("k",)}
_RSA_PRIVATE: Final = ("d", "p", "q", "dp", "dq", "qi")

Public = ec.EllipticCurvePublicKey | x25519.X25519PublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
Private = ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
AnyKey = Public | Private | bytes


def thumbprint(jwk: Mapping[str, object]) -> str:
    """The JWK thumbprint (RFC 7638): base64url of the SHA-256 of the key's required members. Our default key id.

    Raises:
        FormatError: it is not a JWK of a known key type.
    """
    kty = jwk.get("kty")
    names = _REQUIRED.get(kty) if isinstance(kty, str) else None
    if names is None or not all(isinstance(jwk.get(n), str) for n in names):
        raise FormatError("a JWK of type EC, OKP, RSA or oct is expected", code=Code.KEY)
    canonical = json.dumps({n: jwk[n] for n in sorted((*names, "kty"))}, separators=(",", ":"))
    return base64url_encode(hashlib.sha256(canonical.encode()).digest())


def generate(kind: str) -> AnyKey:
    """Make a private key of that kind."""
    if kind == "P-256":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "X25519":
        return x25519.X25519PrivateKey.generate()
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "RSA":
        return rsa.generate_private_key(public_exponent=65537, key_size=3072)
    if kind == "oct":
        return secrets.token_bytes(CONTENT_KEY_BYTES)
    raise RuntimeError(f"no such kind of key: {kind}")


def kind_of(key: object) -> Kind:
    """The kind of a key.

    Raises:
        FormatError: it is none that we use, or too short or too long to be.
    """
    if isinstance(key, bytes):
        if len(key) != CONTENT_KEY_BYTES:
            raise FormatError(f"a shared key must be {CONTENT_KEY_BYTES} bytes, got {len(key)}", code=Code.KEY)
        return "oct"
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return "P-256"
    if isinstance(key, x25519.X25519PublicKey | x25519.X25519PrivateKey):
        return "X25519"
    if isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        return "Ed25519"
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        low, high = _RSA_BITS
        if not low <= key.key_size <= high:
            raise FormatError(f"an RSA key must have {low} to {high} bits, got {key.key_size}", code=Code.KEY)
        return "RSA"
    raise FormatError(f"a key of type {type(key).__name__} is not supported", code=Code.KEY)


def public_of(key: Any) -> Public:
    """The public half of a key, or the key itself."""
    public: Public = key.public_key() if hasattr(key, "public_key") else key
    return public


def _number(value: int, length: int | None = None) -> str:
    return base64url_encode(value.to_bytes(length or (value.bit_length() + 7) // 8, "big"))


def public_members(key: Any) -> dict[str, str]:
    """The members of the public JWK; of a shared key the key itself."""
    if isinstance(key, bytes):
        return {"kty": "oct", "k": base64url_encode(key)}
    public = public_of(key)
    if isinstance(public, ec.EllipticCurvePublicKey):
        point = public.public_numbers()
        return {"kty": "EC", "crv": "P-256", "x": _number(point.x, 32), "y": _number(point.y, 32)}
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e)}
    return {"kty": "OKP", "crv": kind_of(public), "x": base64url_encode(public.public_bytes_raw())}


def private_members(key: Any) -> dict[str, str]:
    """The members of the private JWK."""
    public = public_members(key)
    if isinstance(key, bytes):
        return public
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {**public, "d": _number(key.private_numbers().private_value, 32)}
    if isinstance(key, rsa.RSAPrivateKey):
        n = key.private_numbers()
        values = (n.d, n.p, n.q, n.dmp1, n.dmq1, n.iqmp)
        return {**public, **{name: _number(v) for name, v in zip(_RSA_PRIVATE, values, strict=True)}}
    return {**public, "d": base64url_encode(key.private_bytes_raw())}


def from_pem(raw: bytes, *, private: bool, what: str) -> Any:
    """Read a PEM.

    Args:
        raw: the text, as bytes.
        private: which half is expected.
        what: what to call it in an error.

    Returns:
        The key, as the ``cryptography`` package has it; of a kind that :func:`kind_of` may refuse.

    Raises:
        FormatError: it is no such key, or the wrong half of one. ``what`` names it.
    """
    if not private and b"PRIVATE KEY-----" in raw:
        raise FormatError(f"a {what} must be public, got a private key", code=Code.KEY)
    key: Any = None
    try:
        key = (
            serialization.load_pem_private_key(raw, password=None)
            if private
            else serialization.load_pem_public_key(raw)
        )
    except (ValueError, TypeError):  # TypeError: it is encrypted, and there is nobody to ask for a password
        key = None
    except UnsupportedAlgorithm:
        key = None
    if key is None:
        raise FormatError(
            f"a {what} in PEM is expected",
            hint="PKCS#8 or SEC1, unencrypted" if private else "SubjectPublicKeyInfo ('BEGIN PUBLIC KEY')",
            code=Code.KEY,
        )
    return key


def from_jwk(jwk: Mapping[str, object], *, private: bool, what: str) -> AnyKey:
    """Read a JWK.

    Raises:
        FormatError: it is no such key, or the wrong half of one. ``what`` names it.
    """
    kty = jwk.get("kty")
    if not private and kty != "oct" and "d" in jwk:
        # Whoever pasted it here has just shown a private key to a machine that must not have it.
        raise FormatError(f"a {what} must be public, got a private JWK", code=Code.KEY)
    if private and kty in ("EC", "OKP", "RSA") and "d" not in jwk:
        raise FormatError(f"a {what} must be private, got a public JWK", code=Code.KEY)
    members = {
        name: base64url(value, f"{name} of the JWK")
        for name in ("x", "y", "d", "n", "e", "p", "q", "dp", "dq", "qi", "k")
        if isinstance(value := jwk.get(name), str)
    }
    key: AnyKey | None = None
    try:
        key = _build(kty, jwk.get("crv"), members, private=private)
    except (ValueError, KeyError, TypeError):
        key = None
    if key is None:
        raise FormatError(f"a {what} is not a valid JWK of kty EC (P-256), OKP, RSA or oct", code=Code.KEY)
    return key


def _build(kty: object, crv: object, m: dict[str, bytes], *, private: bool) -> AnyKey | None:
    if kty == "oct":
        return m["k"]
    if kty == "EC" and crv == "P-256" and len(m["x"]) == len(m["y"]) == COORDINATE_BYTES:
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + m["x"] + m["y"])
        if not private:
            return public
        key = ec.derive_private_key(int.from_bytes(m["d"], "big"), ec.SECP256R1())
        return key if key.public_key() == public else None
    if kty == "OKP" and crv == "X25519":
        if not private:
            return x25519.X25519PublicKey.from_public_bytes(m["x"])
        x_key = x25519.X25519PrivateKey.from_private_bytes(m["d"])
        return x_key if x_key.public_key().public_bytes_raw() == m["x"] else None
    if kty == "OKP" and crv == "Ed25519":
        if not private:
            return ed25519.Ed25519PublicKey.from_public_bytes(m["x"])
        ed_key = ed25519.Ed25519PrivateKey.from_private_bytes(m["d"])
        return ed_key if ed_key.public_key().public_bytes_raw() == m["x"] else None
    if kty == "RSA":
        numbers = rsa.RSAPublicNumbers(int.from_bytes(m["e"], "big"), int.from_bytes(m["n"], "big"))
        if not private:
            return numbers.public_key()
        d, p, q, dp, dq, qi = (int.from_bytes(m[name], "big") for name in _RSA_PRIVATE)
        return rsa.RSAPrivateNumbers(p, q, d, dp, dq, qi, numbers).private_key()
    return None
