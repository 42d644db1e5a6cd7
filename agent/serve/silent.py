"""Accepted connections that have sent nothing yet: a client connects, and then sends.

For a moment they wait in the kernel without an object for them, and are handed on when something has come. Who stays
silent for longer, or for whom there is no room, is handed on as overdue: to be counted, and to have deadlines.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Hashable
from typing import Any, Final

from agent.serve.readers import Readers

MOST: Final = 256
"""So many wait at most. Whoever opens more at once takes from others no more than this way of waiting."""
SECONDS: Final = 0.025
"""Clients send within some 5 ms of connecting. Overdue is who is silent for so long, and for twice that at the most."""

Heard = Callable[[socket.SocketType, Any, Hashable], object]
"""Take over a connection, its other end and its owner."""
Overdue = Callable[[socket.SocketType, Any, Hashable, bool], object]
"""The same, and whether it had a chance to be read since it was accepted."""
_Waiting = tuple[socket.SocketType, Any, Hashable, int]
"""A connection, its other end, its owner and the round in which it came."""


class Silent:
    """See the module.

    Args:
        readers: tells when something has come.
        room: how many more connections there may be.
        heard: takes one that has sent something, or left.
        overdue: takes one that is waited for no longer.
    """

    def __init__(self, readers: Readers, room: Callable[[], int], heard: Heard, overdue: Overdue) -> None:
        self._readers = readers
        self._room = room
        self._heard = heard
        self._overdue = overdue
        # All mutable state. By descriptor, in the order of their coming.
        self._young: dict[int, _Waiting] = {}
        self._older: dict[int, _Waiting] = {}
        self._timer: asyncio.TimerHandle | None = None  # when the older ones are overdue

    def __len__(self) -> int:
        return len(self._young) + len(self._older)

    def add(self, connection: socket.SocketType, peer: Any, owner: Hashable) -> None:
        """Wait for one."""
        if len(self) >= min(MOST, self._room()):
            self.finish()  # as long as they are here nothing weighs them against the others
        fd = connection.fileno()
        if self._room() <= 0 or not self._is_watched(fd):
            self._overdue(connection, peer, owner, False)
            return
        self._young[fd] = (connection, peer, owner, self._readers.rounds)
        self._readers.soon()
        if self._timer is None:
            self._timer = self._readers.loop.call_later(SECONDS, self._age)

    def _is_watched(self, fd: int) -> bool:
        try:
            self._readers.add(fd, self._hear)
        except OSError:
            return False
        return True

    def _hear(self, fd: int) -> None:
        self._readers.strike_off(fd)
        connection, peer, owner, _ = (self._young if fd in self._young else self._older).pop(fd)
        self._heard(connection, peer, owner)

    def _age(self) -> None:
        older, self._older, self._young = self._older, self._young, {}
        self._timer = self._readers.loop.call_later(SECONDS, self._age) if self._older else None
        self._hand_on(older)

    def finish(self) -> None:
        """Wait for none of them any longer."""
        silent, self._older, self._young = {**self._older, **self._young}, {}, {}
        self._hand_on(silent)

    def _hand_on(self, silent: dict[int, _Waiting]) -> None:
        for fd, (connection, peer, owner, came) in silent.items():
            self._readers.strike_off(fd)
            self._overdue(connection, peer, owner, came < self._readers.rounds)
