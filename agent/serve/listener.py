"""HTTP/1.1 for strangers on the same machine: one request per connection, every limit explicit.

Long because every limit that connections share is weighed against the others here.

A library reads the bytes (see :mod:`agent.serve.reading`); this file owns what a library cannot know: how long, how
many, and what to do when a request is not whole. It knows no dialect: what a request means is the handler's business.

Why not a web framework: each answer is one ``write`` of bytes that were rendered before, and each connection ends with
it. ``Connection: close`` on every answer is what the real EC2 service does and the only framing under which no SDK
fails its first try after a restart; pipelined requests after the first are therefore dropped, as RFC 9112 section 9.6
allows.

Limits and the attack behind each:

* head deadline: slow senders (slowloris) and half-open connections; swept by age, so a connection costs no timer;
* head and body caps, and a body only where one is meant: memory, and the parser's time;
* all that is buffered, for all connections together: memory again. Above it the largest go, of whoever has most;
* connections: at the cap somebody makes room, so thousands of idle connections lock nobody out. It is the owner with
  most connections (see :mod:`agent.serve.fairness`) who gives one up: one whose answer is written, else the oldest that
  has not sent a whole request, else the oldest that waits. One that has just arrived is never the victim, since its
  request may be in the socket already;
* held requests (long polls): the same, oldest first;
* an answer that is not read is given up after a while.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Final

from agent.core.clock import Clock
from agent.core.served import Given, Reason
from agent.serve.accepted import answer_at_once
from agent.serve.audit import Ends, Ledger, agent_in
from agent.serve.connection import Connection
from agent.serve.fairness import Owners, by_greed, ends_of
from agent.serve.handling import Access, Handler, Later, Outcome, Peer
from agent.serve.intake import Intake
from agent.serve.readers import Readers
from agent.serve.remembered import Memory
from agent.serve.sending import Answer, Sender
from agent.serve.stream import Stream
from agent.serve.target import LONGEST_REMEMBERED, Target, read_target, with_query
from agent.snapshot import Limits
from agent.wire.http import Request

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SWEEP_SECONDS: Final = 0.25
_MEMO_ENTRIES: Final = 1024
_LONG_POLL_SECONDS: Final = 3.0
"""A request held for longer than this is a long poll, and no shutdown waits for it."""
_SURPLUS_AT_ONCE: Final = 64
"""So many connections are read on at each sweep, a piece each."""
_OWNERS_AGAIN_SECONDS: Final = 0.5
_ASKED_AT_ONCE: Final = 256
"""So many sockets' owners are asked for in one round of the loop, at some 15 microseconds each."""
_LEAVING_AT_ONCE: Final = 256
"""Who goes is decided anew after so many, after one of :data:`_LEAVING_OF`, or after :data:`_LEAVING_SECONDS`."""
_LEAVING_OF: Final = 8
_LEAVING_SECONDS: Final = 0.25
_SHED_TO: Final = 0.75
"""The part of the buffered bytes that may stay when there were too many: counting them for each byte costs much."""


