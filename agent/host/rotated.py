"""A file that lines are added to, and that never grows beyond a bound: older ones are ``NAME.1``, ``NAME.2``..."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from agent.core.errors import HostError
from agent.core.text import os_reason

KEPT: Final = 5
"""So many older ones."""


def append(path: Path, data: bytes, *, most_bytes: int, mode: int, gid: int | None = None) -> None:
    """Add ``data``; where the file would be longer than ``most_bytes`` then, begin another. May block: for a thread.

    Args:
        path: the file; its directory must exist.
        data: whole lines.
        most_bytes: how long one file may become, but for ``data`` that is longer itself.
        mode: permission bits, of the older files too: a group that may read them no more must not read the last ones.
        gid: the group to give them to; ``None``: leave it.

    Raises:
        HostError: it cannot be written, or is no plain file of one name: nobody may lead us to another file by a link.
    """
    try:
        descriptor = _opened(path)
        try:
            there = os.fstat(descriptor)
            if there.st_size and there.st_size + len(data) > most_bytes:
                os.close(descriptor)
                descriptor = -1
                _rotate(path)
                descriptor = _opened(path)
                there = os.fstat(descriptor)
            if not stat.S_ISREG(there.st_mode) or there.st_nlink != 1:
                raise HostError(f"{path}: expected a plain file with one name, got something else")
            _given(descriptor, there, mode, gid)
            for number in range(1, KEPT + 1):
                _older(path.with_name(f"{path.name}.{number}"), mode, gid)
            _write(descriptor, data, there.st_size)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
    except OSError as error:
        raise HostError(f"{path}: cannot be written: {os_reason(error)}") from None


def _given(descriptor: int, there: os.stat_result, mode: int, gid: int | None) -> None:
    """Give the file its mode and group, where it has others; what is taken away goes first."""
    if stat.S_IMODE(there.st_mode) & ~mode:
        os.fchmod(descriptor, stat.S_IMODE(there.st_mode) & mode)
    if gid is not None and there.st_gid != gid:
        os.fchown(descriptor, -1, gid)
    if stat.S_IMODE(there.st_mode) != mode:
        os.fchmod(descriptor, mode)


def _older(path: Path, mode: int, gid: int | None) -> None:
    with contextlib.suppress(OSError):  # none is there; or it is somebody else's, or a link: not ours to change
        there = path.lstat()
        if not stat.S_ISREG(there.st_mode) or there.st_nlink != 1:
            return
        if stat.S_IMODE(there.st_mode) == mode and (gid is None or there.st_gid == gid):
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            there = os.fstat(descriptor)
            if stat.S_ISREG(there.st_mode) and there.st_nlink == 1:
                _given(descriptor, there, mode, gid)
        finally:
            os.close(descriptor)


def _write(descriptor: int, data: bytes, length: int) -> None:
    """All of it or nothing: half a line would stay in front of the next, and what is tried again be there twice."""
    done = 0
    try:
        while done < len(data):
            done += os.write(descriptor, data[done:])
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, length)
        raise


def _opened(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    return os.open(path, flags, 0o600)


def _rotate(path: Path) -> None:
    for number in range(KEPT, 0, -1):
        older = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        with contextlib.suppress(FileNotFoundError):
            older.replace(path.with_name(f"{path.name}.{number}"))
