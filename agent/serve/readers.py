"""Tells when a socket can be read: one epoll(7) for all connections, of which the event loop knows as one descriptor.

An event loop's own way costs six system calls and an object for each connection that it is asked to watch (libuv adds
and removes it once to see whether it can be watched). A client connects and then sends, so nearly every connection has
to be watched for a moment. Here that costs one: the kernel forgets a socket when it is closed.

What the kernel watches may be more than what is listed here, for a moment: whoever gives a connection away or closes it
strikes it off the list, and leaves the rest to the kernel. What is told of one that is not listed is not heeded, and it
is watched no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

_AT_ONCE: Final = 256
"""So many are told of in one round of the loop; the kernel begins the next round with the others."""

Readable = Callable[[int], None]
"""Told of a descriptor that can be read, or whose other side has left."""


class Readers:
    """See the module.

    Args:
        loop: the one that runs.
        together: the context in which all that can be read in one round is told of.

    *Resources*: a descriptor, until :meth:`close`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, together: AbstractContextManager[object] | None = None
    ) -> None:
        self.loop = loop
        self._together = together or contextlib.nullcontext()
        self.rounds = 0
        """How often it was looked."""
        self._epoll = select.epoll()
        self._told: dict[int, Readable] = {}
        self._looks = False
        loop.add_reader(self._epoll.fileno(), self._ready)

    def add(self, fd: int, readable: Readable) -> None:
        """Tell ``readable`` whenever ``fd`` can be read.

        Raises:
            OSError: the kernel has no room to watch it (epoll_ctl(2): ENOMEM, ENOSPC).
        """
        with contextlib.suppress(FileExistsError):  # struck off by whoever had it before: the kernel watches it yet
            self._epoll.register(fd, select.EPOLLIN)
        self._told[fd] = readable

    def remove(self, fd: int) -> None:
        """Tell no more of one that stays open."""
        if self._told.pop(fd, None) is not None:
            self._unwatch(fd)

    def strike_off(self, fd: int) -> None:
        """Tell no more of one that is closed with that, or watched by somebody else."""
        self._told.pop(fd, None)

    def soon(self) -> None:
        """Look once more in the next round, before the process sleeps: to be woken costs more."""
        if not self._looks:
            self._looks = True
            self.loop.call_soon(self._ready)

    def _ready(self) -> None:
        self._looks = False
        if self._epoll.closed:
            return  # meanwhile: it was to look once more
        self.rounds += 1
        with self._together:
            for fd, _ in self._epoll.poll(0, _AT_ONCE):
                readable = self._told.get(fd)
                if readable is None:
                    self._unwatch(fd)
                else:
                    readable(fd)

    def _unwatch(self, fd: int) -> None:
        with contextlib.suppress(OSError):  # it was closed meanwhile
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Tell of nothing more."""
        if not self._epoll.closed:
            self.loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._told.clear()
