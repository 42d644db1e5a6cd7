"""systemd's end of a service's notifications: a real datagram socket, and the file descriptor store behind it.

Written from sd_notify(3) and sd_pid_notify_with_fds(3): ``FDSTORE=1`` puts the descriptors that came along away under
``FDNAME=``; a name may be there several times; ``FDSTOREREMOVE=1`` drops all of a name; what is beyond the maximum is
closed. What is stored goes to the next process of the unit, as often as there is one.
"""

from __future__ import annotations

import array
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

DEADLINE_SECONDS = 15.0


@dataclass(frozen=True)
class Told:
    """One datagram.

    Attributes:
        lines: the assignments, in their order.
        fds: how many descriptors came along.
        at: monotonic seconds.
    """

    lines: tuple[str, ...]
    fds: int
    at: float

    def value(self, name: str) -> str | None:
        """What ``name`` was set to."""
        return next((line.partition("=")[2] for line in self.lines if line.startswith(f"{name}=")), None)


class NotifySocket:
    """Listens at ``path`` from the start of a ``with`` to its end.

    Args:
        path: where; shorter than 107 bytes.
        maximum: ``FileDescriptorStoreMax=``.

    Attributes:
        told: everything that was told, oldest first.
    """

    def __init__(self, path: Path, *, maximum: int = 8) -> None:
        self.path = path
        self.told: list[Told] = []
        self._maximum = maximum
        self._stored: list[tuple[str, int]] = []
        self._news = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ender:
            ender.sendto(b"", str(self.path))  # no daemon sends an empty one
        self._reader.join(DEADLINE_SECONDS)
        self._socket.close()
        self.drop()

    # -- what was told

    @property
    def mark(self) -> int:
        """The present end of what was told: give it to :meth:`wait_for` as ``after``."""
        with self._news:
            return len(self.told)

    def wait_for(self, line: str, *, after: int = 0, seconds: float = DEADLINE_SECONDS) -> Told:
        """The first datagram that has exactly this line among others."""
        return self.wait_until(lambda told: line in told.lines, after=after, seconds=seconds, what=line)

    def wait_until(
        self,
        look: Callable[[Told], bool],
        *,
        after: int = 0,
        seconds: float = DEADLINE_SECONDS,
        what: str = "the datagram",
    ) -> Told:
        """The first datagram for which ``look`` is true, told or to be told."""

        def found() -> Told | None:
            return next((told for told in self.told[after:] if look(told)), None)

        with self._news:
            self._news.wait_for(lambda: found() is not None, seconds)
            told = found()
            if told is None:
                raise AssertionError(f"{what} was not told within {seconds} s; told was: {self.told[after:]}")
            return told

    def count(self, line: str, *, after: int = 0) -> int:
        """How often this line was told so far."""
        with self._news:
            return sum(line in told.lines for told in self.told[after:])

    def silent(self, line: str, seconds: float, *, after: int = 0) -> bool:
        """Whether this line is not told for so long: the only wait here that a passing test waits out."""
        with self._news:
            return not self._news.wait_for(lambda: any(line in told.lines for told in self.told[after:]), seconds)

    # -- the store

    def stored(self) -> list[tuple[str, int]]:
        """What the next process gets: names and descriptors, which stay ours."""
        with self._news:
            return list(self._stored)

    def content(self, name: str) -> list[bytes]:
        """The content of everything stored under ``name``."""
        with self._news:
            return [os.pread(fd, 1 << 20, 0) for stored, fd in self._stored if stored == name]

    def wait_content(self, name: str, look: Callable[[bytes], bool], *, seconds: float = DEADLINE_SECONDS) -> bytes:
        """The content stored under ``name``, once it is one and ``look`` is true of it."""
        found: list[bytes] = []

        def true() -> bool:
            found[:] = [os.pread(fd, 1 << 20, 0) for stored, fd in self._stored if stored == name]
            return len(found) == 1 and look(found[0])

        with self._news:
            if not self._news.wait_for(true, seconds):
                raise AssertionError(f"{name}: stored are {len(found)} files, of {[len(data) for data in found]} bytes")
            return found[0]

    def put(self, name: str, data: bytes) -> None:
        """Put something away that no daemon sent."""
        fd = os.memfd_create(name)
        os.write(fd, data)
        with self._news:
            self._stored.append((name, fd))

    def drop(self) -> None:
        """Empty the store, as a stop of the unit does."""
        with self._news:
            for _, fd in self._stored:
                os.close(fd)
            self._stored.clear()

    # -- the socket

    def _read(self) -> None:
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(8192, socket.CMSG_SPACE(253 * array.array("i").itemsize))
            if not data:
                return
            fds = array.array("i")
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
            told = Told(tuple(data.decode().split("\n")), len(fds), time.monotonic())
            with self._news:
                self.told.append(told)
                self._keep(told, fds)
                self._news.notify_all()

    def _keep(self, told: Told, fds: Sequence[int]) -> None:
        name = told.value("FDNAME") or "stored"
        if "FDSTOREREMOVE=1" in told.lines:
            for stored, fd in self._stored:
                if stored == name:
                    os.close(fd)
            self._stored = [(stored, fd) for stored, fd in self._stored if stored != name]
        for fd in fds:
            if "FDSTORE=1" in told.lines and len(self._stored) < self._maximum:
                self._stored.append((name, fd))
            else:
                os.close(fd)