class Listener:
    """Everything the connections of one listener share.

    Long because every limit that connections share is weighed against the others here.

    Args:
        handler: decides; synchronous wherever nothing must be waited for.
        broken: what to answer when the handler itself failed; the one border where any exception is caught.
        clock: for the ``Date`` header.
        limits: how long, how many, how much; without them the usual ones.
        access: told of every request.
        bodies: whether a request with this method and raw target means a body; without it every one does.
        owners: names the owner of a connection when places become scarce; without it the address does.
        memory: what was answered a moment ago; without it every request is read.
        ledger: counts what is given to whom, and why others are refused; without it nothing of that is counted.
        whose: the user to whom a user id counts that a unix socket tells.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        broken: Callable[[Request, Exception], Outcome],
        clock: Clock,
        limits: Limits | None = None,
        access: Callable[[Access], None] | None = None,
        bodies: Callable[[str, str], bool] | None = None,
        owners: Owners | None = None,
        memory: Memory | None = None,
        ledger: Ledger | None = None,
        whose: Callable[[int], Hashable] = int,
    ) -> None:
        self.handler = handler
        self.broken = broken
        self.access = access
        self.limits = limits or Limits()
        self.bodies = bodies
        self.memory = memory
        self.ledger = ledger
        self.whose = whose
        self.sender = Sender(self._deliver)
        self._clock = clock
        self._owners = owners
        self._intake: Intake | None = None
        self._readers: Readers | None = None
        # All mutable state. Dicts as ordered sets, oldest first, with the time of entry.
        self._open: dict[Connection, float] = {}
        self._reading: dict[Connection, float] = {}
        self._held: dict[Connection, float] = {}
        self._closing: dict[Connection, float] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._swept = 0.0
        self._emptied: asyncio.Event | None = None
        self._buffered = 0
        self._turn = 0  # how often the event loop went round while room was scarce
        self._turns_until = -1
        self._turning = False
        self._resolving: asyncio.Task[None] | None = None
        self._resolved_at = float("-inf")
        self._leaving: Iterator[Connection] = iter(())
        self._had: dict[Hashable, int] = {}  # how many each owner had when that was decided
        self._leaving_until = float("-inf")
        self._targets: dict[str, Target] = {}  # by their paths, without a query
        self._date_second = -1
        self._date_line = b""

    def protocol(self) -> asyncio.Protocol:
        """The factory for ``loop.create_server``."""
        return Connection(self)

    def listen(self, sockets: Sequence[socket.socket]) -> Intake:
        """Take connections from these listening sockets, by turns of their owners when many wait."""
        self._readers = self._readers or Readers(asyncio.get_running_loop(), together=self.sender)
        self._intake = Intake(
            sockets,
            readers=self._readers,
            begin=self._begin,
            recall=self._recalled,
            together=self.sender,
            owners=self._owners,
            room=lambda: self.limits.connections - len(self._open),
            evicted=self.count_evicted,
        )
        self._intake.begin()
        return self._intake

    @property
    def readers(self) -> Readers:
        """What tells when a connection can be read. There is one as soon as :meth:`listen` was called."""
        assert self._readers is not None
        return self._readers

    def recall(self, data: bytes, ends: Ends) -> bytes | None:
        """The answer to bytes that were answered a moment ago, which counts as one more request.

        Args:
            data: all that has come.
            ends: of the connection.
        """
        found = None if self.memory is None else self.memory.answer(data)
        if found is None:
            return None
        self.take_note(found[1].note, ends, lambda: agent_in(data))
        if self.access is not None:
            self.access(found[1])
        return found[0]

    def take_note(self, note: Given | Reason | None, ends: Ends, agent: Callable[[], str]) -> None:
        """Count what is about to be sent.

        Args:
            note: of the answer.
            ends: of the connection.
            agent: what the client calls itself.
        """
        if note is None or self.ledger is None:
            return
        if isinstance(note, Given):
            self.ledger.serve(note, ends, agent)
        else:
            self.ledger.refuse(note)

    def _recalled(
        self, sock: socket.SocketType, peer: object, owner: Hashable, data: bytes, *, peeked: bool = False
    ) -> bool:
        """Answer and end an accepted connection whose request is remembered; no object is made for it."""
        answer = self.recall(data, lambda: ends_of(sock, peer))
        if answer is None:
            return False
        if peeked:
            try:
                sock.recv(len(data), socket.MSG_DONTWAIT)  # to close with bytes unread would reset the connection
            except OSError:
                sock.close()  # the client has left
                return True
        self.sender.send(Answer(sock, peer, owner, answer))
        return True

    def _deliver(self, answer: Answer) -> None:
        """Send an answer and end the connection, for which an object is made only if the answer does not fit."""
        sock, peer, owner, data = answer
        try:
            sent = sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(data)  # the client has left
        if sent == len(data):
            sock.close()
        else:
            connection = Connection(self, owner)
            Stream(sock, peer, self.readers, connection).begin(None)
            self.complete(connection)
            connection.finish(data[sent:])

    def _begin(
        self, sock: socket.SocketType, peer: object, owner: Hashable, data: bytes | None, *, waited: bool = False
    ) -> bool:
        """Serve an accepted connection that has sent ``data``, which is not remembered; return whether it is over."""
        before = len(self._open)
        if not data or not answer_at_once(self, sock, peer, owner, data):
            connection = Connection(self, owner, looked=data is not None, waited=waited)
            Stream(sock, peer, self.readers, connection).begin(data)
        return len(self._open) <= before

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open) + (0 if self._intake is None else self._intake.connections)

    @property
    def held(self) -> int:
        """How many requests are waiting for something."""
        return len(self._held)

    @property
    def buffered_bytes(self) -> int:
        """The bytes of requests and answers that all connections together keep."""
        return self._buffered

    async def close(self, grace_seconds: float = 2.0) -> None:
        """Give what is under way ``grace_seconds`` to end, then end it.

        The caller has closed the listening sockets (or keeps them for the next process); a connection that was accepted
        and has not sent its request yet still gets its answer.
        """
        if self._intake is not None:
            self._intake.finish()
        now = time.monotonic()
        for connection in [c for c, since in self._held.items() if now - since > _LONG_POLL_SECONDS]:
            connection.give_up()
        if self._open:
            self._emptied = asyncio.Event()
            try:
                await asyncio.wait_for(self._emptied.wait(), grace_seconds)
            except TimeoutError:
                for connection in list(self._open):
                    connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        if self._resolving is not None:
            self._resolving.cancel()
        if self._owners is not None:
            self._owners.close()
        if self._readers is not None:
            self._readers.close()
            self._readers = None

    def decide(self, request: Request, peer: Peer) -> Outcome | Later:
        """Have the handler answer. The listener's border: nothing that a request does may end the daemon."""
        try:
            return self.handler(request, peer)
        except Exception as error:  # noqa: BLE001 - see above
            return self.broken(request, error)

    def target(self, raw: str) -> Target:
        """Read a target, or recall it: workers ask for the same dozen over and over.

        Raises:
            TargetError: it is none.
        """
        path, _, query = raw.partition("?")
        known = self._targets.get(path)
        if known is None:
            known = read_target(raw)
            if known.authority is None and len(path) <= LONGEST_REMEMBERED:
                if len(self._targets) >= _MEMO_ENTRIES:
                    self._targets.clear()
                self._targets[path] = known if not known.query else read_target(path)
            return known
        return known if not query else with_query(known, query)

    def date_line(self) -> bytes:
        """The ``Date`` header (RFC 9110 section 6.6.1), made once a second."""
        second = int(time.monotonic())
        if second != self._date_second:
            self._date_second = second
            now = self._clock.now()
            # By hand: strftime speaks the locale's language, and email.utils takes 2 MB to do the same.
            day = f"{_DAYS[now.weekday()]}, {now.day:02} {_MONTHS[now.month - 1]}"
            self._date_line = f"Date: {day} {now:%Y %H:%M:%S} GMT\r\n".encode("ascii")
        return self._date_line

    # -- the life of a connection ------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> bool:
        """Take ``connection`` in; ``False`` when there is no room and nobody to make any."""
        now = time.monotonic()
        count = len(self._open)
        if 2 * count >= self.limits.connections:
            if connection.owner is None:
                connection.ask(self._owners)
            self._press(now)
            if count >= self.limits.connections and not self._make_room(now, connection):
                self.count_evicted()
                return False
        if not connection.waited:
            connection.turn = self._turn
        self._open[connection] = now
        self._reading[connection] = now
        self._sweep_soon(now)
        return True

    def _sweep_soon(self, now: float) -> None:
        if self._sweeper is None:
            self._swept = now
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    # -- when room is scarce -----------------------------------------------------------------------------------------

    def _press(self, now: float) -> None:
        """Something is half used up: learn whose the connections are, and count the rounds of the loop."""
        self._turns_until = self._turn + 3
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._went_round)
        if self._owners is not None and self._resolving is None and now - self._resolved_at > _OWNERS_AGAIN_SECONDS:
            self._resolving = asyncio.get_running_loop().create_task(self._resolve(self._owners), name="owners")

    def _went_round(self) -> None:
        self._turn += 1
        self._turning = self._turn < self._turns_until
        if self._turning:
            asyncio.get_running_loop().call_soon(self._went_round)

    async def _resolve(self, owners: Owners) -> None:
        try:
            # Again for those that came meanwhile: perhaps nothing else asks about them.
            while unknown := [connection for connection in self._open if connection.owner is None]:
                table = None if owners.immediate else await owners.table()
                for number, connection in enumerate(unknown, start=1):
                    connection.belong(owners, table)
                    if owners.immediate and not number % _ASKED_AT_ONCE:
                        await asyncio.sleep(0)
                self._leaving_until = float("-inf")  # who goes is decided with what is known now
                await asyncio.sleep(_OWNERS_AGAIN_SECONDS)
                if not self._is_scarce():
                    break
        finally:
            self._resolved_at = time.monotonic()
            self._resolving = None

    def _is_scarce(self) -> bool:
        limits = self.limits
        return (
            2 * len(self._open) >= limits.connections
            or 2 * len(self._held) >= limits.held
            or 2 * self._buffered > limits.buffered_bytes
        )

    async def owner_of(self, connection: Connection) -> Hashable:
        """To whose share it counts; asks the kernel if that is not known yet."""
        owners = self._owners
        if connection.owner is None:
            table = await owners.table() if owners is not None and not owners.immediate else None
            connection.belong(owners, table)
        return connection.share()

    def _make_room(self, now: float, newcomer: Connection) -> bool:
        """Close one connection for another; ``False`` when there is none that may go, of an owner with as many."""
        for _ in range(2):
            if now < self._leaving_until:
                for victim in self._leaving:
                    if victim in self._open and not victim.is_fresh(self._turn):
                        had = self._had.get(newcomer.share(), 0)
                        if newcomer.owner is not None and self._had.get(victim.share(), had) < had:
                            return False
                        self._evict(victim)
                        return True
            self._leaving = self._in_order_of_going(now)
            self._leaving_until = now + _LEAVING_SECONDS
        return False

    def _in_order_of_going(self, now: float) -> Iterator[Connection]:
        totals: dict[Hashable, int] = {}
        queues: dict[Hashable, deque[tuple[int, Connection]]] = {}
        for connection in self._open:
            owner = connection.share()
            totals[owner] = totals.get(owner, 0) + 1
        for spared in (False, True):
            for pool in (self._closing, self._reading, self._held):
                for connection, since in pool.items():
                    if (now - since < self.limits.spared_seconds) is spared and not connection.is_fresh(self._turn):
                        queues.setdefault(connection.share(), deque()).append((1, connection))
        self._had = totals
        # Of a few, only the first: whoever has most opens others meanwhile, and the last are those of who has least.
        most = max(1, min(_LEAVING_AT_ONCE, len(self._open) // _LEAVING_OF))
        return iter([victim for victim, _ in zip(by_greed(totals, queues), range(most), strict=False)])

    def charge(self, connection: Connection, size_bytes: int) -> None:
        """Take note that ``connection`` keeps ``size_bytes`` now, and no more what it kept before."""
        self._buffered += size_bytes - connection.kept_bytes
        connection.kept_bytes = size_bytes
        limit = self.limits.buffered_bytes
        if 2 * self._buffered > limit:
            self._press(time.monotonic())
            if self._buffered > limit:
                self._shed(int(limit * _SHED_TO))

    def _shed(self, down_to: int) -> None:
        """Too much is buffered: the largest go, of whoever has most."""
        totals: dict[Hashable, int] = {}
        queues: dict[Hashable, deque[tuple[int, Connection]]] = {}
        for connection in sorted(self._open, key=lambda c: c.kept_bytes, reverse=True):
            if connection.kept_bytes:
                owner = connection.share()
                totals[owner] = totals.get(owner, 0) + connection.kept_bytes
                queues.setdefault(owner, deque()).append((connection.kept_bytes, connection))
        for victim in by_greed(totals, queues):
            if self._buffered <= down_to:
                break
            self._evict(victim)

    def _evict(self, victim: Connection) -> None:
        victim.abort()
        self.lost(victim)
        self.count_evicted()

    def count_evicted(self) -> None:
        """A connection ended because there was no room for it."""
        if self.ledger is not None:
            self.ledger.refuse("room")

    def complete(self, connection: Connection) -> None:
        """Take note that the request of ``connection`` is whole."""
        self._reading.pop(connection, None)

    def hold(self, connection: Connection) -> None:
        """Take note that the request of ``connection`` waits for something."""
        now = time.monotonic()
        if 2 * len(self._held) >= self.limits.held:
            self._press(now)
            if len(self._held) >= self.limits.held:
                self._greediest_of_held().give_up()
                self.count_evicted()
        self._held[connection] = now
        self.charge(connection, connection.received_bytes)

    def _greediest_of_held(self) -> Connection:
        counts: dict[Hashable, int] = {}
        for held in self._held:
            owner = held.share()
            counts[owner] = counts.get(owner, 0) + 1
        most = max(counts, key=lambda owner: counts[owner])
        return next(held for held in self._held if held.share() == most)

    def release(self, connection: Connection) -> None:
        """Take note that the request of ``connection`` waits no longer."""
        self._held.pop(connection, None)

    def ending(self, connection: Connection) -> None:
        """Take note that the answer is written; what remains is that the client takes it."""
        self._reading.pop(connection, None)
        now = self._closing[connection] = time.monotonic()
        self._sweep_soon(now)  # it ended if all others were held

    def lost(self, connection: Connection) -> None:
        """Take note that ``connection`` is gone."""
        self._open.pop(connection, None)
        self._reading.pop(connection, None)
        self._held.pop(connection, None)
        self._closing.pop(connection, None)
        self._buffered -= connection.kept_bytes
        connection.kept_bytes = 0
        if not self._open and self._emptied is not None:
            self._emptied.set()

    def _sweep(self) -> None:
        now = time.monotonic()
        if now - self._swept > 4 * _SWEEP_SECONDS:
            # This process stood still (a paused machine, a starved one): what clients sent meanwhile lies unread in the
            # sockets. Read first, decide in the next round.
            self._swept = now
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)
            return
        self._swept = now
        late = [c for c, _ in self._until(self._reading, now - self.limits.head_seconds)]
        for connection in late:
            connection.too_slow()
        unread = [c for c, _ in self._until(self._closing, now - self.limits.unread_seconds)]
        for connection in unread:
            connection.abort()
        reading_on = 0
        for connection in list(self._closing):
            reading_on += connection.read_on()
            if reading_on >= _SURPLUS_AT_ONCE:
                break
        # Held requests end by their own deadlines. Without an open connection there is no reason to wake.
        self._sweeper = (
            asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)
            if self._reading or self._closing
            else None
        )

    @staticmethod
    def _until(pool: dict[Connection, float], limit: float) -> list[tuple[Connection, float]]:
        found = []
        for connection, since in pool.items():
            if since > limit:
                break
            found.append((connection, since))
        return found
