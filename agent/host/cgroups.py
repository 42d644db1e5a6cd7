"""The names of control groups by their ids, as the kernel tells them of a socket (cgroups(7), version 2)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
MOST: Final = 20_000
"""So many are looked at: a worker may make groups below its own."""
MOST_CHARACTERS: Final = 256
_GONE: Final = {errno.ENOENT, errno.ENOTDIR, errno.ENODEV}


def names(wanted: Iterable[int], root: Path = ROOT) -> Mapping[int, str | None]:
    """The paths below the root of those that are still there. Reads directories: for a thread.

    ``None`` for one that is gone. One is left out if that is not known, since not every group could be looked at.

    Args:
        wanted: their ids: the inodes of their directories.
        root: where the hierarchy is mounted; where version 1 is beside it, in ``unified``.
    """
    left = set(wanted)
    found: dict[int, str | None] = {}
    unseen: list[bytes] = []
    if not (root / "cgroup.controllers").exists():
        root = root / "unified"
    for number, (inode, path) in enumerate(walk(root, unseen.append)):
        if not left or number >= MOST:
            return found
        if inode in left:
            left.discard(inode)
            found[inode] = ("/" + os.fsdecode(path).lstrip("/"))[:MOST_CHARACTERS]
    return found if unseen else {**dict.fromkeys(left), **found}


def walk(root: Path, unseen: Callable[[bytes], None] = lambda _path: None) -> Iterator[tuple[int, bytes]]:
    """The inode of each group from ``root`` on, and its path below that, the nearest first.

    For who takes only so many: anybody may make groups below its own. One that goes away meanwhile is left out, where
    :meth:`pathlib.Path.rglob` raises.

    Args:
        root: where to begin.
        unseen: told of each that cannot be looked into though it may be there (no descriptor, no right).
    """
    base = os.fsencode(root)
    waiting = [b""]
    try:
        yield os.stat(base).st_ino, b""  # noqa: PTH116 - bytes: names need be no text
    except OSError:
        unseen(b"")
        return
    while waiting:
        below = []
        for path in waiting:
            try:
                with os.scandir(base + path) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            inner = path + b"/" + entry.name
                            yield entry.inode(), inner
                            below.append(inner)
            except OSError as error:
                if error.errno not in _GONE:
                    unseen(path)
        waiting = below
