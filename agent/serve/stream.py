"""One accepted connection as asyncio's protocols see it, without what an event loop's own transports cost.

uvloop makes a handle, some ten system calls and a task for each connection; an answer of ours is one receive, one send
and one close. So the socket is used as it is, and the event loop is asked only where something must be waited for: a
request that has not come yet, an answer that does not fit into the socket's buffer.

The difference from asyncio's own: where nothing is left to be sent, :meth:`Stream.close` and :meth:`Stream.abort`
tell the protocol that the connection is lost before they return.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

from agent.serve.readers import Readers

_AT_ONCE: Final = 65536


class Stream(asyncio.Transport):
    """See the module.

    Args:
        sock: accepted; owned from here on.
        peer: its other end, as ``accept`` told it.
        readers: tells when something has come.
        protocol: what is told.
    """

    __slots__ = (
        "_closing",
        "_ending",
        "_paused",
        "_peer",
        "_protocol",
        "_readers",
        "_reading",
        "_sock",
        "_unsent",
        "_writing",
    )

    def __init__(self, sock: socket.SocketType, peer: Any, readers: Readers, protocol: asyncio.Protocol) -> None:
        self._sock: socket.SocketType | None = sock
        self._peer = peer
        self._readers = readers
        self._protocol = protocol
        self._reading = False  # whether the event loop tells us when something has come
        self._paused = False  # whether the protocol wants to hear nothing
        self._writing = False  # whether it tells us when there is room again
        self._closing = False
        self._ending = False  # whether our side is to be ended once everything is sent
        self._unsent = b""

    def begin(self, data: bytes | None) -> None:
        """Tell the protocol that it is connected, and what has come already; then read on.

        Args:
            data: ``None``: nothing yet; empty: the other side has ended.
        """
        self._protocol.connection_made(self)
        if data is not None and not self._closing:
            self._take(data)
        if not self._paused and data != b"":
            self.resume_reading()

    # -- reading -----------------------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """See :class:`asyncio.ReadTransport`."""
        self._paused = True
        if self._reading and self._sock is not None:
            self._reading = False
            self._readers.remove(self._sock.fileno())

    def resume_reading(self) -> None:
        """See :class:`asyncio.ReadTransport`."""
        self._paused = False
        if not self._reading and not self._closing and self._sock is not None:
            self._reading = self._watched(self._readers.add, self._readable)

    def _readable(self, _fd: int) -> None:
        sock = self._sock
        if sock is None or not self._reading:
            return
        try:
            data = sock.recv(_AT_ONCE, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._lose()
            return
        self._take(data)

    def _take(self, data: bytes) -> None:
        if data:
            self._protocol.data_received(data)
        elif self._protocol.eof_received():
            self.pause_reading()
        else:
            self.close()

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See :class:`asyncio.WriteTransport`."""
        if self._closing or self._sock is None:
            return
        data = bytes(data)
        if self._unsent:
            self._unsent += data
            return
        rest = self._send(data)
        if rest and self._sock is not None:
            self._unsent = rest
            self._writing = self._watched(self._readers.loop.add_writer, self._writable)

    def _send(self, data: bytes) -> bytes:
        """Send what fits; what does not is left."""
        assert self._sock is not None
        try:
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return data
        except OSError:
            self._fail()
            return b""
        return data[sent:]

    def _writable(self) -> None:
        if self._sock is None:
            return
        self._unsent = self._send(self._unsent)
        if self._unsent:
            return
        self._writing = False
        self._readers.loop.remove_writer(self._sock.fileno())
        if self._closing:
            self._lose()
        elif self._ending:
            self._end()

    def can_write_eof(self) -> bool:
        """See :class:`asyncio.WriteTransport`."""
        return True

    def write_eof(self) -> None:
        """See :class:`asyncio.WriteTransport`."""
        self._ending = True
        if not self._unsent:
            self._end()

    def _end(self) -> None:
        if self._sock is not None:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._fail()

    def get_write_buffer_size(self) -> int:
        """See :class:`asyncio.WriteTransport`."""
        return len(self._unsent)

    # -- the end -----------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """See :class:`asyncio.BaseTransport`."""
        return self._closing

    def close(self) -> None:
        """See :class:`asyncio.BaseTransport`."""
        if self._closing:
            return
        self._closing = True
        if not self._unsent:
            self._lose()
        else:
            self.pause_reading()

    def _watched(self, begin: Callable[[int, Any], object], call: Callable[..., None]) -> bool:
        """Have the event loop tell us; where the kernel cannot (epoll_ctl(2): ENOMEM, ENOSPC) this connection ends."""
        assert self._sock is not None
        try:
            begin(self._sock.fileno(), call)
        except OSError:
            self._fail()
            return False
        return True

    def _fail(self) -> None:
        """The other side has left. The protocol is in the middle of a call, so it is told afterwards."""
        self._closing = True
        self._readers.loop.call_soon(self._lose)

    def abort(self) -> None:
        """See :class:`asyncio.WriteTransport`."""
        self._unsent = b""
        self._lose()

    def _lose(self) -> None:
        sock, self._sock = self._sock, None
        self._closing = True
        if sock is None:
            return
        if self._reading:
            self._readers.strike_off(sock.fileno())
        if self._writing:
            self._readers.loop.remove_writer(sock.fileno())
        self._reading = self._writing = False
        self._unsent = b""
        sock.close()
        self._protocol.connection_lost(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``peername``, ``sockname`` and ``socket``."""
        if name == "peername":
            return self._peer or default
        if self._sock is None:
            return default
        if name == "socket":
            return self._sock
        if name == "sockname":
            try:
                return self._sock.getsockname()
            except OSError:
                return default
        return default
