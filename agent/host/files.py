"""Writing files so that a reader sees the old or the new one, whole, and nobody else sees either."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import Final

from agent.core.errors import HostError

_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{12}\Z")


def write_atomic(path: Path, data: bytes, *, mode: int, gid: int | None = None) -> None:
    """Replace ``path`` with ``data`` by a rename in its directory.

    The new file has its mode and group before it has content, is on the disk before it has its name, and follows no
    link: a rename replaces a symbolic link rather than what it points at.

    Args:
        path: the file; its directory must exist.
        data: the whole content.
        mode: permission bits.
        gid: the group to give it to; ``None``: leave it.

    Raises:
        HostError: it could not be written; what was there before still is.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if gid is not None:
                os.fchown(descriptor, -1, gid)
            os.fchmod(descriptor, mode)
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise HostError(f"{path}: cannot be written: {(error.strerror or 'unknown error').lower()}") from None
    with contextlib.suppress(OSError):
        # The name itself must survive a power cut; where a directory cannot be synced, the rename still holds.
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def sweep(path: Path) -> None:
    """Remove what a process that was killed in the middle of :func:`write_atomic` left beside ``path``.

    It may hold what ``path`` was about to hold, under a name that nobody will ever replace or purge. Call it when no
    other writer of ``path`` is at work: once, at the start. The last part of ``path`` may be a glob pattern.
    """
    with contextlib.suppress(OSError):
        for left in path.parent.glob(f".{path.name}.*"):
            if _TEMPORARY.match(left.name):
                with contextlib.suppress(OSError):
                    left.unlink()
