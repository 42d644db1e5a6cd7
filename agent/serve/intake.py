"""Whose connection is taken next, when more wait than can be served: each owner's in turn.

The kernel keeps finished connections in one queue in the order of coming, whoever they are of, and the event loop
(uvloop, libuv) takes one from it each time round. Behind four hundred of one worker another's waited for two seconds,
which is twice the patience of botocore. So once that queue is long it is emptied as fast as the kernel gives: nothing
is read from a connection, nothing is remembered of it but whose it is, and so many are served each round, by turns.

As long as the queue is short nothing of this runs: taking a connection this way costs some 30 microseconds more.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Final

from agent.serve.fairness import Owners, place_of

LONG: Final = 64
"""With so many waiting in the kernel it is worth to know whose they are; those before are served in some 30 ms."""
LOOK_EACH: Final = 8
"""It is looked at once for so many that come: that nobody is open says nothing of how many wait in the kernel."""
ACCEPTED_AT_ONCE: Final = 256
"""At most so many are fetched each round: each costs some 25 microseconds, and more come meanwhile."""
SERVED_AT_ONCE: Final = 4
"""So few are begun with each round that rounds stay short, of which a connection takes four until it is answered: some
requests cost a millisecond. What going round costs itself is small beside it."""
LEAST_ROOM: Final = 16

_TCP_INFO_BYTES: Final = 28
_BACKLOG: Final = struct.Struct("=24xI")  # struct tcp_info: tcpi_unacked, which says this of a socket that listens
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Factory = Callable[[Hashable], asyncio.Protocol]


class Intake:
    """The connections that were fetched from the kernel and are not served yet.

    Args:
        sockets: the listening ones, each served by the event loop as well.
        factory: makes the protocol of a connection, given its owner.
        owners: tells whose a connection is; without it, or where it cannot tell at once, its address does.
        room: how many connections there may be more than there are.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        factory: Factory,
        owners: Owners | None,
        room: Callable[[], int],
    ) -> None:
        self._sockets = tuple(sockets)
        self._factory = factory
        self._owners = owners
        self._room = room
        # All mutable state. By owner, in the order of their turns.
        self._queues: dict[Hashable, deque[socket.socket]] = {}
        self._count = 0
        self._beginning: set[asyncio.Task[None]] = set()
        self._working = False
        self._usual = 0  # how many came the usual way

    @property
    def connections(self) -> int:
        """How many were fetched and are not begun with."""
        return self._count + len(self._beginning)

    def look(self) -> None:
        """A connection came the usual way: see at times how many wait behind it."""
        self._usual += 1
        if self._usual % LOOK_EACH or self._working:
            return
        if any(_waiting(one) >= LONG for one in self._sockets):
            self._working = True
            asyncio.get_running_loop().call_soon(self._go_round)

    async def finish(self) -> None:
        """Begin with all that were fetched, since nobody will come for them any more."""
        while self.connections:
            self._begin(SERVED_AT_ONCE)
            await asyncio.gather(*self._beginning)

    def _go_round(self) -> None:
        more = [self._fetch(one) for one in self._sockets]
        self._begin(SERVED_AT_ONCE)
        self._working = any(more) or self._count > 0
        if self._working:
            asyncio.get_running_loop().call_soon(self._go_round)

    # -- from the kernel ---------------------------------------------------------------------------------------------

    def _fetch(self, listening: socket.socket) -> bool:
        """Take what waits there; whether there may be more."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, peer = listening.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    # Not again in this round, and not in the next ones if there is nobody to put out: the event loop
                    # comes across it itself.
                    return self._put_out()
                if listening.fileno() < 0 or error.errno == errno.EINVAL:
                    return False  # closed, or shut down: the end of the process
                continue  # that one was gone before we took it
            connection.setblocking(False)
            try:
                if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise ConnectionResetError
                owner = self._owner(connection, peer)
            except ConnectionError:
                connection.close()  # nobody is there any more to read an answer
                continue
            self._queues.setdefault(owner, deque()).append(connection)
            self._count += 1
            if self.connections > max(LEAST_ROOM, self._room()):
                self._put_out()
        return True

    def _owner(self, connection: socket.socket, peer: object) -> Hashable:
        if self._owners is not None and isinstance(peer, tuple):
            try:
                local = connection.getsockname()
            except OSError:
                raise ConnectionResetError from None
            owner = self._owners.now((peer[0], peer[1]), (local[0], local[1]))
            if owner is not None:
                return owner
        return place_of(peer)

    def _put_out(self) -> bool:
        """Close the last that came of whoever has most here; ``False`` when there is none."""
        if not self._queues:
            return False
        most = max(self._queues, key=lambda owner: len(self._queues[owner]))
        queue = self._queues[most]
        queue.pop().close()
        self._count -= 1
        if not queue:
            del self._queues[most]
        return True

    # -- to the event loop -------------------------------------------------------------------------------------------

    def _begin(self, most: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(most):
            if not self._queues:
                return
            owner = next(iter(self._queues))
            queue = self._queues.pop(owner)
            connection = queue.popleft()
            self._count -= 1
            if queue:
                self._queues[owner] = queue  # at the end: it is everybody else's turn now
            task = loop.create_task(_connect(connection, partial(self._factory, owner)))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)


async def _connect(connection: socket.socket, factory: Callable[[], asyncio.Protocol]) -> None:
    try:
        await asyncio.get_running_loop().connect_accepted_socket(factory, connection)
    except OSError:
        connection.close()  # it was reset meanwhile


def _waiting(listening: socket.socket) -> int:
    """How many finished connections the kernel holds for a listening TCP socket; 0 where it does not say."""
    with contextlib.suppress(OSError, AttributeError, struct.error):
        raw = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return int(_BACKLOG.unpack(raw)[0])
    return 0
