"""The claims of a JSON Web Token (RFC 7519), read and not verified: its audience verifies it."""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar

from agent.core.strictjson import NotThatShapeError, decode

_T = TypeVar("_T")


def claims(token: str, shape: type[_T]) -> _T | None:
    """The claims of ``token`` as ``shape``; ``None`` when there are none to read.

    Args:
        token: in the compact form of RFC 7515, three parts.
        shape: a msgspec type; members that it does not name are skipped.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        return decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)), shape)
    except (binascii.Error, ValueError, NotThatShapeError):
        return None
