"""Sees whether connections wait in the kernel that nobody takes: for a server that stands by, and takes none itself.

It costs nothing while nobody connects, and three glances a second at most while many do: the kernel tells of the next
connection once, and is asked to tell again a while later.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Sequence
from typing import Final

from agent.serve.intake import waiting

GLANCE_SECONDS: Final = 0.2
_GLANCES: Final = 2
"""So often, one time after the other, connections must wait before that is told: a live server has taken them by then,
or is asked, and says that it has very many."""
AGAIN_SECONDS: Final = 1.0


class Queues:
    """See the module. To be made before a process gives up to make anything.

    Args:
        sockets: on which workers ask.
        tell: called when connections wait.

    *Resources*: a descriptor, until :meth:`close`.
    """

    def __init__(self, sockets: Sequence[socket.socket], tell: Callable[[], None]) -> None:
        self._sockets = tuple(sockets)
        self._tell = tell
        self._epoll = select.epoll()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Look from now on. To be called in the event loop."""
        for one in self._sockets:
            self._epoll.register(one.fileno(), select.EPOLLIN | select.EPOLLONESHOT)
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._come)

    def _come(self) -> None:
        self._epoll.poll(0)  # it is told once, and no more until it is asked for
        if self._timer is None:
            self._later(GLANCE_SECONDS, self._glance, 1)

    def _later(self, seconds: float, call: Callable[..., None], *arguments: int) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, call, *arguments)

    def _glance(self, times: int) -> None:
        if not any(map(waiting, self._sockets)):
            self._later(AGAIN_SECONDS, self._heed)
        elif times < _GLANCES:
            self._later(GLANCE_SECONDS, self._glance, times + 1)
        else:
            self._tell()
            self._later(2 * AGAIN_SECONDS, self._heed)

    def _heed(self) -> None:
        self._timer = None
        try:
            for one in self._sockets:
                self._epoll.modify(one.fileno(), select.EPOLLIN | select.EPOLLONESHOT)
        except OSError:  # the kernel has no memory for it just now
            self._later(AGAIN_SECONDS, self._heed)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()
