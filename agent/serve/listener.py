"""HTTP/1.1 for strangers on the same machine: one request per connection, every limit explicit.

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
import contextlib
import enum
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, Final, cast

import msgspec

from agent.core.clock import Clock
from agent.core.errors import TargetError
from agent.serve.fairness import Endpoint, Owners, Table, by_greed, place_of
from agent.serve.intake import Intake
from agent.serve.reading import RequestReader
from agent.wire.http import Request, Response, segments_of


class Drop(enum.Enum):
    """Close the connection without an answer: the one failure that awscrt survives on a credential document."""

    DROP = "drop"


DROP: Final = Drop.DROP
Outcome = Response | Drop
Later = Callable[[], Coroutine[Any, Any, Outcome]]
"""An answer that must be waited for: called once, by the task that waits. (A coroutine made before and not awaited,
because the client left in the same instant, would be a warning.)"""
Handler = Callable[[Request, "Peer"], Outcome | Later]


class Limits(msgspec.Struct, frozen=True):
    """What one client, or all of them, may take.

    Attributes:
        head_bytes: the request line and all fields. EKS tokens are JWTs of 2 kB; SDK user agents reach 1 kB.
        line_bytes: the request line, or one field.
        headers: their number.
        body_bytes: of a request that means a body; on the workers' door only guest attributes (GCE) do.
        head_seconds: from the connection to the whole request. SDKs send it at once; their own patience is 1 s.
        connections: open at once; each holds a file descriptor, so ``LimitNOFILE`` must be well above.
        held: requests that wait for a change at once; a thousand programs that start before the first credential do.
        spared_seconds: a connection younger than this is closed to make room after all others of its owner.
        buffered_bytes: of all requests that are not whole or wait, and of all answers that are not read, together.
        unread_seconds: how long an answer may stay unread.
        half_closed_seconds: how long a request may be held whose client has ended its side. That it only wants to read
            (``nc -N``) and that it is gone look the same, and what is gone must not hold a long poll for an hour.
    """

    head_bytes: int = 16384
    line_bytes: int = 8190
    headers: int = 64
    body_bytes: int = 65536
    head_seconds: float = 5.0
    connections: int = 8192
    held: int = 4096
    spared_seconds: float = 0.5
    unread_seconds: float = 5.0
    half_closed_seconds: float = 3.0
    buffered_bytes: int = 1 << 24


class Access(msgspec.Struct, frozen=True):
    """One request that was answered or dropped. Holds no secret: neither query nor headers but the user agent.

    Attributes:
        status: 0 when the connection was closed without an answer.
        seconds: from the whole request to the answer.
        size_bytes: of the answer's body.
        peer: ``ADDRESS:PORT`` or ``uid=UID pid=PID``; only for refusals, to find who sends them.
    """

    method: str
    path: str
    status: int
    seconds: float
    size_bytes: int
    user_agent: str
    peer: str | None = None


class Peer:
    """Who is at the other end; asked for lazily, since it costs a system call."""

    __slots__ = ("_owner", "_transport")

    def __init__(self, transport: asyncio.Transport, owner: Callable[[], Coroutine[Any, Any, Hashable]]) -> None:
        self._transport = transport
        self._owner = owner

    async def owner(self) -> Hashable:
        """To whose share this request counts: a user id, else an address. Takes a moment: for what is slow anyway."""
        return await self._owner()

    def address(self) -> str:
        """``ADDRESS:PORT`` of a TCP peer; empty for any other."""
        return _address(self._transport)

    def socket(self) -> Any:
        """The socket, for its options only."""
        return self._transport.get_extra_info("socket")


def _address(transport: asyncio.Transport) -> str:
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple) and len(name) >= 2:
        return f"[{name[0]}]:{name[1]}" if ":" in str(name[0]) else f"{name[0]}:{name[1]}"
    return ""


_BAD_REQUEST: Final = Response(400)
_FAULTS: Final = {status: Response(status) for status in (400, 413, 414, 431)}
_TIMEOUT: Final = Response(408)
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SWEEP_SECONDS: Final = 0.25
_MEMO_ENTRIES: Final = 1024
_MEMO_TARGET_CHARACTERS: Final = 256
_LONG_POLL_SECONDS: Final = 3.0
"""What has been held for longer than this is a long poll, and no shutdown waits for it."""
_SURPLUS_BYTES: Final = 1 << 20
"""How much of a body that was refused is read and thrown away, so that the refusal is not lost in a reset."""
_SURPLUS_AT_ONCE: Final = 64
"""Of so many connections at each sweep, a piece each."""
_PIPELINED_BYTES: Final = 65536
"""How much may come behind a request that waits. Its connection is read on, to hear when the client leaves."""
_OWNERS_AGAIN_SECONDS: Final = 0.5
_ASKED_AT_ONCE: Final = 256
"""So many sockets' owners are asked for in one round of the loop, at some 15 microseconds each."""
_LEAVING_AT_ONCE: Final = 256
"""Who goes is judged anew after so many, or after :data:`_LEAVING_SECONDS`."""
_LEAVING_SECONDS: Final = 0.25
_SHED_TO: Final = 0.75
"""The part of the buffered bytes that may stay when there were too many: to count them again for each byte is dear."""
_UCRED: Final = struct.Struct("3i")


