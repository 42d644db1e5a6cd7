"""Where controllers connect (the file's owner and root may, nobody else), and the connection to one."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Collection
from typing import Final

from agent.server import words
from agent.server.forked import write

RETRY_SECONDS: Final = 0.05
"""Until a controller is told, or heard, again, when the kernel had no memory for it."""
MOST_UNSAID: Final = 512
"""Words for a controller that reads none."""


class ControllerSocket:
    """Where controllers connect.

    Args:
        listening: the socket.
        allowed: the users that may be one.
    """

    def __init__(self, listening: socket.socket, allowed: Collection[int]) -> None:
        self.listening = listening
        self._allowed = allowed

    def accept(self) -> socket.socket | None:
        """The connection of the next one; ``None``: it has left, or may not be one."""
        try:
            connection, _ = self.listening.accept()
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except (BlockingIOError, ConnectionError):
            return None
        except OSError:
            select.select(
                [], [], [], RETRY_SECONDS
            )  # no descriptor for it: it waits, and would be looked at without end
            return None
        _, user, _ = struct.unpack("3i", peer)
        if user in self._allowed:
            connection.setblocking(False)
            return connection
        connection.close()
        write(b"a connection was turned away: expected the agent's user or root, got user %d\n" % user)
        return None


class Control:
    """The connection to one controller. A word that the kernel has no memory for is said later, and none is left out.

    Args:
        connection: is closed with this.

    Attributes:
        was_cut: whether something came along with the last word that there was no descriptor for.
        say_at: when what is left to say is to be said, by the monotonic clock; ``None``: nothing is.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.was_cut = False
        self.say_at: float | None = None
        self._connection = connection
        self._unsaid: deque[tuple[bytes, int | None]] = deque()

    def fileno(self) -> int:
        """See :meth:`socket.socket.fileno`."""
        return self._connection.fileno()

    @property
    def files(self) -> list[int]:
        """What is yet to be given: to the controller, and to no server."""
        return [file for _, file in self._unsaid if file is not None]

    def say(self, said: bytes, file: int | None = None) -> bool:
        """Say it, now or later; false: the controller reads nothing at all.

        Args:
            said: what.
            file: a descriptor that is given with it, and closed.
        """
        self._unsaid.append((said, file))
        self.say_rest()
        return len(self._unsaid) <= MOST_UNSAID

    def say_rest(self) -> None:
        """Say what is left to say."""
        while self._unsaid and self._send(*self._unsaid[0]):
            self._forget()
        self.say_at = time.monotonic() + RETRY_SECONDS if self._unsaid else None

    def _forget(self) -> None:
        _, file = self._unsaid.popleft()
        if file is not None:
            os.close(file)

    def _send(self, said: bytes, file: int | None) -> bool:
        try:
            if file is None:
                self._connection.send(said)
            else:
                socket.send_fds(self._connection, [said], [file])
        except ConnectionError:
            return True  # it has ended, which is heard
        except OSError:
            return False
        return True

    def hear(self) -> tuple[bytes, list[int]] | None:
        """What it says next, and what came with it; ``None``: nothing now. Empty: it has ended."""
        try:
            said, fds, flags, _ = socket.recv_fds(self._connection, 64, words.MOST_SOCKETS)
        except BlockingIOError:
            return None
        except ConnectionError:  # it has ended without hearing all that was said
            return b"", []
        except OSError:
            select.select([], [], [], RETRY_SECONDS)  # no memory for it: it is there yet
            return None
        self.was_cut = bool(flags & socket.MSG_CTRUNC)
        return said, fds

    def close(self) -> None:
        """Hear and say no more."""
        self._connection.close()
        while self._unsaid:
            self._forget()
