"""One connection: one request is read, handed on and answered, and then it ends.

It never waits for a client for longer than a deadline, keeps no more than a bound, and reads what follows a
refused request only so that the refusal is not lost in a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import time
from collections.abc import Hashable
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from multidict import CIMultiDict

from agent.core.errors import TargetError
from agent.core.served import Given, Reason
from agent.serve.fairness import Endpoint, Owners, Table, place_of
from agent.serve.handling import DROP, Access, Later, Outcome, Peer, address_of, noted, shown
from agent.serve.plain import read_plain
from agent.serve.reading import RequestReader
from agent.serve.target import request_of
from agent.wire.http import Request, Response

if TYPE_CHECKING:
    from agent.serve.listener import Listener


_BAD_REQUEST: Final = Response(400, note="malformed")
_FAULTS: Final = {400: _BAD_REQUEST, **{status: Response(status, note="too-large") for status in (413, 414, 431)}}
_TIMEOUT: Final = Response(408, note="too-slow")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_SURPLUS_BYTES: Final = 1 << 20
"""How much of a body that was refused is read and thrown away, so that the refusal is not lost in a reset."""
_PIPELINED_BYTES: Final = 65536
"""How much may follow a request that waits. Its connection is still read, to notice when the client leaves."""
_UCRED: Final = struct.Struct("3i")


class State(enum.Enum):
    """Where a connection stands."""

    READING = enum.auto()
    ANSWERING = enum.auto()
    ENDED = enum.auto()


class Connection(asyncio.Protocol):
    """See the module.

    Long because one connection is one state machine: what each of its calls may meet is read in one place.

    Args:
        listener: what all connections of one listener share.
        owner: whose it is, where that is known already.
        looked: whether the memory has been asked about its first bytes already, in vain.
        waited: whether it had a chance to be read before, and had sent nothing.
    """

    __slots__ = (
        "_listener",
        "_looked",
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
        "waited",
    )

    def __init__(
        self, listener: Listener, owner: Hashable = None, *, looked: bool = False, waited: bool = False
    ) -> None:
        self._listener = listener
        self._looked = looked
        self._transport: asyncio.Transport | None = None
        self._reader: RequestReader | None = None
        self._state = State.READING
        self.received_bytes = 0
        self.kept_bytes = 0  # as the listener counts them
        self.owner = owner  # unknown until it matters
        self.waited = waited
        self.turn = -2  # long ago
        self._paused = False  # whether we have stopped reading it
        self._task: asyncio.Task[Outcome] | None = None
        self._method = self._path = self._user_agent = ""
        self._started = 0.0

    # -- asyncio's calls ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        # TCP_NODELAY: both event loops set it on every TCP connection; and each answer is one write anyway.
        if not self._listener.opened(self):
            self._state = State.ENDED
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """See :class:`asyncio.Protocol`."""
        self._listener.lost(self)
        self._state = State.ENDED
        if self._task is not None:
            self._task.cancel()  # a long poll whose client has left waits for nothing
        if self._reader is not None:
            self._reader.release()
            self._reader = None
        self._transport = None

    def eof_received(self) -> bool:
        """See :class:`asyncio.Protocol`."""
        # A half-close after a whole request keeps the way back open, for a while; before that it is an end.
        if self._state is not State.ANSWERING:
            return False
        asyncio.get_running_loop().call_later(self._listener.limits.half_closed_seconds, self._half_closed)
        return True

    def _half_closed(self) -> None:
        if self._state is State.ANSWERING:
            self.give_up()

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        self.received_bytes += len(data)
        if self._state is not State.READING:
            # Pipelined requests, or the rest of a refused body: read and thrown away, so that closing does not reset
            # the connection and lose the answer. Not as fast as it comes: a sender that never ends would take the loop
            # for itself.
            if self.received_bytes > (_SURPLUS_BYTES if self._state is State.ENDED else _PIPELINED_BYTES):
                self.abort()
            elif self._state is State.ENDED:
                self._pause()
            return
        if self._reader is not None:
            self._read(self._reader, data, first=False)
            return
        if not self._looked and self._recall(data):
            return
        limits = self._listener.limits
        plain = read_plain(data, limits)
        if plain is not None:
            self._dispatch(*plain, b"", data)
            return
        self._reader = RequestReader(
            line_bytes=limits.line_bytes,
            head_bytes=limits.head_bytes,
            headers=limits.headers,
            body_bytes=limits.body_bytes,
            bodies=self._listener.bodies,
        )
        self._read(self._reader, data, first=True)

    def _read(self, reader: RequestReader, data: bytes, *, first: bool) -> None:
        """Have the parser read on."""
        head_was_known = reader.head
        reader.feed(data)
        if reader.fault is not None:
            self._refuse(_FAULTS[reader.fault.value])
        elif reader.complete:
            self._reader = None
            self._dispatch(reader.method, reader.target, reader.headers, reader.body, data if first else None)
        elif reader.head and not head_was_known and reader.headers.get("Expect", "").lower() == "100-continue":
            assert self._transport is not None
            self._transport.write(_CONTINUE)
        if self._state is State.READING:
            self._listener.charge(self, self.received_bytes)

    # -- the answer --------------------------------------------------------------------------------------------------

    def _recall(self, data: bytes) -> bool:
        """Answer from memory, if these bytes were answered a moment ago."""
        found = self._listener.recall(data, self._ends)
        if found is None:
            return False
        self._listener.complete(self)
        self.finish(found)
        return True

    def finish(self, answer: bytes) -> None:
        """Send what is left of an answer, and nothing after it."""
        transport = self._transport
        if transport is None:
            return
        transport.write(answer)
        self._end(transport)

    def _end(self, transport: asyncio.Transport) -> None:
        self._listener.ending(self)
        self._state = State.ENDED
        transport.close()
        unread = transport.get_write_buffer_size()
        if unread or self.kept_bytes:
            self._listener.charge(self, unread)

    def _dispatch(self, method: str, raw: str, headers: CIMultiDict[str], body: bytes, data: bytes | None) -> None:
        """Have a whole request answered. ``data``: all of it, if it came in one piece."""
        listener = self._listener
        self._started = time.perf_counter()
        self._state = State.ANSWERING
        self._method = method
        listener.complete(self)
        self._user_agent = headers.get("User-Agent", "")
        try:
            target = listener.target(raw)
        except TargetError:
            self._send(_BAD_REQUEST)
            return
        self._path = shown(target.path, target.segments)
        assert self._transport is not None
        peer = Peer(self._transport, partial(listener.owner_of, self))
        request = request_of(method, target, headers, body, peer)
        outcome = listener.decide(request, peer)
        if isinstance(outcome, Response):
            access = self._send(outcome)
            if data is not None and access is not None and listener.memory is not None:
                listener.memory.keep(data, request, outcome, listener.date_line(), access)
        elif outcome is DROP:
            self._drop()
        else:
            self._wait(request, outcome)

    def answer_later(self, request: Request, outcome: Later, *, size_bytes: int, started: float) -> None:
        """Answer a request that was read before this connection was made.

        Args:
            request: the request.
            outcome: what is to be waited for.
            size_bytes: of the request.
            started: when it was read, by ``time.perf_counter``.
        """
        if self._transport is None:
            return  # there was no room
        self._started = started
        self._state = State.ANSWERING
        self._method, self._path = request.method, shown(request.path, request.segments)
        self._user_agent = request.headers.get("User-Agent", "")
        self.received_bytes = size_bytes
        self._listener.complete(self)
        self._wait(request, outcome)

    def _wait(self, request: Request, outcome: Later) -> None:
        self._listener.hold(self)
        if self._transport is not None:  # else it had to make room itself, and nobody waits
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
            outcome = self._listener.broken(request, error)  # the listener's border, for what had to wait
        else:
            raise error
        if isinstance(outcome, Response):
            self._send(outcome)
        else:
            self._drop()

    def _send(self, response: Response) -> Access | None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return None
        note = noted(self._method, response)
        self._listener.take_note(note, self._ends, lambda: self._user_agent)
        access = self._report(response.status, len(response.body), note)
        # One piece, one write: headers and body in two cost 40 ms (Nagle against delayed acknowledgement).
        if self._method == "HEAD":
            transport.write(response.head + self._listener.date_line() + b"\r\n")
        else:
            transport.write(response.head + self._listener.date_line() + b"\r\n" + response.body)
        self._end(transport)
        return access

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
        self._listener.take_note(response.note, self._ends, lambda: self._user_agent)
        self._report(response.status, 0, response.note)
        transport.write(response.head + self._listener.date_line() + b"\r\n")
        self._listener.ending(self)
        self._state = State.ENDED
        if transport.can_write_eof():
            # Not closed yet: closing with unread bytes resets the connection, and the client would not see why.
            transport.write_eof()
            self._pause()
        else:
            transport.close()

    def _drop(self) -> None:
        self._report(0, 0)
        self.abort()

    def _report(self, status: int, size_bytes: int, note: Given | Reason | None = None) -> Access:
        peer = address_of(self._transport) if self._transport is not None and not 0 < status < 400 else None
        seconds = time.perf_counter() - self._started
        access = Access(self._method, self._path, status, seconds, size_bytes, self._user_agent, peer, note)
        if self._listener.access is not None:
            self._listener.access(access)
        return access

    # -- the listener's calls ----------------------------------------------------------------------------------------

    def is_fresh(self, turn: int) -> bool:
        """Whether the loop has not yet had a chance to read what it may have sent at once."""
        return self._state is State.READING and not self.received_bytes and turn - self.turn < 2

    def share(self) -> Hashable:
        """The owner to whose share it counts, as far as is known now."""
        return self._place() if self.owner is None else self.owner

    def ask(self, owners: Owners | None) -> None:
        """Learn its owner, if that can be known at once."""
        ends = self._ends()
        if owners is not None and ends is not None:
            with contextlib.suppress(ConnectionError):  # it has left; the event loop will say so
                self.owner = owners.now(*ends)

    def belong(self, owners: Owners | None, table: Table | None) -> None:
        """Learn its owner, from the table; one that is not found counts by its address.

        If there is no table just now (a machine that is very busy), it stays unknown, and is asked for again: else it
        would count for good with all whose owners are not known, and give way for them.
        """
        if self._transport is None or self.owner is not None:
            return
        if owners is not None and not owners.immediate and table is None:
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
            self.owner = self._listener.whose(int(_UCRED.unpack(raw)[1]))
            return self.owner
        return place_of(name)

    def read_on(self) -> bool:
        """Read one more piece of a refused request; ``False`` when none is being refused here."""
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
        """The head deadline has passed: say 408 if something was sent, else just close (RFC 9110, 15.5.9)."""
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
        self._state = State.ENDED
        if self._transport is not None:
            self._transport.abort()