class _Target(msgspec.Struct, frozen=True):
    path: str
    query: str
    segments: tuple[str, ...]
    slash: bool
    authority: str | None


def read_target(target: str) -> _Target:
    """Read origin-form and absolute-form (RFC 9112 section 3.2), strictly.

    Raises:
        TargetError: any other form, and every spelling that two readers might read differently.
    """
    if not target.isascii() or not target.isprintable() or " " in target or "#" in target:
        raise TargetError("expected a target in printable ascii without a fragment")
    authority = None
    if not target.startswith("/"):
        scheme, separator, rest = target.partition("://")
        if not separator or scheme.lower() != "http":
            raise TargetError("expected a target in origin-form or absolute-form")
        authority, slash, tail = rest.partition("/")
        if "?" in authority:
            # ``http://host?query``: an empty path (RFC 9110 section 4.2.3 makes it /).
            authority, _, query = rest.partition("?")
            slash, tail = "/", "?" + query
        if not authority or "@" in authority:
            raise TargetError("expected an authority without user information")
        target = "/" + tail if slash else "/"
    path, _, query = target.partition("?")
    return _Target(path, query, segments_of(path), path.endswith("/"), authority)


class Listener:
    """Everything the connections of one door share.

    Args:
        handler: decides; synchronous wherever nothing must be waited for.
        broken: what to answer when the handler itself failed; the one border where any exception is caught.
        clock: for the ``Date`` header.
        access: told of every request.
        bodies: whether a request with this method and raw target means a body; without it every one does.
        owners: tells whose connections are whose when room becomes scarce; without it the address does.
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
    ) -> None:
        self.handler = handler
        self.broken = broken
        self.access = access
        self.limits = limits or Limits()
        self.bodies = bodies
        self._clock = clock
        self._owners = owners
        self._intake: Intake | None = None
        # All mutable state. Dicts as ordered sets, oldest first, with the time of entry.
        self._open: dict[_Connection, float] = {}
        self._reading: dict[_Connection, float] = {}
        self._held: dict[_Connection, float] = {}
        self._closing: dict[_Connection, float] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._swept = 0.0
        self._emptied: asyncio.Event | None = None
        self._buffered = 0
        self._turn = 0  # how often the event loop went round while room was scarce
        self._turns_until = -1
        self._turning = False
        self._resolving: asyncio.Task[None] | None = None
        self._resolved_at = float("-inf")
        self._leaving: Iterator[_Connection] = iter(())
        self._leaving_until = float("-inf")
        self._targets: dict[str, _Target] = {}
        self._date_second = -1
        self._date_line = b""

    def protocol(self) -> asyncio.Protocol:
        """The factory for ``loop.create_server`` and ``loop.create_unix_server``."""
        return _Connection(self)

    def watch(self, sockets: Sequence[socket.socket]) -> None:
        """Take connections from these, which the event loop serves, by turns of their owners when many wait."""
        self._intake = Intake(
            sockets,
            factory=partial(_Connection, self),
            owners=self._owners,
            room=lambda: self.limits.connections - len(self._open),
        )

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
        """What all connections together keep of requests and of answers."""
        return self._buffered

    async def close(self, grace_seconds: float = 2.0) -> None:
        """Let what is under way end, for so long, then end it.

        The caller has closed the listening sockets (or keeps them for the next process); a connection that was accepted
        and has not sent its request yet still gets its answer.
        """
        if self._intake is not None:
            await self._intake.finish()
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

    def target(self, raw: str) -> _Target:
        """Read a target, or remember it: workers ask for the same dozen over and over."""
        known = self._targets.get(raw)
        if known is None:
            known = read_target(raw)
            if len(raw) <= _MEMO_TARGET_CHARACTERS:
                if len(self._targets) >= _MEMO_ENTRIES:
                    self._targets.clear()
                self._targets[raw] = known
        return known

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

    def opened(self, connection: _Connection) -> bool:
        """Take it in; ``False`` when there is no room and nobody to make any."""
        now = time.monotonic()
        count = len(self._open)
        if self._intake is not None:
            self._intake.look()
        if 2 * count >= self.limits.connections:
            if connection.owner is None:
                connection.ask(self._owners)
            self._press(now)
            if count >= self.limits.connections and not self._make_room(now):
                return False
        connection.turn = self._turn
        self._open[connection] = now
        self._reading[connection] = now
        if self._sweeper is None:
            self._swept = now
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)
        return True

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
            # Again for those that came meanwhile: nobody else may come to ask for it.
            while unknown := [connection for connection in self._open if connection.owner is None]:
                table = None if owners.immediate else await owners.table()
                for number, connection in enumerate(unknown, start=1):
                    connection.belong(owners, table)
                    if owners.immediate and not number % _ASKED_AT_ONCE:
                        await asyncio.sleep(0)
                self._leaving_until = float("-inf")  # who goes is judged with what is known now
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

    async def owner_of(self, connection: _Connection) -> Hashable:
        """To whose share it counts; asks the kernel if that is not known yet."""
        owners = self._owners
        if connection.owner is None:
            table = await owners.table() if owners is not None and not owners.immediate else None
            connection.belong(owners, table)
        return connection.owner

    def _make_room(self, now: float) -> bool:
        """Close one connection; ``False`` when there is none that may go."""
        for _ in range(2):
            if now < self._leaving_until:
                for victim in self._leaving:
                    if victim in self._open and not victim.is_fresh(self._turn):
                        victim.abort()
                        self.lost(victim)
                        return True
            self._leaving = self._in_order_of_going(now)
            self._leaving_until = now + _LEAVING_SECONDS
        return False

    def _in_order_of_going(self, now: float) -> Iterator[_Connection]:
        totals: dict[Hashable, int] = {}
        queues: dict[Hashable, deque[tuple[int, _Connection]]] = {}
        for connection in self._open:
            owner = connection.share()
            totals[owner] = totals.get(owner, 0) + 1
        for spared in (False, True):
            for pool in (self._closing, self._reading, self._held):
                for connection, since in pool.items():
                    if (now - since < self.limits.spared_seconds) is spared and not connection.is_fresh(self._turn):
                        queues.setdefault(connection.share(), deque()).append((1, connection))
        order = by_greed(totals, queues)
        return iter([victim for victim, _ in zip(order, range(_LEAVING_AT_ONCE), strict=False)])

    def charge(self, connection: _Connection, size_bytes: int) -> None:
        """It keeps so many bytes now."""
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
        queues: dict[Hashable, deque[tuple[int, _Connection]]] = {}
        for connection in sorted(self._open, key=lambda c: c.kept_bytes, reverse=True):
            if connection.kept_bytes:
                owner = connection.share()
                totals[owner] = totals.get(owner, 0) + connection.kept_bytes
                queues.setdefault(owner, deque()).append((connection.kept_bytes, connection))
        for victim in by_greed(totals, queues):
            if self._buffered <= down_to:
                break
            victim.abort()
            self.lost(victim)

    def complete(self, connection: _Connection) -> None:
        """Its request is whole."""
        self._reading.pop(connection, None)

    def hold(self, connection: _Connection) -> None:
        """Its request waits for something."""
        now = time.monotonic()
        if 2 * len(self._held) >= self.limits.held:
            self._press(now)
            if len(self._held) >= self.limits.held:
                self._greediest_of_held().give_up()
        self._held[connection] = now
        self.charge(connection, connection.received_bytes)

    def _greediest_of_held(self) -> _Connection:
        counts: dict[Hashable, int] = {}
        for held in self._held:
            owner = held.share()
            counts[owner] = counts.get(owner, 0) + 1
        most = max(counts, key=lambda owner: counts[owner])
        return next(held for held in self._held if held.share() == most)

    def release(self, connection: _Connection) -> None:
        """It waits no longer."""
        self._held.pop(connection, None)

    def ending(self, connection: _Connection) -> None:
        """Its answer is written; what remains is that the client takes it."""
        self._reading.pop(connection, None)
        self._closing[connection] = time.monotonic()

    def lost(self, connection: _Connection) -> None:
        """It is gone."""
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
            # sockets. Read first, judge in the next round.
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
        # Held requests end by their own deadlines. With nothing open there is nothing to wake for.
        self._sweeper = (
            asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)
            if self._reading or self._closing
            else None
        )

    @staticmethod
    def _until(pool: dict[_Connection, float], limit: float) -> list[tuple[_Connection, float]]:
        found = []
        for connection, since in pool.items():
            if since > limit:
                break
            found.append((connection, since))
        return found


class _State(enum.Enum):
    READING = enum.auto()
    ANSWERING = enum.auto()
    ENDED = enum.auto()


class _Connection(asyncio.Protocol):
    __slots__ = (
        "_listener",
        "_method",
        "_path",
        "_paused",
        "_reader",
        "_started",
        "_state",
        "_task",
        "_transport",
        "_user_agent",
        "kept_bytes",
        "owner",
        "received_bytes",
        "turn",
    )

    def __init__(self, listener: Listener, owner: Hashable = None) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._reader: RequestReader | None = None
        self._state = _State.READING
        self.received_bytes = 0
        self.kept_bytes = 0  # the listener's account of it
        self.owner = owner  # unknown until somebody must know
        self.turn = 0
        self._paused = False  # whether we do not look at what it sends
        self._task: asyncio.Task[Outcome] | None = None
        self._method = ""
        self._path = ""
        self._user_agent = ""
        self._started = 0.0

    # -- asyncio's calls ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # TCP_NODELAY: both event loops set it on every TCP connection; and each answer is one write anyway.
        if not self._listener.opened(self):
            self._state = _State.ENDED
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._listener.lost(self)
        self._state = _State.ENDED
        if self._task is not None:
            self._task.cancel()  # a long poll whose client has left waits for nothing
        if self._reader is not None:
            self._reader.release()
            self._reader = None
        self._transport = None

    def eof_received(self) -> bool:
        # Half-closed after a whole request is allowed and keeps the way back open, for a while; before, it is an end.
        if self._state is not _State.ANSWERING:
            return False
        asyncio.get_running_loop().call_later(self._listener.limits.half_closed_seconds, self._half_closed)
        return True

    def _half_closed(self) -> None:
        if self._state is _State.ANSWERING:
            self.give_up()

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        if self._state is not _State.READING:
            # Pipelined requests, or the rest of a body that was refused: read, so that closing does not reset the
            # connection and lose the answer, and thrown away. Not as fast as it comes: a sender that never ends would
            # have the loop for itself.
            if self.received_bytes > (_SURPLUS_BYTES if self._state is _State.ENDED else _PIPELINED_BYTES):
                self.abort()
            elif self._state is _State.ENDED:
                self._pause()
            return
        reader = self._reader
        if reader is None:
            limits = self._listener.limits
            reader = self._reader = RequestReader(
                line_bytes=limits.line_bytes,
                head_bytes=limits.head_bytes,
                headers=limits.headers,
                body_bytes=limits.body_bytes,
                bodies=self._listener.bodies,
            )
        head_was_known = reader.head
        reader.feed(data)
        if reader.fault is not None:
            self._refuse(_FAULTS[reader.fault.value])
        elif reader.complete:
            self._dispatch(reader)
        elif reader.head and not head_was_known and reader.headers.get("Expect", "").lower() == "100-continue":
            assert self._transport is not None
            self._transport.write(_CONTINUE)
        if self._state is _State.READING:
            self._listener.charge(self, self.received_bytes)

    # -- the answer --------------------------------------------------------------------------------------------------

    def _dispatch(self, reader: RequestReader) -> None:
        listener = self._listener
        self._started = time.perf_counter()
        self._state = _State.ANSWERING
        self._reader = None
        self._method = reader.method
        listener.complete(self)
        headers = reader.headers
        self._user_agent = headers.get("User-Agent", "")
        try:
            target = listener.target(reader.target)
        except TargetError:
            self._send(_BAD_REQUEST)
            return
        self._path = target.path
        assert self._transport is not None
        peer = Peer(self._transport, partial(listener.owner_of, self))
        request = Request(
            reader.method,
            target.path,
            target.query,
            target.segments,
            target.slash,
            headers,
            headers.get("Host", "") if target.authority is None else target.authority,
            reader.body,
            peer,
        )
        try:
            outcome = listener.handler(request, peer)
        except Exception as error:  # noqa: BLE001 - the gate's border: nothing that a request does may end the daemon
            outcome = listener.broken(request, error)
        if isinstance(outcome, Response):
            self._send(outcome)
        elif outcome is DROP:
            self._drop()
        else:
            listener.hold(self)
            self._task = asyncio.get_running_loop().create_task(outcome())
            self._task.add_done_callback(partial(self._settled, request))

    def _settled(self, request: Request, task: asyncio.Task[Outcome]) -> None:
        self._listener.release(self)
        if task.cancelled():
            return
        self._task = None
        error = task.exception()
        if error is None:
            outcome = task.result()
        elif isinstance(error, Exception):
            outcome = self._listener.broken(request, error)  # the gate's border, for what had to be waited for
        else:
            raise error
        if isinstance(outcome, Response):
            self._send(outcome)
        else:
            self._drop()

    def _send(self, response: Response) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._report(response.status, len(response.body))
        # One piece, one write: headers and body in two cost 40 ms (Nagle against delayed acknowledgement).
        if self._method == "HEAD":
            transport.write(response.head + self._listener.date_line() + b"\r\n")
        else:
            transport.write(response.head + self._listener.date_line() + b"\r\n" + response.body)
        self._listener.ending(self)
        self._state = _State.ENDED
        transport.close()
        unread = transport.get_write_buffer_size()
        if unread or self.kept_bytes:
            self._listener.charge(self, unread)

    def _refuse(self, response: Response) -> None:
        """Answer a request that will not be read to its end."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._started = time.perf_counter()
        if self._reader is not None:
            self._method = self._reader.method
            self._reader.release()
            self._reader = None
        if self.kept_bytes:
            self._listener.charge(self, 0)
        self._report(response.status, 0)
        transport.write(response.head + self._listener.date_line() + b"\r\n")
        self._listener.ending(self)
        self._state = _State.ENDED
        if transport.can_write_eof():
            # Not closed yet: closing with unread bytes resets the connection, and the client would not see why.
            transport.write_eof()
            self._pause()
        else:
            transport.close()

    def _drop(self) -> None:
        self._report(0, 0)
        self.abort()

    def _report(self, status: int, size_bytes: int) -> None:
        if self._listener.access is not None:
            peer = _address(self._transport) if self._transport is not None and not 0 < status < 400 else None
            self._listener.access(
                Access(
                    self._method,
                    self._path,
                    status,
                    time.perf_counter() - self._started,
                    size_bytes,
                    self._user_agent,
                    peer,
                )
            )

    # -- the listener's calls ----------------------------------------------------------------------------------------

    def is_fresh(self, turn: int) -> bool:
        """Whether the loop has not had a chance yet to read what it may have sent with its first breath."""
        return self._state is _State.READING and not self.received_bytes and turn - self.turn < 2

    def share(self) -> Hashable:
        """To whose share it counts by what is known now."""
        return self._place() if self.owner is None else self.owner

    def ask(self, owners: Owners | None) -> None:
        """Learn its owner, if that can be known at once."""
        ends = self._ends()
        if owners is not None and ends is not None:
            with contextlib.suppress(ConnectionError):  # it has left; the event loop will say so
                self.owner = owners.now(*ends)

    def belong(self, owners: Owners | None, table: Table | None) -> None:
        """Learn its owner, from the table if one was read; who is not found is known by the address."""
        if self._transport is None or self.owner is not None:
            return
        ends = self._ends()
        if owners is not None and table is not None and ends is not None:
            self.owner = owners.find(table, *ends)
        else:
            self.ask(owners)
        if self.owner is None:
            self.owner = self._place()

    def _ends(self) -> tuple[Endpoint, Endpoint] | None:
        if self._transport is None:
            return None
        peer, local = self._transport.get_extra_info("peername"), self._transport.get_extra_info("sockname")
        if not isinstance(peer, tuple) or not isinstance(local, tuple):
            return None
        return (peer[0], peer[1]), (local[0], local[1])

    def _place(self) -> Hashable:
        transport = self._transport
        if transport is None:
            return ""
        name = transport.get_extra_info("peername")
        if not isinstance(name, tuple):
            # A unix socket: the kernel tells at once (unix(7), SO_PEERCRED).
            sock = transport.get_extra_info("socket")
            try:
                raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            except (OSError, AttributeError):
                return ""
            self.owner = int(_UCRED.unpack(raw)[1])
            return self.owner
        return place_of(name)

    def read_on(self) -> bool:
        """Take one more piece of what was refused; ``False`` when it is not that kind of connection."""
        if self._transport is None or not self._paused:
            return False
        self._paused = False
        self._transport.resume_reading()
        return True

    def _pause(self) -> None:
        if self._transport is not None and not self._paused and not self._transport.is_closing():
            self._transport.pause_reading()
            self._paused = True

    def too_slow(self) -> None:
        """The head deadline has passed. Something was sent: say 408; nothing was: just close (RFC 9110, 15.5.9)."""
        if self.received_bytes:
            self._refuse(_TIMEOUT)
        else:
            self.abort()
            self._listener.lost(self)

    def give_up(self) -> None:
        """Stop waiting on behalf of this client; it will ask again."""
        self._listener.release(self)
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._drop()

    def abort(self) -> None:
        """End it now."""
        self._state = _State.ENDED
        if self._transport is not None:
            self._transport.abort()
