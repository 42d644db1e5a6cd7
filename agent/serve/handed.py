"""Descriptors that come along on a unix socket (``SCM_RIGHTS``, unix(7)). Nobody here has asked for any.

Whoever reads such a message and does not take them lets go of them, and so does whoever closes a connection on which
one lies unread. The last one to let go of a socket may have to wait until what that has to send is acknowledged: as
long as whoever made it likes (``SO_LINGER``, socket(7)). A courier that passed one on stopped the loop that renews,
until systemd ended the agent.

* Linux 6.16 and later can be told to take none (``SO_PASSRIGHTS``): who sends one gets an error. Not so what was sent
  while nobody listened but systemd.
* So each message is looked at before it is read. A connection on which one brings descriptors is ended as it is.
* A byte that was sent out of band (``MSG_OOB``, Linux 5.15) is passed over by whoever looks, and dropped, with what it
  brings, by whoever reads on. So it is read in line with the others.
* What lies unread on a connection that ends is not looked at: a thread that has nothing else to do closes it. A signal
  breaks off whatever that waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import queue
import signal
import socket
import threading
from types import FrameType
from typing import Any, Final

SO_PASSRIGHTS: Final = 83  # asm-generic/socket.h
_SIGNAL: Final = signal.SIGRTMIN
_BREAK_OFF_SECONDS: Final = 0.005
"""So long a close may wait before it is broken off: one that waits for nobody takes microseconds."""
_MOST_WAITING: Final = 1024
"""While so many wait to be closed, no connection is accepted: each has a descriptor."""

_AT_ONCE: Final = 250
"""A message takes no more descriptors (unix(7): 253)."""


class Closing:
    """Closes what it may take long to close.

    *Resources*: a thread, from the first :meth:`begin` to the end of the process.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._may_break_off = False
        self._given = 0  # by the loop alone
        self._closed = 0  # by the thread alone
        self._watching: asyncio.AbstractEventLoop | None = None  # the loop that does

    @property
    def crowded(self) -> bool:
        """Whether no more should come."""
        return self._given - self._closed >= _MOST_WAITING

    def begin(self) -> None:
        """Have the thread, and what breaks it off."""
        if self._thread is not None:
            return
        # Only the main thread may. Where the loop is in another, what is closed is waited for.
        with contextlib.suppress(ValueError):
            signal.signal(_SIGNAL, _heard)
            self._may_break_off = True
        thread = threading.Thread(target=self._run, daemon=True, name="closing")
        with contextlib.suppress(RuntimeError, MemoryError):  # there is none just now: it is asked for again
            thread.start()
            self._thread = thread

    def close(self, descriptor: int) -> None:
        """Close it, soon. To be called in the event loop."""
        self.begin()
        if self._thread is None:
            os.close(descriptor)
            return
        self._given += 1
        self._queue.put(descriptor)
        loop = asyncio.get_running_loop()
        if self._watching is not loop:
            self._watching = loop
            loop.call_later(_BREAK_OFF_SECONDS, self._watch)

    def _watch(self) -> None:
        thread = self._thread
        if self._given == self._closed or thread is None:
            self._watching = None
            return
        if self._may_break_off and thread.ident is not None:
            signal.pthread_kill(thread.ident, _SIGNAL)
        asyncio.get_running_loop().call_later(_BREAK_OFF_SECONDS, self._watch)

    def _run(self) -> None:
        while True:
            found = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(found) < _AT_ONCE:
                    found.append(self._queue.get_nowait())
            many = len(found)
            _close_all(found)
            self._closed += many


def _close_all(descriptors: list[int]) -> None:
    """Close them by one call, so that one signal breaks off whatever they wait for, however many they are.

    They are handed to a socket of our own, which is closed with them unread. Where that cannot be, each is closed by
    itself.
    """
    with contextlib.suppress(OSError, MemoryError):  # nothing ends the thread
        kept, sent = socket.socketpair()
        with kept, sent, contextlib.suppress(OSError, MemoryError):
            socket.send_fds(sent, [b"0"], descriptors)
            while descriptors:
                os.close(descriptors.pop())
    for one in descriptors:
        with contextlib.suppress(OSError):
            os.close(one)


def _heard(_number: int, _frame: FrameType | None) -> None:
    """Hear the signal, of which nothing is wanted but that it interrupts a call."""


class Guarded(socket.socket):
    """A unix connection on which a stranger may send anything.

    Attributes:
        closing: closes it, if something lies unread there.
    """

    closing: Closing

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """See :meth:`socket.socket.recv`.

        Raises:
            ConnectionAbortedError: descriptors come along. They, and what they come with, are still unread.
        """
        data, _, told, _ = self.recvmsg(bufsize, 0, flags | socket.MSG_PEEK)
        if told & socket.MSG_CTRUNC:
            raise ConnectionAbortedError(errno.ECONNABORTED, "descriptors were sent along")
        if data and not flags & socket.MSG_PEEK:
            # The kernel never joins what comes with descriptors to what comes before it.
            return super().recv(len(data), flags)
        return data

    def close(self) -> None:
        """See :meth:`socket.socket.close`. At once if nothing was sent that was not read, else soon."""
        if self.fileno() < 0 or not self._holds_anything():
            super().close()
        else:
            self.closing.close(self.detach())

    def _holds_anything(self) -> bool:
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RD)  # from here on nothing can come
        try:
            data, _, told, _ = self.recvmsg(1, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return bool(data) or bool(told & socket.MSG_CTRUNC)


class Guarding(socket.socket):
    """A listening unix socket that accepts such.

    Args:
        sock: which; taken over.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, sock.detach())
        self._closing = Closing()
        self._closing.begin()
        with contextlib.suppress(OSError):  # Linux before 6.16
            self.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)

    def accept(self) -> tuple[Guarded, Any]:
        """See :meth:`socket.socket.accept`."""
        if self._closing.crowded:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        accepted, peer = super().accept()
        guarded = Guarded(fileno=accepted.detach())
        guarded.closing = self._closing
        guarded.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        return guarded, peer
