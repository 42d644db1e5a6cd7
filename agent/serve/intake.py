"""Accepted connections: taken from the kernel, and whose comes next when more wait than can be served.

A connection is accepted, read and, where its answer is remembered (:mod:`agent.serve.remembered`), answered and closed
at once, by four system calls and without an object for it. Any other is served on a :mod:`agent.serve.stream`.

The kernel keeps finished connections in one queue in the order of arrival, whoever owns them. Behind four hundred of
one worker another's waited for two seconds, which is twice the patience of botocore. So once that queue is long it is
emptied as fast as the kernel gives: a remembered answer is given at once, since that costs less than finding the owner;
any other is kept unread, with its owner, and in each round some of them are served, by turns of their owners: a few,
and more for as long as the fetching took. (When it was always a few, 256 clients that asked again and again kept the
fetching long, and who had to wait for a turn waited for half a second.) A connection that has sent nothing yet is
looked at once more in the next round, before it is given a turn: its client connects and then sends. As long as the
queue is short nothing of this runs.
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
from typing import Any, Final, Protocol

from agent.serve.fairness import Owners, place_of

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

_TCP_INFO_BYTES: Final = 28
_BACKLOG: Final = struct.Struct("=24xI")  # struct tcp_info: tcpi_unacked, the queue's length at a listening socket
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Begin = Callable[[socket.socket, Any, Hashable, bytes | None], bool]
"""Serve an accepted connection, its other end, its owner and what has come of it already; whether it is over."""


class Recall(Protocol):
    """Answers and closes an accepted connection that sent certain bytes, if that answer is remembered."""

    def __call__(
        self, sock: socket.socket, peer: Any, owner: Hashable, data: bytes, /, *, peeked: bool = False
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
        """What is spent from now on is spent on the next one."""
        self._began = self._spent()

    def pay(self) -> bool:
        """Take note that one more was fetched; return whether it may be answered on the way."""
        self._seconds = max(0.0, self._seconds - ON_THE_WAY_SECONDS)
        return self._seconds < MOST_OWED_SECONDS

    def add(self, *, over: bool) -> None:
        """Take note that one was answered, and whether nothing of it is left to be done."""
        began = self._began
        self.begin()
        self._seconds += max(0.0 if over else _UNFINISHED_SECONDS, self._began - began)


class Intake:
    """The listening sockets, and the connections that were fetched from them and are not served yet.

    Args:
        sockets: owned from here on.
        begin: serves one.
        recall: answers one from memory.
        owners: tells whose a connection is; without it, or where it cannot tell at once, its address does.
        room: how many more connections there may be.
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
        now: Callable[[], float] = time.perf_counter,
        spent: Callable[[], float] = time.thread_time,
        evicted: Callable[[], None] = lambda: None,
    ) -> None:
        self._sockets = tuple(sockets)
        self._serve = begin
        self._recall = recall
        self._owners = owners
        self._room = room
        self._now = now
        self._evicted = evicted
        # All mutable state. By owner, in the order of their turns.
        self._queues: dict[Hashable, deque[tuple[socket.socket, Any]]] = {}
        self._count = 0
        self._young: list[tuple[socket.socket, Any, Hashable]] = []  # accepted in this round; nothing has come yet
        self._silent: list[tuple[socket.socket, Any]] = []  # the same, where many wait
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
        return self._count + len(self._young) + len(self._silent)

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
        self._look_again()
        self._hear_silent()
        self._begin(self._count)

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
        many = waiting(listening)
        if many >= LONG:
            self._working = True
            asyncio.get_running_loop().call_soon(self._go_round)
            return
        # Where the kernel does not tell how many (a unix socket): some, and the event loop comes again for the rest.
        for _ in range(many or UNTOLD_AT_ONCE):
            try:
                connection, peer = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause()
                    return
                continue  # that one was gone before we took it
            self._take(connection, peer, None, waits=True)

    def _take(self, connection: socket.socket, peer: Any, owner: Hashable, *, waits: bool) -> None:
        """Receive what has come, and have it answered.

        Args:
            connection: just accepted.
            peer: its other end.
            owner: whose it is, where that is known.
            waits: whether, when nothing has come yet, it is looked at once more in the next round of the loop. A client
                connects and then sends, so mostly it has sent by then; to be told of it costs more than to look.
        """
        try:
            data = connection.recv(_FIRST_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            if not waits:
                self._serve(connection, peer, owner, None)
                return
            if not self._young:
                asyncio.get_running_loop().call_soon(self._look_again)
            self._young.append((connection, peer, owner))
        except OSError:
            connection.close()  # nobody is there any more to read an answer
        else:
            if not data or not self._recall(connection, peer, owner, data):
                self._serve(connection, peer, owner, data)

    def _look_again(self) -> None:
        young, self._young = self._young, []
        for connection, peer, owner in young:
            self._take(connection, peer, owner, waits=False)

    def _pause(self) -> None:
        """No connection can be accepted until a descriptor is free, and asking again and again frees none."""
        self._ignore()
        self._again = asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._heed)

    # -- many: by turns of their owners ------------------------------------------------------------------------------

    def _go_round(self) -> None:
        more = True  # also after an error of ours: who waits must not wait for ever
        try:
            began = self._now()
            self._owed.begin()
            self._hear_silent()
            fetched = [self._fetch(one) for one in self._sockets] if self._open else []
            ended = self._now()
            self._begin(SERVED_AT_ONCE, until=ended + min(ended - began, _SERVING_SECONDS))
            more = any(fetched) or self._count > 0 or bool(self._silent)
        finally:
            self._working = more
            if more:
                asyncio.get_running_loop().call_soon(self._go_round)

    def _fetch(self, listening: socket.socket) -> bool:
        """Take what waits there; true if there may be more."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, peer = listening.accept()
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
            self._sort(connection, peer, silent=self._silent)
        return True

    def _hear_silent(self) -> None:
        """Give a turn to those that had sent nothing a round ago, unless what they have sent now is remembered."""
        silent, self._silent = self._silent, []
        for connection, peer in silent:
            self._sort(connection, peer, silent=None)

    def _sort(self, connection: socket.socket, peer: Any, *, silent: list[tuple[socket.socket, Any]] | None) -> None:
        """Answer it on the way, or leave its request in the kernel, which has room for it.

        ``silent`` takes it, if it has sent nothing; where that is ``None``, it waits for its owner's turn all the same.
        """
        if self._owed.pay() and self._answer_on_the_way(connection, peer):
            return
        self._keep(connection, peer, silent)
        self._owed.begin()

    def _keep(self, connection: socket.socket, peer: Any, silent: list[tuple[socket.socket, Any]] | None) -> None:
        try:
            data = connection.recv(_FIRST_BYTES, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            if silent is not None:
                silent.append((connection, peer))
                return
        except OSError:
            connection.close()  # nobody is there any more to read an answer
            return
        else:
            if data and self._recall(connection, peer, None, data, peeked=True):
                return
        try:
            owner = _owner(self._owners, connection, peer)
        except OSError:
            connection.close()
            return
        self._queues.setdefault(owner, deque()).append((connection, peer))
        self._count += 1
        if self._count > max(LEAST_ROOM, self._room()):
            self._put_out()

    def _answer_on_the_way(self, connection: socket.socket, peer: Any) -> bool:
        """Whether it has sent something, and is dealt with."""
        try:
            data = connection.recv(_FIRST_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            over = self._recall(connection, peer, None, data) or self._serve(connection, peer, None, data)
            self._owed.add(over=over)
        else:
            connection.close()  # nobody is there any more to read an answer
        return True

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
            self._take(connection, peer, owner, waits=False)


def _owner(owners: Owners | None, connection: socket.socket, peer: object) -> Hashable:
    if owners is not None and isinstance(peer, tuple):
        local = connection.getsockname()
        owner = owners.now((peer[0], peer[1]), (local[0], local[1]))
        if owner is not None:
            return owner
    return place_of(peer)


def waiting(listening: socket.socket) -> int:
    """How many finished connections the kernel holds for a listening TCP socket; 0 where it does not say."""
    with contextlib.suppress(OSError, AttributeError, struct.error):
        raw = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return int(_BACKLOG.unpack(raw)[0])
    return 0
