"""Who goes when there is no room, and whose turn is next: fair shares among those who ask.

The rule everywhere: whoever has most gives way to whoever has less. A share belongs to an *owner*: the user id of the
process at the other end where the kernel tells it, else the address that it comes from. The kernel tells at once about
one socket (:mod:`agent.host.sockdiag`); where that is not allowed, its table of all of them
(:mod:`agent.host.sockets`) costs milliseconds. Either is done only when something is half used up: before that nobody
needs it.
"""

from __future__ import annotations

import asyncio
import heapq
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar

M = TypeVar("M")

Endpoint = tuple[str, int]
_GAP_SECONDS: Final = 0.25
_TABLE_SECONDS: Final = 1.0
"""A table that takes longer to read than this is not waited for."""


class Table(Protocol):
    """The TCP sockets of this network namespace at one moment."""

    def owner(self, peer: Endpoint, local: Endpoint) -> int | None:
        """The user whose socket is at the other end of the connection from ``peer`` to us; ``None``: not known."""


Ask = Callable[[Endpoint, Endpoint], int | None]
"""The user whose socket is at ``peer`` in a connection that we have at ``local``, at once; ``None``: not known. Raises
``ConnectionError`` when it is closed already, and any other ``OSError`` when the kernel does not tell."""


class Owners:
    """Finds the owners of the sockets at the other ends: of one at once, or the table of them all.

    The table is read in a thread of its own, once for all who ask at the same time.

    Args:
        read: reads the table; blocks; may raise ``OSError``.
        ask: asks about one socket.
        whose: the owner to whom a user id counts.
        close: frees what ``ask`` needs.
    """

    def __init__(
        self,
        read: Callable[[], Table],
        ask: Ask | None = None,
        *,
        whose: Callable[[int], Hashable] = int,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._read = read
        self._ask = ask
        self._whose = whose
        self._close = close
        # Of its own: the common threads may all hang on a disk, and requests must not take those of the renewal.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="owners")
        self._reading: asyncio.Task[None] | None = None
        self._table: Table | None = None
        self._began = float("-inf")

    @property
    def immediate(self) -> bool:
        """Whether one socket's owner is known without waiting."""
        return self._ask is not None

    def now(self, peer: Endpoint, local: Endpoint) -> Hashable | None:
        """To whom the socket at ``peer`` counts in a connection that we have at ``local``; ``None``: not known at once.

        Raises:
            ConnectionError: it is closed already.
        """
        if self._ask is None:
            return None
        try:
            user = self._ask(peer, local)
        except ConnectionError:
            raise
        except OSError:
            self._ask = None  # a kernel that does not tell will not tell the next time either
            return None
        return None if user is None else self._whose(user)

    def find(self, table: Table | None, peer: Endpoint, local: Endpoint) -> Hashable | None:
        """The same by a table."""
        user = None if table is None else table.owner(peer, local)
        return None if user is None else self._whose(user)

    async def table(self) -> Table | None:
        """A table whose reading began after this call; ``None`` when it cannot be had in time."""
        asked = time.monotonic()
        try:
            async with asyncio.timeout(_TABLE_SECONDS):
                while self._began < asked:
                    # A finished reading is over although its callback has not run: waiting for it would never yield.
                    if self._reading is None or self._reading.done():
                        self._reading = asyncio.create_task(self._look(), name="socket owners")
                        self._reading.add_done_callback(self._looked)
                    await asyncio.shield(self._reading)
        except (TimeoutError, OSError, RuntimeError):
            return None
        return self._table

    async def _look(self) -> None:
        await asyncio.sleep(max(0.0, self._began + _GAP_SECONDS - time.monotonic()))
        began = time.monotonic()
        self._table = await asyncio.get_running_loop().run_in_executor(self._thread, self._read)
        self._began = began

    @staticmethod
    def _looked(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # told to who waits

    def close(self) -> None:
        """Wait for nothing."""
        if self._reading is not None:
            self._reading.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._ask = None
        self._close()


def place_of(name: Any) -> Hashable:
    """The address of a peer as an owner: an IPv6 host has 2**64 of its own, so its network counts as one."""
    if not isinstance(name, tuple) or not name:
        return ""
    host = str(name[0])
    if ":" not in host or host.lower().startswith("::ffff:"):
        return host
    try:
        return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8]
    except OSError:
        return host


def ends_of(sock: socket.SocketType, peer: object) -> tuple[Endpoint, Endpoint] | None:
    """The other end of an accepted TCP connection, and ours."""
    if not isinstance(peer, tuple):
        return None
    try:
        local = sock.getsockname()
    except OSError:
        return None
    return (peer[0], peer[1]), (local[0], local[1])


def by_greed(totals: Mapping[Hashable, int], queues: Mapping[Hashable, deque[tuple[int, M]]]) -> Iterator[M]:
    """The order in which members go: at each step the owner with most gives one up.

    Args:
        totals: what each owner has.
        queues: by owner, the members that may go, each behind what it would free; the first to go first.
    """
    heap = [(-totals[owner], number, owner) for number, (owner, queue) in enumerate(queues.items()) if queue]
    heapq.heapify(heap)
    while heap:
        total, number, owner = heapq.heappop(heap)
        weight, member = queues[owner].popleft()
        yield member
        if queues[owner]:
            heapq.heappush(heap, (total + weight, number, owner))


class Turnstile:
    """Lets ``limit`` in at once; of those who wait, the next is one whose owner has fewest inside.

    A plain semaphore serves in the order of arrival: a thousand requests of one worker stand before the first of the
    next.

    Attributes:
        limit: so many at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._inside: dict[Hashable, int] = {}
        self._count = 0
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}

    @property
    def crowded(self) -> bool:
        """Whether it is half full, so that it matters who comes."""
        return 2 * self._count >= self.limit

    @asynccontextmanager
    async def turn(self, owner: Hashable) -> AsyncIterator[None]:
        """Inside, once there is room."""
        if self._count < self.limit and not self._waiting:
            self._enter(owner)
        else:
            await self._wait(owner)
        try:
            yield
        finally:
            self._leave(owner)

    async def _wait(self, owner: Hashable) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(owner)  # let in and cancelled in the same moment
            else:
                self._forget(owner, turn)
            raise

    def _forget(self, owner: Hashable, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(owner)
        # It may be gone from the queue already: its turn may have come between its cancelling and this.
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[owner]

    def _enter(self, owner: Hashable) -> None:
        self._count += 1
        self._inside[owner] = self._inside.get(owner, 0) + 1

    def _following(self) -> Hashable:
        # The first who has none inside has fewest, and comes early: no more owners than places have any.
        for owner in self._waiting:
            if owner not in self._inside:
                return owner
        return min(self._waiting, key=lambda waits: self._inside[waits])

    def _leave(self, owner: Hashable) -> None:
        self._count -= 1
        self._inside[owner] -= 1
        if not self._inside[owner]:
            del self._inside[owner]
        while self._waiting and self._count < self.limit:
            following = self._following()
            queue = self._waiting[following]
            turn = queue.popleft()
            if queue:
                # To the end, so that those with as much inside take turns.
                self._waiting[following] = self._waiting.pop(following)
            else:
                del self._waiting[following]
            if not turn.done():
                self._enter(following)
                turn.set_result(None)


class Pace:
    """Gives the tokens of a bucket that all share, in turns of the owners.

    Refusing whoever finds it empty would be no share: several who ask without end keep it empty for everybody.

    Args:
        take: takes a token at a moment of ``clock``: 0; else the seconds until there is one.
        clock: seconds that never step.
    """

    def __init__(self, take: Callable[[float], float], clock: Callable[[], float]) -> None:
        self._take = take
        self._clock = clock
        self._turns = Turnstile(1)

    async def wait(self, owner: Hashable, needless: Callable[[], bool] = lambda: False) -> None:
        """Take a token, at once or when there is one and it is the owner's turn.

        Args:
            owner: whose turn it is to be.
            needless: whether none is needed any more.
        """
        async with self._turns.turn(owner):
            while not needless() and (seconds := self._take(self._clock())):  # noqa: ASYNC110 - a bucket tells nobody
                await asyncio.sleep(seconds)


class Places:
    """``limit`` places, held for long: when too few are left, whoever has most gives the oldest to one with fewer."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: dict[asyncio.Timeout, tuple[Hashable, int]] = {}  # oldest first

    def take(self, owner: Hashable, timeout: asyncio.Timeout, places: int = 1) -> bool:
        """Take places.

        Args:
            owner: whose.
            timeout: of whoever waits; it is made to end now when its places are taken away.
            places: how many; more than there are count as all.

        Returns:
            ``False`` when nobody has more than ``owner``.
        """
        places = min(places, self._limit)
        going = self._going(owner, places)
        if going is None:
            return False
        for victim in going:
            del self._taken[victim]
            if not victim.expired():
                victim.reschedule(asyncio.get_running_loop().time())
        self._taken[timeout] = owner, places
        return True

    def _going(self, owner: Hashable, places: int) -> list[asyncio.Timeout] | None:
        """Who makes room for so many; ``None``: nobody need."""
        totals: dict[Hashable, int] = {}
        for other, held in self._taken.values():
            totals[other] = totals.get(other, 0) + held
        free, going = self._limit - sum(totals.values()), list[asyncio.Timeout]()
        while free < places:
            most = max(totals, key=lambda other: totals[other])
            if totals[most] <= totals.get(owner, 0) + places and most != owner:
                return None
            victim = next(one for one, (other, _) in self._taken.items() if other == most and one not in going)
            held = self._taken[victim][1]
            totals[most] -= held
            free += held
            going.append(victim)
        return going

    def leave(self, timeout: asyncio.Timeout) -> None:
        """Give the places back, if they were not taken away."""
        self._taken.pop(timeout, None)
