"""The text that binds evidence to a key and to a question."""

from __future__ import annotations

from typing import Final

from agent.bundle.strict import base64url, base64url_encode
from agent.core.errors import EvidenceError, FormatError
from agent.wire.names import ENROL_AUDIENCE_PREFIX

KEY_HEADER: Final = "x-credential-agent-key"
NONCE_HEADER: Final = "x-credential-agent-nonce"
NONCE_BYTES: Final = (16, 64)


def check_nonce(nonce: str) -> str:
    """A nonce, if it is one: unpadded base64url of 16 to 64 bytes, in its one spelling.

    Raises:
        EvidenceError: code ``nonce``.
    """
    low, high = NONCE_BYTES
    size = -1
    if len(nonce) <= 2 * high:
        try:
            size = len(base64url(nonce, "the nonce"))
        except FormatError:
            size = -1
    if not low <= size <= high:
        raise EvidenceError(f"nonce: expected unpadded base64url of {low} to {high} bytes", code="nonce")
    return nonce


def new_nonce(random: bytes) -> str:
    """A nonce from random bytes, 16 to 64 of them (``secrets.token_bytes(32)``)."""
    return check_nonce(base64url_encode(random))


def audience(thumbprint: str, nonce: str) -> str:
    """The audience of a token that says: this key, for this question."""
    return f"{ENROL_AUDIENCE_PREFIX}1:{thumbprint}:{nonce}"
