"""A producer of bundles written from FORMAT.md and the RFCs, not from agent.bundle: every part of it can be bent.

Deterministic: the same inputs make the same bytes (but for RSA-OAEP), so the committed vectors can be made again and
compared.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def compact_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def thumbprint(jwk: dict[str, str]) -> str:
    names = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n"), "oct": ("k", "kty")}
    return b64(hashlib.sha256(compact_json({n: jwk[n] for n in names[jwk["kty"]]})).digest())


def public(jwk: dict[str, str]) -> dict[str, str]:
    secret = {"d", "p", "q", "dp", "dq", "qi"}
    return {k: v for k, v in jwk.items() if k not in secret}


def _int(text: str) -> int:
    return int.from_bytes(unb64(text), "big")


def _seeded(seed: str, length: int) -> bytes:
    return hashlib.shake_256(seed.encode()).digest(length)


def sign(
    payload: bytes, signer: dict[str, str], header: dict[str, Any] | None = None, *, raw_header: bytes | None = None
) -> str:
    """A compact JWS with ``signer`` (private JWK); ``header`` replaces, member by member (``None`` drops)."""
    alg = "Ed25519" if signer["kty"] == "OKP" else "ES256"
    full = {"alg": alg, "typ": "credbundle+jwt", "kid": signer.get("kid") or thumbprint(signer)}
    full = {k: v for k, v in {**full, **(header or {})}.items() if v is not None}
    signing_input = b64(raw_header if raw_header is not None else compact_json(full)) + "." + b64(payload)
    if signer["kty"] == "OKP":
        signature = ed25519.Ed25519PrivateKey.from_private_bytes(unb64(signer["d"])).sign(signing_input.encode())
    else:
        key = ec.derive_private_key(_int(signer["d"]), ec.SECP256R1())
        der = key.sign(signing_input.encode(), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        signature = b"".join(n.to_bytes(32, "big") for n in decode_dss_signature(der))
    return signing_input + "." + b64(signature)


def concat_kdf(z: bytes, algorithm: str) -> bytes:
    """RFC 7518 section 4.6.2 with empty PartyUInfo and PartyVInfo, one round."""
    info = len(algorithm).to_bytes(4, "big") + algorithm.encode() + bytes(8) + (256).to_bytes(4, "big")
    return hashlib.sha256((1).to_bytes(4, "big") + z + info).digest()


def agree(recipient: dict[str, str], seed: str) -> tuple[dict[str, str], bytes]:
    """An ephemeral key made from ``seed``: its JWK, and the shared secret."""
    if recipient["kty"] == "EC":
        mine = ec.derive_private_key(int.from_bytes(_seeded(seed, 31), "big"), ec.SECP256R1())
        theirs = ec.EllipticCurvePublicNumbers(_int(recipient["x"]), _int(recipient["y"]), ec.SECP256R1()).public_key()
        n = mine.public_key().public_numbers()
        epk = {"kty": "EC", "crv": "P-256", "x": b64(n.x.to_bytes(32, "big")), "y": b64(n.y.to_bytes(32, "big"))}
        return epk, mine.exchange(ec.ECDH(), theirs)
    mine_x = x25519.X25519PrivateKey.from_private_bytes(_seeded(seed, 32))
    theirs_x = x25519.X25519PublicKey.from_public_bytes(unb64(recipient["x"]))
    return {"kty": "OKP", "crv": "X25519", "x": b64(mine_x.public_key().public_bytes_raw())}, mine_x.exchange(theirs_x)


def wrap(cek: bytes, recipient: dict[str, str], seed: str, *, alg_in_kdf: str | None = None) -> dict[str, Any]:
    """One recipient entry for a public (or ``oct``) JWK."""
    kid = recipient.get("kid") or thumbprint(recipient)
    if recipient["kty"] == "RSA":
        key = rsa.RSAPublicNumbers(_int(recipient["e"]), _int(recipient["n"])).public_key()
        wrapped = key.encrypt(cek, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
        return {"header": {"alg": "RSA-OAEP-256", "kid": kid}, "encrypted_key": b64(wrapped)}
    if recipient["kty"] == "oct":
        return {"header": {"alg": "A256KW", "kid": kid}, "encrypted_key": b64(aes_key_wrap(unb64(recipient["k"]), cek))}
    epk, z = agree(recipient, seed)
    alg = "ECDH-ES+A256KW"
    return {
        "header": {"alg": alg, "kid": kid, "epk": epk},
        "encrypted_key": b64(aes_key_wrap(concat_kdf(z, alg_in_kdf or alg), cek)),
    }


PROTECTED = {"typ": "credbundle+jwe", "cty": "credbundle+jwt", "enc": "A256GCM"}


def encrypt(
    signed: str | bytes,
    recipients: list[dict[str, str]],
    *,
    seed: str = "seed",
    protected: dict[str, Any] | None = None,
    raw_protected: bytes | None = None,
    iv: bytes | None = None,
) -> dict[str, Any]:
    """A general JSON JWE. ``protected`` replaces members of the header (``None`` drops)."""
    content = signed.encode() if isinstance(signed, str) else signed
    cek = _seeded(seed + "/cek", 32)
    iv = _seeded(seed + "/iv", 12) if iv is None else iv
    header = {k: v for k, v in {**PROTECTED, **(protected or {})}.items() if v is not None}
    encoded = b64(raw_protected if raw_protected is not None else compact_json(header))
    sealed = AESGCM(cek).encrypt(iv, content, encoded.encode())
    return {
        "protected": encoded,
        "recipients": [wrap(cek, r, f"{seed}/{n}") for n, r in enumerate(recipients)],
        "iv": b64(iv),
        "ciphertext": b64(sealed[:-16]),
        "tag": b64(sealed[-16:]),
    }


def flattened(jwe: dict[str, Any]) -> dict[str, Any]:
    out = {k: v for k, v in jwe.items() if k != "recipients"}
    return {**out, **jwe["recipients"][0]}


def compact(
    signed: str | bytes,
    recipient: dict[str, str],
    *,
    direct: bool = False,
    seed: str = "seed",
    protected: dict[str, Any] | None = None,
) -> str:
    """A compact JWE; ``direct`` uses ECDH-ES without key wrapping."""
    content = signed.encode() if isinstance(signed, str) else signed
    cek = _seeded(seed + "/cek", 32)
    entry = wrap(cek, recipient, f"{seed}/0")
    wrapped = entry["encrypted_key"]
    if direct:
        epk, z = agree(recipient, f"{seed}/0")
        cek, wrapped = concat_kdf(z, "A256GCM"), ""
        entry["header"] = {"alg": "ECDH-ES", "kid": entry["header"]["kid"], "epk": epk}
    header = {k: v for k, v in {**PROTECTED, **entry["header"], **(protected or {})}.items() if v is not None}
    encoded = b64(compact_json(header))
    iv = _seeded(seed + "/iv", 12)
    sealed = AESGCM(cek).encrypt(iv, content, encoded.encode())
    return ".".join((encoded, wrapped, b64(iv), b64(sealed[:-16]), b64(sealed[-16:])))
