"""Giving back to the kernel what the start needed and nobody holds any more."""

from __future__ import annotations

import ctypes
import gc


def compact() -> None:
    """Collect, freeze what lives to the end, and return free pages.

    Importing and compiling leaves holes in the heap; glibc keeps them (about 4 MB here) until its own
    ``malloc_trim(3)`` gives them back; with another libc this does nothing. The objects that survive are frozen: no
    collection looks at them again, and their pages stay shared.
    """
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
