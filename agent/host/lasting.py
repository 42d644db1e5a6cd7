"""Which system users were workers when the machine last ran? So that they are refused before anything else is known.

The closed table refuses every ordinary user by itself. A user of the system's (a batch system's, say) is a worker only
by the configuration, and where that cannot be read yet, or never (the redirection is masked, or crashes, or nftables
cannot be used), it would be the machine. So the numbers of those that were led, or refused in doubt, outlive the boot
in a file of root's, one range a line. ``credential-agent-closed.service`` and ``credential-agent-watch.service`` read
it with a shell. It refuses, and leads nobody: by the next boot a number may be somebody else's.

Who was never led on this machine is not in it: a first boot on which the rules cannot be made knows ordinary users
only. Root's jobs in a slice have a gate of their own, which needs nftables.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.core.errors import HostError
from agent.host.files import write_atomic
from agent.host.nft_text import elements
from agent.host.ranges import merge, parse_uids, without

FILE: Final = Path("/etc/credential-agent/closed.d/workers")
USUAL: Final = ((1000, 60513), (60578, 4294967293))
"""Whom ``closed.nft`` refuses by itself."""
MAX_BYTES: Final = 65_536

Range = tuple[int, int]


def read(path: Path = FILE) -> tuple[Range, ...]:
    """The numbers; a line that makes no sense is nobody's."""
    try:
        with path.open("rb") as file:
            lines = file.read(MAX_BYTES).decode("ascii", "replace").splitlines()
    except OSError:
        return ()
    found: list[Range] = []
    for line in lines:
        try:
            found += parse_uids([line])
        except HostError:
            continue
    return merge(found)


class Kept:
    """Writes the file, in a child: a disk that hangs must not hold up whoever holds the rules.

    Attributes:
        lacking: what is not as it should be, in words.
    """

    def __init__(self, path: Path = FILE) -> None:
        self.lacking: tuple[str, ...] = ()
        self._path = path
        self._pid = 0
        self._wanted: bytes | None = None  # not known yet: what is there stays
        self._written: bytes | None = None

    @property
    def is_writing(self) -> bool:
        """Whether a child still writes."""
        return self._pid != 0

    def keep(self, uids: Iterable[Iterable[int]]) -> None:
        """Have these kept, without those that need no keeping; written with the next :meth:`look`."""
        ranges = merge((low, high) for low, high in uids)
        self._wanted = "".join(f"{one}\n" for one in elements(without(ranges, USUAL))).encode()
        self.look()

    def look(self) -> None:
        """See what became of the child, and begin another if there is something to write. Never blocks."""
        if self.is_writing:
            if not os.waitpid(self._pid, os.WNOHANG)[0]:
                return
            self._pid = 0
            said = f"{self._path}: cannot be written: system users who are workers are refused in this boot only"
            self.lacking = () if not self._written or _is(self._path, self._written) else (said,)
        if self._wanted is not None and self._written != self._wanted:
            self._begin(self._wanted)

    def _begin(self, data: bytes) -> None:
        try:
            pid = os.fork()
        except OSError:
            return  # tried again with the next look
        self._written = data
        if pid == 0:
            try:
                with contextlib.suppress(HostError):
                    if not _is(self._path, data) and (data or self._path.exists()):
                        write_atomic(self._path, data, mode=0o644)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)  # at once, so that no exit handler of the parent runs twice
        self._pid = pid


def _is(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False
