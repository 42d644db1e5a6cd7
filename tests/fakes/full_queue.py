"""A service manager's socket whose queue is full, as a worker can keep it: nothing is taken until the test reads."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

DEADLINE_SECONDS = 15.0


class FullQueue:
    """Listens at ``path`` from the start of a ``with`` to its end.

    Args:
        path: where; shorter than 107 bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def __enter__(self) -> Self:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                while True:
                    sender.sendto(b"STATUS=somebody else's", str(self.path))
            except BlockingIOError:
                return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._socket.close()

    def read_until(self, *lines: str) -> list[str]:
        """Take what comes until each of these lines was in a datagram, in whatever order: the lines of the last."""
        self._socket.settimeout(DEADLINE_SECONDS)
        end = time.monotonic() + DEADLINE_SECONDS
        left, told = set(lines), list[str]()
        while left:
            assert time.monotonic() < end, f"{left} was not told within {DEADLINE_SECONDS} s"
            told = self._socket.recv(4096).decode().split("\n")
            left.difference_update(told)
        return told
