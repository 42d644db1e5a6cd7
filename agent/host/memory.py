"""Giving back to the kernel what the start needed and nobody holds any more."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Final

from agent.host.libc import libc

_READ: Final = (b"r-xp", b"r--p")
"""Cannot be written, and is mapped for this process alone."""
_loaded: Final[set[bytes]] = set()
"""What :func:`note_loaded` found, as the kernel says it."""


def compact() -> None:
    """Collect, freeze what lives to the end, and return free pages, and those of programs that nobody wrote.

    Importing and compiling leaves holes in the heap; glibc keeps them (about 4 MB here) until its own
    ``malloc_trim(3)`` gives them back; with another libc this does nothing. The objects that survive are frozen: no
    collection looks at them again, and their pages stay shared.
    """
    gc.collect()
    gc.freeze()
    forget_clean()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def note_loaded() -> None:
    """Note what is loaded, which :func:`forget_clean` may forget. Where there are more threads than one: nothing new.

    A library that another thread is loading is mapped as if all of it were only read, until what is to be written of it
    is mapped over that. What is found while there is one thread is complete, and nobody unloads it.
    """
    with contextlib.suppress(OSError, MemoryError):  # no /proc here, say
        if len(list(Path("/proc/self/task").iterdir())) == 1:
            with Path("/proc/self/maps").open("rb") as maps:
                _loaded.update(line for line in maps if line.split()[1] in _READ)


def forget_clean() -> None:
    """Forget which pages of programs were used so far; what is used again is found where the kernel keeps files.

    Loading libraries and making keys goes once over large parts of them (10 MB here): text, constants, and what tells
    the loader what to relocate. :func:`clean` says which are forgotten (madvise(2), ``MADV_DONTNEED``).
    """
    note_loaded()
    with contextlib.suppress(OSError, MemoryError), Path("/proc/self/smaps").open("rb") as smaps:
        for first, size in clean(smaps, _loaded):
            libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def clean(smaps: Iterable[bytes], loaded: Container[bytes]) -> Iterator[tuple[int, int]]:
    """Find what is in memory as it is in a file.

    It is mapped from a file, for this process alone; cannot be written; and no page of it was written before, as those
    are that the loader relocates in place: none is the process's own, neither in memory nor swapped out.

    Args:
        smaps: what the kernel says of a process (proc_pid_smaps(5)), by lines: of all of it at once holes would stay.
        loaded: lines of its ``maps``. No other mapping is looked at.

    Yields:
        The address and the size of each, in bytes.
    """
    mapping, own = b"", b""
    for line in smaps:
        if line in loaded:
            mapping, own = line, b""
        elif line.startswith(b"Anonymous:"):
            own = line
        elif line.startswith(b"Swap:") and mapping:
            where, mode, _, _, inode, *_ = mapping.split()
            if mode in _READ and inode != b"0" and own.split()[1:2] == line.split()[1:2] == [b"0"]:
                first, last = (int(number, 16) for number in where.split(b"-"))
                yield first, last - first
            mapping = b""
        elif line.startswith(b"VmFlags:"):
            mapping = b""
