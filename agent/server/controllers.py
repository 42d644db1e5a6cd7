"""Where controllers connect: the file's owner and root may, nobody else."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection

from agent.server.forked import write


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
        except OSError:
            return None
        _, user, _ = struct.unpack("3i", peer)
        if user in self._allowed:
            connection.setblocking(False)
            return connection
        connection.close()
        write(b"a connection was turned away: expected the agent's user or root, got user %d\n" % user)
        return None
