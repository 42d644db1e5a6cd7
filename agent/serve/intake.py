"""Accepted connections: taken from the kernel, and whose comes next when more wait than can be served.

A connection is accepted, read and, where its answer is remembered (:mod:`agent.serve.remembered`), answered and closed
at once, by four system calls and without an object for it. Any other is served on a :mod:`agent.serve.stream`.

The kernel keeps finished connections in one queue in the order of arrival, whoever owns them. Behind four hundred of
one worker another's waited for two seconds, which is twice the patience of botocore. So once that queue is long it is
emptied as fast as the kernel gives: a remembered answer is given at once, since that costs less than finding the owner;
any other is kept unread, with its owner, and in each round some of them are served, by turns of their owners: a few,
and more for as long as the fetching took. (When it was always a few, 256 clients that asked again and again kept the
fetching long, and who had to wait for a turn waited for half a second.) As long as the queue is short nothing of this
runs.

One that has sent nothing yet is waited for by :mod:`agent.serve.silent`, and taken as if it had been accepted when it
sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, Protocol

from agent.serve.fairness import Owners, place_of
from agent.serve.readers import Readers
from agent.serve.silent import Silent

LONG: Final = 64
"""With so many waiting in the kernel it is worth finding their owners; fewer are served within some 8 ms."""
ACCEPTED_AT_ONCE: Final = 256
"""The most that are fetched each round: each costs some 25 microseconds, and more come meanwhile."""
UNTOLD_AT_ONCE: Final = 16
"""The most that are taken in one round, where the kernel does not tell how many wait."""
SERVED_AT_ONCE: Final = 4
"""So few are served at least in each round: some requests cost a millisecond."""
_SERVING_SECONDS: Final = 0.008
"""No more of them are begun with after so long, so that rounds stay short: whoever comes now is seen in the next."""
ON_THE_WAY_SECONDS: Final = 60e-6
"""What an answer may cost that is given before it is asked whose it is: to ask, to keep it and to take it up again
would cost as much, so whoever is behind it waits no longer for it."""
MOST_OWED_SECONDS: Final = 0.002
"""Above this, what costs more has to wait for its owner's turn. Each that is fetched pays off
:data:`ON_THE_WAY_SECONDS`."""
_UNFINISHED_SECONDS: Final = 0.0005
"""What is owed at least for one that is not over yet: something of it is done later."""
LEAST_ROOM: Final = 16
_AGAIN_SECONDS: Final = 0.1
"""Until the next try, where the process has no file descriptor left."""
_FIRST_BYTES: Final = 16384

_PEEK: Final = socket.MSG_DONTWAIT | socket.MSG_PEEK

_TCP_INFO_BYTES: Final = 28
_BACKLOG: Final = struct.Struct("=24xI")  # struct tcp_info: tcpi_unacked, the queue's length at a listening socket
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


Accept = Callable[[], tuple[socket.SocketType, Any]]
"""Returns a connection and its other end, or raises what accept(2) says."""


class Begin(Protocol):
    """Serves an accepted connection."""

    def __call__(
        self, sock: socket.SocketType, peer: Any, owner: Hashable, data: bytes | None, /, *, waited: bool = False
    ) -> bool:
        """Return whether it is over.

        Args:
            sock: the connection.
            peer: its other end.
            owner: whose it is, where that is known.
            data: what has come already; ``None``: nothing.
            waited: whether it had a chance to be read before, and had sent nothing.
        """


class Recall(Protocol):
    """Answers and closes an accepted connection that sent certain bytes, if that answer is remembered."""

    def __call__(
        self, sock: socket.SocketType, peer: Any, owner: Hashable, data: bytes, /, *, peeked: bool = False
    ) -> bool:
        """Return whether it was. ``peeked``: the kernel has these bytes still."""


class Owed:
    """What answers that were given on the way have cost, above what they may.

    Args:
        spent: seconds of this thread's own: while another process has the processor nothing is owed.
    """

    def __init__(self, spent: Callable[[], float]) -> None:
        self._spent = spent
        self._began = 0.0
        self._seconds = 0.0

    def begin(self) -> None:
        """What is spent from now on is spent on this one."""
        self._began = self._spent()

    def pay(self) -> bool:
        """Take note that one more was fetched; return whether it may be answered on the way."""
        self._seconds = max(0.0, self._seconds - ON_THE_WAY_SECONDS)
        return self._seconds < MOST_OWED_SECONDS

    def add(self, *, over: bool) -> None:
        """Take note that one was answered, and whether nothing of it is left to be done."""
        self._seconds += max(0.0 if over else _UNFINISHED_SECONDS, self._spent() - self._began)


class Intake:
    """The listening sockets, and the connections that were fetched from them and are not served yet.

    Args:
        sockets: owned from here on.
        begin: serves one.
        recall: answers one from memory.
        owners: tells whose a connection is; without it, or where it cannot tell at once, its address does.
        room: how many more connections there may be.
        readers: tells when something has come.
        together: the context in which those of one round are served.
        now: seconds of a clock that does not jump.
        spent: seconds that this thread has had a processor.
        evicted: told of each that was closed because there is none.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        begin: Begin,
        recall: Recall,
        owners: Owners | None,
        room: Callable[[], int],
        readers: Readers,
        together: AbstractContextManager[object] | None = None,
        now: Callable[[], float] = time.perf_counter,
        spent: Callable[[], float] = time.thread_time,
        evicted: Callable[[], None] = lambda: None,
    ) -> None:
        self._sockets = tuple(sockets)
        self._accepts = {one: acceptor(one) for one in self._sockets}
        self._serve = begin
        self._recall = recall
        self._owners = owners
        self._room = room
        self._silent = Silent(readers, room, self._hear, self._begin_silent)
        self._together = together or contextlib.nullcontext()
        self._now = now
        self._evicted = evicted
        # All mutable state. By owner, in the order of their turns.
        self._queues: dict[Hashable, deque[tuple[socket.SocketType, Any]]] = {}
        self._count = 0
        self._owed = Owed(spent)
        self._working = False
        self._open = False
        self._again: asyncio.TimerHandle | None = None

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """Those that it listens on."""
        return self._sockets

    @property
    def connections(self) -> int:
        """How many were fetched and are not served yet."""
        return self._count + len(self._silent)

    def begin(self) -> None:
        """Take what comes from now on. To be called in the event loop."""
        self._open = True
        for one in self._sockets:
            one.setblocking(False)
        self._heed()

    def close(self) -> None:
        """Take nothing more. :meth:`finish` serves the connections that were fetched."""
        if self._open:
            self._open = False
            self._ignore()
            for one in self._sockets:
                one.close()

    def finish(self) -> None:
        """Serve all that were fetched, since no round will come for them any more."""
        self._begin(self._count)
        self._silent.finish()

    def _heed(self) -> None:
        self._again = None
        loop = asyncio.get_running_loop()
        for one in self._sockets:
            loop.add_reader(one.fileno(), self._come, one)

    def _ignore(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        loop = asyncio.get_running_loop()
        for one in self._sockets:
            loop.remove_reader(one.fileno())

    # -- few: served as they come ------------------------------------------------------------------------------------

    def _come(self, listening: socket.socket) -> None:
        if self._working:
            return  # the rounds fetch from this socket
        accept, many = self._accepts[listening], waiting(listening)
        if many >= LONG:
            self._working = True
            asyncio.get_running_loop().call_soon(self._go_round)
            return
        with self._together:
            # Where the kernel does not tell how many (a unix socket): some, and the loop comes again for the rest.
            self._accept(accept, many or UNTOLD_AT_ONCE)

    def _accept(self, accept: Accept, most: int) -> None:
        for _ in range(most):
            try:
                connection, peer = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause()
                    return
                continue  # that one was gone before we took it
            self._take(connection, peer, None)

    def _take(self, connection: socket.SocketType, peer: Any, owner: Hashable) -> None:
        """Receive what has come, and have it answered.

        Args:
            connection: just accepted.
            peer: its other end.
            owner: whose it is, where that is known.
        """
        try:
            data = connection.recv(_FIRST_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._silent.add(connection, peer, owner)
        except OSError:
            connection.close()  # nobody is there any more to read an answer
        else:
            if not data or not self._recall(connection, peer, owner, data):
                self._serve(connection, peer, owner, data)

    def _hear(self, connection: socket.SocketType, peer: Any, owner: Hashable) -> None:
        """Something has come of one that was silent."""
        if self._working and owner is None:
            self._sort(connection, peer)
        else:
            self._take(connection, peer, owner)

    def _begin_silent(self, connection: socket.SocketType, peer: Any, owner: Hashable, waited: bool) -> None:
        self._serve(connection, peer, owner, None, waited=waited)

    def _pause(self) -> None:
        """No connection can be accepted until a descriptor is free, and asking again and again frees none."""
        self._ignore()
        self._again = asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._heed)

    # -- many: by turns of their owners ------------------------------------------------------------------------------

    def _go_round(self) -> None:
        more = True  # also after an error of ours: who waits must not wait for ever
        try:
            with self._together:
                began = self._now()
                fetched = [self._fetch(one) for one in self._sockets] if self._open else []
                ended = self._now()
                self._begin(SERVED_AT_ONCE, until=ended + min(ended - began, _SERVING_SECONDS))
            more = any(fetched) or self._count > 0
        finally:
            self._working = more
            if more:
                asyncio.get_running_loop().call_soon(self._go_round)

    def _fetch(self, listening: socket.socket) -> bool:
        """Take what waits there; true if there may be more."""
        accept = self._accepts[listening]
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, peer = accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    # Not again in this round, and not soon if there is none to evict.
                    if self._put_out():
                        return True
                    self._pause()
                    return False
                continue  # that one was gone before we took it
            self._sort(connection, peer)
        return True

    def _sort(self, connection: socket.SocketType, peer: Any) -> None:
        """Answer it on the way, or leave its request in the kernel, which has room for it."""
        at_once = self._owed.pay()
        try:
            data = connection.recv(_FIRST_BYTES, socket.MSG_DONTWAIT if at_once else _PEEK)
        except BlockingIOError:
            self._silent.add(connection, peer, None)
            return
        except OSError:
            data = b""
        if not data:
            connection.close()  # nobody is there any more to read an answer
        elif not self._recall(connection, peer, None, data, peeked=not at_once):
            if at_once:
                self._owed.begin()
                self._owed.add(over=self._serve(connection, peer, None, data))
            else:
                self._keep(connection, peer)

    def _keep(self, connection: socket.SocketType, peer: Any) -> None:
        """Have it wait for its owner's turn."""
        try:
            owner = _owner(self._owners, connection, peer)
        except OSError:
            connection.close()
            return
        self._queues.setdefault(owner, deque()).append((connection, peer))
        self._count += 1
        if self._count > max(LEAST_ROOM, self._room()):
            self._put_out()

    def _put_out(self) -> bool:
        """Close the newest connection of whoever has most here; ``False`` when there is none."""
        if not self._queues:
            return False
        most = max(self._queues, key=lambda owner: len(self._queues[owner]))
        queue = self._queues[most]
        queue.pop()[0].close()
        self._evicted()
        self._count -= 1
        if not queue:
            del self._queues[most]
        return True

    def _begin(self, least: int, *, until: float = float("-inf")) -> None:
        """Serve ``least`` of them, and more until a time."""
        begun = 0
        while self._queues and (begun < least or self._now() < until):
            begun += 1
            owner = next(iter(self._queues))
            queue = self._queues.pop(owner)
            connection, peer = queue.popleft()
            self._count -= 1
            if queue:
                self._queues[owner] = queue  # at the end: it is everybody else's turn now
            self._take(connection, peer, owner)


def _owner(owners: Owners | None, connection: socket.SocketType, peer: object) -> Hashable:
    if owners is not None and isinstance(peer, tuple):
        local = connection.getsockname()
        owner = owners.now((peer[0], peer[1]), (local[0], local[1]))
        if owner is not None:
            return owner
    return place_of(peer)


def acceptor(listening: socket.socket) -> Accept:
    """What accepts a connection as ``listening.accept`` does, and makes no more of it than what the kernel is asked by.

    The library's own makes of each connection an object in Python, and asks its enumerations what kind of socket it is:
    of all that a request costs whose answer is remembered, that was a seventh. A socket that accepts in its own way is
    left to it (:class:`agent.serve.handed.Guarding` holds off what is handed over).
    """
    taken = getattr(listening, "_accept", None)  # as the library calls it; a later one may have another name for it
    if taken is None or type(listening).accept is not socket.socket.accept:
        return listening.accept
    made = partial(socket.SocketType, int(listening.family), int(listening.type), listening.proto)

    def accept() -> tuple[socket.SocketType, Any]:
        fd, peer = taken()
        return made(fd), peer

    return accept


def waiting(listening: socket.socket) -> int:
    """How many finished connections the kernel holds for a listening TCP socket; 0 where it does not say."""
    with contextlib.suppress(OSError, AttributeError, struct.error):
        raw = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return int(_BACKLOG.unpack(raw)[0])
    return 0
