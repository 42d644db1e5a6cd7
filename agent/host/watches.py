"""Has anything happened to a file, or on the way to it? The kernel says, so that nobody need look again and again.

inotify(7) watches each directory and symbolic link on the way and the file itself, and /proc/self/mountinfo tells of
each mount (proc(5)), which inotify does not. An event says only that it is time to look. Two things are not told: what
is written by ``mmap(2)`` before the file is closed, and what another machine does on a file system that it shares. So
whoever waits here looks once in a while all the same, and watches only what lies on one of :data:`OURS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.host.libc import libc

OURS: Final = frozenset({"ext2", "ext3", "ext4", "ramfs", "tmpfs", "xfs"})
"""File systems that nobody changes but this kernel, and not behind the back of inotify. Another one may be fine too."""
MOST_LINKS: Final = 40
"""So many symbolic links on the way are followed; as the kernel does (path_resolution(7))."""
MOST_OTHERS: Final = 20
"""A directory in which so much happens to other files is not waited for: to be told of them costs as much as a look."""

_MOUNTS: Final = Path("/proc/self/mountinfo")
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_EVENT: Final = struct.Struct("iIII")
"""The head of ``struct inotify_event``: which watch, what, a number, the length of the name of a directory's entry."""
_MODIFY, _ATTRIB, _CLOSE_WRITE, _MOVED_TO, _CREATE, _DELETE_SELF, _MOVE_SELF = 2, 4, 8, 0x80, 0x100, 0x400, 0x800
_DELETE: Final = 0x200
_IS_DIRECTORY: Final = 0x40000000
_DONT_FOLLOW: Final = 0x02000000
_MASK_ADD: Final = 0x20000000
_NAME: Final = _ATTRIB | _DELETE_SELF | _MOVE_SELF
"""Whatever happens to the name of an inode: that one less leads to it is a change of its attributes."""
_COMING: Final = _CREATE | _MOVED_TO
"""A directory gets what it did not have."""


class Watches:
    """See the module.

    *Resources*: four descriptors, from :meth:`on` to :meth:`close`.
    """

    def __init__(self, poll: select.epoll, events: int, mounts: int, woken: int) -> None:
        self._closing = threading.Lock()
        self._others = 0
        self._poll = poll
        self._events = events
        self._woken = woken
        self._descriptors = events, mounts, woken
        poll.register(events, select.EPOLLIN)
        poll.register(woken, select.EPOLLIN)

    @classmethod
    def on(cls, paths: Iterable[Path]) -> Watches | None:
        """Watch these, from now on; ``None`` where that is not possible: whoever waits must look.

        To be called in a thread: a disk may not answer.
        """
        # Not a number: a kernel whose table reads otherwise than proc(5) says.
        with contextlib.suppress(OSError, ValueError, IndexError), contextlib.ExitStack() as undone:
            # First of all: what is mounted from here on is told. Not what was before that: the kernel tells of a
            # change once, and epoll asks for it twice where it is there at the registration.
            mounts = os.open(_MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
            undone.callback(os.close, mounts)
            poll = select.epoll()
            undone.callback(poll.close)
            poll.register(mounts, select.EPOLLPRI)
            ours = _ours(mounts)
            events = libc().inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
            if events < 0:
                return None
            undone.callback(os.close, events)
            for path in paths:
                _watch(events, path, ours)
            woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undone.callback(os.close, woken)
            watches = cls(poll, events, mounts, woken)
            undone.pop_all()
            return watches
        return None

    def wait(self, seconds: float) -> bool:
        """Wait for so long; return whether something may have happened, or somebody called :meth:`wake`."""
        ends = time.monotonic() + seconds
        while True:
            ready = self._poll.poll(max(0.0, ends - time.monotonic()))
            if not ready:
                return False
            if any(descriptor != self._events for descriptor, _ in ready) or self._is_ours():
                return True
            self._others += 1
            if self._others > MOST_OTHERS:
                return True

    def _is_ours(self) -> bool:
        """Whether what was told is of what is watched, and not of something else in a directory on the way."""
        told = os.read(self._events, 1 << 16)
        at = 0
        while at < len(told):
            _, mask, _, length = _EVENT.unpack_from(told, at)
            if not length or mask & _COMING or (mask & _DELETE and mask & _IS_DIRECTORY):
                return True
            at += _EVENT.size + length
        return False

    def wake(self) -> None:
        """End a :meth:`wait` from another thread."""
        with self._closing:
            if not self._poll.closed:
                os.eventfd_write(self._woken, 1)

    def close(self) -> None:
        """Watch no more."""
        with self._closing:
            if not self._poll.closed:
                self._poll.close()
                for descriptor in self._descriptors:
                    os.close(descriptor)


def _ours(mounts: int) -> frozenset[int]:
    """The devices of those file systems that can be watched, as stat(2) names them."""
    text = bytearray()
    while piece := os.read(mounts, 1 << 16):
        text += piece
    found = set()
    for line in text.decode(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] in OURS:
            major, _, minor = before.split(" ", 3)[2].partition(":")
            found.add(os.makedev(int(major), int(minor)))
    return frozenset(found)


def _watch(events: int, path: Path, ours: frozenset[int]) -> None:
    """Watch each step of the way, in its order: what changes behind a step that is watched already is told.

    Raises:
        OSError: it cannot be watched, or cannot be looked at.
    """
    here, ahead, links = "/", [*reversed(path.absolute().parts[1:])], 0
    _add(events, here, ours)
    while ahead:
        step = ahead.pop()
        if step == "..":
            here = os.path.dirname(here)  # noqa: PTH120 - of a way without links, so it is the parent
            continue
        below = os.path.join(here, step)  # noqa: PTH118 - text, as what a link says is
        try:
            mode = _add(events, below, ours)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            # An empty directory that is removed tells nothing itself while somebody is in it, or has it open.
            _add(events, os.path.dirname(here), ours, _DELETE)  # noqa: PTH120 - as above
            # Whoever has been before us is told by the look that follows.
            _add(events, here, ours, _COMING)
            try:
                mode = _add(events, below, ours)
            except OSError as again:
                if again.errno not in _ABSENT:
                    raise
                return
        if stat.S_ISLNK(mode):
            links += 1
            if links > MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = Path(os.readlink(below))  # noqa: PTH115 - text
            here = "/" if target.is_absolute() else here
            ahead += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        elif stat.S_ISDIR(mode):
            here = below
        else:
            return


def _add(events: int, path: str, ours: frozenset[int], more: int = 0) -> int:
    """Watch one inode; return its mode."""
    found = os.lstat(path)
    if found.st_dev not in ours:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    mask = _NAME | more | (_MODIFY | _CLOSE_WRITE if stat.S_ISREG(found.st_mode) else 0)
    if libc().inotify_add_watch(events, os.fsencode(path), mask | _DONT_FOLLOW | _MASK_ADD) < 0:
        raise OSError(ctypes.get_errno(), "cannot be watched")
    again = os.lstat(path)
    if (again.st_dev, again.st_ino) != (found.st_dev, found.st_ino):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))  # it is unknown which of the two is watched
    return found.st_mode
