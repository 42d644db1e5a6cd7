"""Giving back to the kernel what the start needed and nobody holds any more."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
from pathlib import Path


def compact() -> None:
    """Collect, freeze what lives to the end, and return free pages, and those of programs' text.

    Importing and compiling leaves holes in the heap; glibc keeps them (about 4 MB here) until its own
    ``malloc_trim(3)`` gives them back; with another libc this does nothing. The objects that survive are frozen: no
    collection looks at them again, and their pages stay shared.
    """
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    forget_text()


def forget_text() -> None:
    """Forget which pages of programs' text were used so far; what is used again is found where the kernel keeps files.

    Loading libraries and making keys goes once over large parts of them (7 MB here). Only what nobody can have written
    is forgotten (madvise(2), ``MADV_DONTNEED``): text, mapped from a file. The rest of a library is relocated in place.
    """
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with contextlib.suppress(OSError):  # no /proc here: it stays as it is
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            where, mode, _, _, inode, *_ = line.split(maxsplit=5)
            if mode == "r-xp" and inode != "0":
                first, last = (int(number, 16) for number in where.split("-"))
                libc.madvise(first, last - first, mmap.MADV_DONTNEED)
