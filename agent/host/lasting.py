"""Which system users were workers when the machine last ran? So that they are refused before anything else is known.

The closed table refuses every ordinary user by itself. A user of the system's (a batch system's, say) is a worker only
by the configuration, and where that cannot be read yet, or never (the redirection is masked, or crashes, or nftables
cannot be used), it would be the machine. So the numbers of those that were led, or refused in doubt, outlive the boot
in a file of root's, one range a line. ``credential-agent-closed.service`` and ``credential-agent-watch.service`` read
it with a shell. It refuses, and leads nobody: by the next boot a number may be somebody else's.

The install script writes it too, and so does the last step of an image's build (``credential-agent redirect record``):
a first boot on which the rules cannot be made knows whom the configuration named then. Who is made later is not in it.
Root's jobs in a slice have a gate of their own, which needs nftables.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from agent.core.errors import HostError
from agent.core.text import os_reason
from agent.host.files import passes, write_atomic
from agent.host.nft_text import elements
from agent.host.ranges import merge, parse_uids, without

FILE: Final = Path("/etc/credential-agent/closed.d/workers")
USUAL: Final = ((1000, 4294967293),)
"""Whom ``closed.nft`` refuses by itself."""
UNCLEAR: Final = ((1, 999), (4294967294, 4294967294))
"""Whom the file may name, while the system refuses to read it."""
MAX_BYTES: Final = 65_536
AGAIN_SECONDS: Final = 60.0
"""Between attempts to write it: a disk may be full or read-only for a part of a boot."""
_DESCRIPTORS: Final = 1 << 16

Range = tuple[int, int]


def read(path: Path = FILE) -> tuple[Range, ...]:
    """The numbers; a line that makes no sense is nobody's.

    Raises:
        HostError: the system refuses to read it just then, which says nothing of what is there.
    """
    try:
        with path.open("rb") as file:
            lines = file.read(MAX_BYTES).decode("ascii", "replace").splitlines()
    except OSError as error:
        if passes(error):
            raise HostError(f"{path}: cannot be read: {os_reason(error)}") from None
        return ()
    found: list[Range] = []
    for line in lines:
        try:
            found += parse_uids([line])
        except HostError:
            continue
    return merge(found)


def write(uids: Iterable[Iterable[int]], path: Path = FILE) -> None:
    """Have these kept, without those that need no keeping. Blocks.

    Raises:
        HostError: it cannot be written; what was there still is.
    """
    data = _lines(uids)
    if not _is(path, data) and (data or path.exists()):
        write_atomic(path, data, mode=0o644)


def _lines(uids: Iterable[Iterable[int]]) -> bytes:
    ranges = merge((low, high) for low, high in uids)
    return "".join(f"{one}\n" for one in elements(without(ranges, USUAL))).encode()


class Kept:
    """Writes the file, in a child: a disk that hangs must not hold up whoever holds the rules.

    Args:
        path: the file.
        clock: seconds that never go back.

    Attributes:
        lacking: what is not as it should be, in words.
    """

    def __init__(self, path: Path = FILE, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.lacking: tuple[str, ...] = ()
        self._path = path
        self._clock = clock
        self._pid = 0
        self._reader = -1
        self._again = 0.0
        self._wanted: bytes | None = None  # not known yet: what is there stays
        self._written: bytes | None = None

    @property
    def is_writing(self) -> bool:
        """Whether a child still writes."""
        return self._pid != 0

    def keep(self, uids: Iterable[Iterable[int]], *, beside: bool = False) -> None:
        """Have these kept, without those that need no keeping; written with the next :meth:`look`.

        Args:
            uids: ranges.
            beside: whether whom the file names stay in it. While the system refuses to read it, it stays as it is.
        """
        try:
            wanted = _lines((*uids, *(read(self._path) if beside else ())))
        except HostError:
            return
        if wanted != self._wanted:
            self._wanted, self._again = wanted, 0.0
        self.look()

    def look(self) -> None:
        """See what became of the child, and begin another if there is something to write. Never blocks."""
        if self.is_writing:
            if not os.waitpid(self._pid, os.WNOHANG)[0]:
                return
            self._pid, done = 0, os.read(self._reader, 1)
            os.close(self._reader)
            self.lacking = ()
            if not done:
                said = f"{self._path}: cannot be written: system users who are workers are refused in this boot only"
                self.lacking = (said,) if self._written else ()
                self._written, self._again = None, self._clock() + AGAIN_SECONDS
        if self._wanted is not None and self._written != self._wanted and self._clock() >= self._again:
            self._begin(self._wanted)

    def _begin(self, data: bytes) -> None:
        try:
            reader, writer = os.pipe()
        except OSError:
            return  # tried again with the next look
        try:
            pid = os.fork()
        except OSError:
            os.close(reader)
            os.close(writer)
            return
        if pid == 0:
            self._write(data, writer)
        os.close(writer)
        self._pid, self._reader, self._written = pid, reader, data

    def _write(self, data: bytes, writer: int) -> None:
        """What the child does; it ends here, and says so only when it is done."""
        try:
            # Nothing of the parent's is to live as long as a child that hangs: the kernel ends tables and addresses
            # with the socket that has them. (A signal writes to a number, which is a file of the child's by then.)
            signal.set_wakeup_fd(-1)
            os.closerange(3, writer)
            os.closerange(writer + 1, _DESCRIPTORS)
            with contextlib.suppress(HostError, OSError):
                if not _is(self._path, data) and (data or self._path.exists()):
                    write_atomic(self._path, data, mode=0o644)
                os.write(writer, b"=")
        finally:
            os.kill(os.getpid(), signal.SIGKILL)  # at once, so that no exit handler of the parent runs twice


def _is(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False
