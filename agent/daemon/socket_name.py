"""Is a unix socket still found by its name? Whoever empties a directory takes it away, and nobody can connect any more.

The socket itself goes on to listen, and hears of nothing. One that we made is made again. One of systemd's is in a
place where we may make none: that is told, with the command that makes it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Final

LOOK_SECONDS: Final = 30.0
LOST: Final = "its socket is not found by its name any more: somebody has removed it, or put something else there"
LOST_HINT: Final = (
    "systemctl stop credential-agent.service, then systemctl restart {unit}, "
    "then systemctl start credential-agent.service"
)


class SocketName:
    """See the module.

    Args:
        sock: a listening unix socket, which has its name now.
    """

    def __init__(self, sock: socket.socket) -> None:
        name = sock.getsockname()
        self._path = Path(name) if isinstance(name, str) and name else None  # else it has none in the file system
        self._was = self._look()

    async def lost(self) -> bool:
        """Whether something else is there, or nothing. A name that we could not see at the beginning is never lost."""
        return self._was is not None and await asyncio.to_thread(self._look) != self._was

    def remove(self) -> None:
        """Take the name away, unless it is another one's by now."""
        if self._path is not None and self._was is not None and self._look() == self._was:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._path.lstat() if self._path is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_dev, found.st_ino)
