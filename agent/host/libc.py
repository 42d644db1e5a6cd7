"""The C library, for the system calls of which Python knows no name."""

from __future__ import annotations

import ctypes
import functools


@functools.cache
def libc() -> ctypes.CDLL:
    """The one that this process has loaded; ``ctypes.get_errno`` says why a call failed."""
    return ctypes.CDLL(None, use_errno=True)
