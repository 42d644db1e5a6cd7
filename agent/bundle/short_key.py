"""A signer's public key as one short word: ``ed25519:`` or ``p256:`` and base64url of the key.

For places that hold little and escape badly: an EC2 tag, a line of user-data. Ed25519 is the 32 bytes of RFC 8032,
P-256 the 33 of the compressed point (SEC 1, section 2.3.3). The key's id is its thumbprint.
"""

from __future__ import annotations

import json
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from agent.bundle.codes import Code
from agent.bundle.jwk import VerifyKey
from agent.bundle.strict import base64url, base64url_encode
from agent.core.errors import FormatError

_KINDS: Final = {"Ed25519": "ed25519", "P-256": "p256"}


def short_key(key: VerifyKey) -> str:
    """The word for ``key``. Its own key id is not in it."""
    jwk = key.public_jwk()
    raw = base64url(jwk["x"], "x")
    if "y" in jwk:
        raw = bytes([2 + base64url(jwk["y"], "y")[-1] % 2]) + raw
    return f"{_KINDS[key.kind]}:{base64url_encode(raw)}"


def signer_word(key: VerifyKey) -> str:
    """The word that names ``key`` to a worker: the short one, or its JWK if its key id is not its thumbprint."""
    word = short_key(key)
    return word if read_short_key(word).kid == key.kid else json.dumps(key.public_jwk(), separators=(",", ":"))


def read_signer_word(word: str) -> VerifyKey:
    """The key that :func:`signer_word` named.

    Raises:
        FormatError: code ``key``: it is none.
    """
    return VerifyKey.parse(word) if word.startswith("{") else read_short_key(word)


def read_short_key(word: str) -> VerifyKey:
    """The key of a word.

    Raises:
        FormatError: code ``key``: it is none.
    """
    kind, _, text = word.partition(":")
    key: Any = None
    if kind in _KINDS.values():
        raw = base64url(text, "the key")
        try:
            key = (
                ed25519.Ed25519PublicKey.from_public_bytes(raw)
                if kind == "ed25519"
                else ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw)
            )
        except ValueError:
            key = None
    if key is None:
        raise FormatError("expected a key as ed25519:BASE64URL or p256:BASE64URL", code=Code.KEY)
    return VerifyKey(key)
