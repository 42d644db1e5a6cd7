"""Our end of a link to a server, as asyncio's protocols see it. Whoever gave us that end may have it as well.

What begins servers makes their links (:mod:`agent.server.crew`), and may have been taken over by one. ``O_NONBLOCK`` is
of the open file description (open(2)), which all share who have a descriptor of it: one that kept our end, and cleared
that, had the whole event loop wait in write(2) for a peer that reads nothing. So each call says itself that it must not
wait. What is handed over on a link (``SCM_RIGHTS``) may hold up whoever lets go of it (:mod:`agent.serve.handed`), and
so may a link on which such a thing lies: both are closed elsewhere.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Iterable
from typing import Final

from agent.core.errors import SnapshotError
from agent.serve.handed import Closing

CLOSING: Final = Closing()
"""Closes what a master, or a server, may have made slow to close."""
MOST_DESCRIPTORS: Final = 253
"""In one message (``SCM_MAX_FD``, unix(7)): with room for all of them the kernel lets go of none."""
_ROOM: Final = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
_SCM_PIDFD: Final = 4  # linux/socket.h: whoever has the end as well may have asked for it (SO_PASSPIDFD)
_AT_ONCE: Final = 1 << 16
_SMALL_BYTES: Final = 1 << 14
"""What is not longer is joined to what waits: each object by itself would take more memory than what it holds."""
_PAUSED_BYTES: Final = 1 << 16
_RESUMED_BYTES: Final = 1 << 14
_MOST_LAST_BYTES: Final = 1 << 20
"""What is read of one whose end was found by writing. The kernel holds less; one that lives may go on to write."""


def files_of(told: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors among what came along with a message (:meth:`socket.socket.recvmsg`)."""
    found = array.array("i")
    for level, kind, data in told:
        if level == socket.SOL_SOCKET and kind in (socket.SCM_RIGHTS, _SCM_PIDFD):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def let_go(sock: socket.socket) -> None:
    """Close it, if it is open: its other end hears of that at once, what lies unread on it is let go of elsewhere."""
    if sock.fileno() >= 0:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        CLOSING.close(sock.detach())


class LinkTransport(asyncio.Transport):
    """See the module. To be made in the event loop.

    What has come is read before the protocol is told of an end, also of one that is found by writing.

    Args:
        sock: the end; owned from here on.
        protocol: what is told.
    """

    def __init__(self, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        super().__init__({"socket": sock})
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = sock
        self._protocol = protocol
        self._unsent: deque[bytes | bytearray] = deque()
        self._offset = 0  # what was sent of the first
        self._unsent_bytes = 0
        self._paused = self._ending = self._closing = self._is_deaf = False

    def begin(self) -> None:
        """Read from now on, and tell the protocol that it is connected.

        Raises:
            OSError: the kernel has no room to watch it. It is closed, then, as after any other error.
        """
        assert self._sock is not None
        try:
            self._loop.add_reader(self._sock.fileno(), self._readable)
            self._protocol.connection_made(self)
        except BaseException:
            self._lose(None)
            raise

    # -- reading -----------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if (data := self._received()) is not None:
            if data:
                self._tell(data)
            else:
                self._lose(None)

    def _received(self) -> bytes | None:
        """What has come; empty: its end; ``None``: nothing now, or the connection is over."""
        if self._sock is None:
            return None
        try:
            data, told, flags, _ = self._sock.recvmsg(_AT_ONCE, _ROOM, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""
        if told or flags & socket.MSG_CTRUNC:
            for one in files_of(told):
                CLOSING.close(one)
            self._lose(SnapshotError("expected words, got what was handed over with them"))
            return None
        return data

    def _tell(self, data: bytes) -> None:
        try:
            self._protocol.data_received(data)
        except Exception as error:  # noqa: BLE001 - as asyncio's own: this connection ends, the loop goes on
            self._loop.call_exception_handler({"message": "what was heard on a link", "exception": error})
            self._lose(error)

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See :class:`asyncio.WriteTransport`."""
        if self._closing or self._ending or self._sock is None:
            return
        data = bytes(data)
        sent = 0 if self._unsent else self._sent(memoryview(data))
        if self.is_closing() or sent == len(data):
            return
        if not self._unsent:
            try:
                self._loop.add_writer(self._sock.fileno(), self._writable)
            except OSError:
                self._fail()
                return
            self._offset = sent
        last = self._unsent[-1] if self._unsent else b""
        if len(data) > _SMALL_BYTES:
            self._unsent.append(data)
        elif isinstance(last, bytearray) and len(last) < _AT_ONCE:
            last += data
        else:
            self._unsent.append(bytearray(data))
        self._unsent_bytes += len(data) - sent
        if self._unsent_bytes > _PAUSED_BYTES and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def _sent(self, data: memoryview) -> int:
        """Send what fits; how much that was."""
        assert self._sock is not None
        try:
            return self._sock.send(data, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._fail()
            return 0

    def _writable(self) -> None:
        if self._sock is None or not self._unsent:
            return
        first = self._unsent[0]
        with memoryview(first) as whole, whole[self._offset :] as rest:
            sent = self._sent(rest)
        self._offset += sent
        self._unsent_bytes -= sent
        if self._offset == len(first):
            self._unsent.popleft()
            self._offset = 0
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())
        if self._paused and self._unsent_bytes <= _RESUMED_BYTES:
            self._paused = False
            self._protocol.resume_writing()

    def write_eof(self) -> None:
        """End our side now. What was not sent is not: whoever has not read so far is not to be told more."""
        if self._sock is None or self._ending:
            return
        self._ending = True
        self._forget()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def _forget(self) -> None:
        if self._unsent and self._sock is not None:
            self._loop.remove_writer(self._sock.fileno())
        self._unsent.clear()
        self._unsent_bytes = 0

    def can_write_eof(self) -> bool:
        """See :class:`asyncio.WriteTransport`."""
        return True

    def get_write_buffer_size(self) -> int:
        """See :class:`asyncio.WriteTransport`."""
        return self._unsent_bytes

    # -- the end -----------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """See :class:`asyncio.BaseTransport`."""
        return self._closing

    def _fail(self) -> None:
        """It has ended. Whoever writes is in the middle of something, and is told afterwards."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._last)

    def _last(self) -> None:
        read = 0
        try:
            while read < _MOST_LAST_BYTES and not self._is_deaf and (data := self._received()):
                read += len(data)
                self._tell(data)
        finally:
            self._lose(None)

    def close(self) -> None:
        """As :meth:`abort`: nobody waits for what is not sent."""
        self.abort()

    def abort(self) -> None:
        """See :class:`asyncio.WriteTransport`. What has come and was not read is not, either."""
        if self._sock is not None and not self._is_deaf:
            self._is_deaf = self._closing = True
            self._loop.remove_reader(self._sock.fileno())
            self._forget()
            self._loop.call_soon(self._lose, None)

    def _lose(self, error: Exception | None) -> None:
        sock = self._sock
        if sock is None:
            return
        self._closing = True
        self._loop.remove_reader(sock.fileno())
        self._forget()
        self._sock = None
        let_go(sock)
        self._protocol.connection_lost(error)
