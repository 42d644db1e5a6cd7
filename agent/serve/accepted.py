"""What came whole with its connection and can be answered at once: no object is made that would outlive the call.

Most requests are that: one piece that is there when the connection is accepted, an answer that nothing must be waited
for and that fits into the socket. It is read, handed on, answered, counted and closed here. Whatever turns out to be
otherwise goes on as a :mod:`agent.serve.connection`, with what is known of it by then.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from agent.core.errors import TargetError
from agent.serve.connection import Connection
from agent.serve.fairness import ends_of
from agent.serve.handling import Access, Peer, name_of, noted, shown
from agent.serve.plain import read_plain
from agent.serve.sending import Answer
from agent.serve.stream import Stream
from agent.serve.target import request_of
from agent.wire.http import Response

if TYPE_CHECKING:
    from agent.serve.listener import Listener


class Accepted(Peer):
    """Who is at the other end of a connection that is nothing but a socket yet."""

    __slots__ = ("_listener", "_name", "_sock", "connection")

    def __init__(self, listener: Listener, sock: socket.SocketType, name: Any) -> None:
        self._listener = listener
        self._sock = sock
        self._name = name
        self.connection: Connection | None = None
        """Once something is waited for."""

    async def owner(self) -> Hashable:
        """See :class:`Peer`."""
        assert self.connection is not None
        return await self._listener.owner_of(self.connection)

    def address(self) -> str:
        """See :class:`Peer`."""
        return name_of(self._name)

    def socket(self) -> Any:
        """See :class:`Peer`."""
        return self._sock


def answer_at_once(listener: Listener, sock: socket.SocketType, name: Any, owner: Hashable, data: bytes) -> bool:
    """Answer a request that came whole.

    Args:
        listener: whose limits hold.
        sock: the connection; taken over if it is answered here.
        name: of its other end.
        owner: whose it is, where that is known.
        data: all that has come; the memory does not know it.

    Returns:
        ``False``: it is not plain, and nothing has been done.
    """
    started = time.perf_counter()
    plain = read_plain(data, listener.limits)
    if plain is None:
        return False
    method, raw, headers = plain
    try:
        target = listener.target(raw)
    except TargetError:
        return False
    peer = Accepted(listener, sock, name)
    request = request_of(method, target, headers, b"", peer)
    outcome = listener.decide(request, peer)
    if callable(outcome):
        connection = peer.connection = Connection(listener, owner, looked=True)
        Stream(sock, name, listener.readers, connection).begin(None)
        connection.answer_later(request, outcome, size_bytes=len(data), started=started)
        return True
    status, size = (outcome.status, len(outcome.body)) if isinstance(outcome, Response) else (0, 0)
    note = noted(method, outcome)
    listener.take_note(note, lambda: ends_of(sock, name), lambda: headers.get("User-Agent", ""))
    access = Access(
        method,
        shown(target.path, target.segments),
        status,
        time.perf_counter() - started,
        size,
        headers.get("User-Agent", ""),
        None if 0 < status < 400 else peer.address(),
        note,
    )
    if listener.access is not None:
        listener.access(access)
    if not isinstance(outcome, Response):
        sock.close()
        return True
    date_line = listener.date_line()
    whole = outcome.head + date_line + (b"\r\n" if method == "HEAD" else b"\r\n" + outcome.body)
    listener.sender.send(Answer(sock, name, owner, whole))
    if listener.memory is not None:
        listener.memory.keep(data, request, outcome, date_line, access)
    return True
