"""What outlives a stop, until the next boot: the boot grace, what is waited for beyond it, whether this is the machine.

The descriptor store says all that over a restart. Over a stop and a start (an upgrade by a package manager) a file
beside the control socket does: ``/run`` is emptied at each boot. It is no secret. Without it the grace begins once
more, and a metadata service that is silent at the start is no reason for a doubt; what it says can only close.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from pathlib import Path
from typing import Final

import msgspec

from agent.core.errors import HostError
from agent.core.model import Cloud
from agent.core.strictjson import NotThatShapeError, decode
from agent.core.verdict import Memory
from agent.daemon.gap import Known
from agent.host.files import read_again, write_atomic

FILE: Final = "grace.json"
AGAIN_SECONDS: Final = (0.1, 0.2)
"""Until it is read again if the system refused. In all less than a start waits for it."""


class Began(msgspec.Struct, frozen=True):
    """The content of the file. An earlier version knows the first two, and ignores the others.

    Attributes:
        instance_id: the machine; empty while its name is not known.
        began: CLOCK_BOOTTIME, in seconds, when the boot grace began; of no meaning while ``holding``.
        boot: of the kernel; empty where an earlier version wrote it. It counts in the same boot alone: in a container
            ``/run`` may outlast one.
        doubted: see :attr:`agent.daemon.handover.Handover.doubted`.
        gap: likewise.
        memory: the digest of the memory that an orderly end left on the disk; empty before one.
        awaited: the clouds in which a first bundle was waited for longer than the grace.
        holding: see :attr:`agent.daemon.handover.Handover.holding`.
    """

    instance_id: str
    began: float
    boot: str = ""
    doubted: bool = False
    gap: Known | None = None
    memory: str = ""
    awaited: tuple[Cloud, ...] = ()
    holding: bool = False

    def is_of(self, name: str) -> bool:
        """Whether it may be of the machine of that name."""
        return not self.instance_id or self.instance_id == name


def digest(memory: Memory) -> str:
    """Tells one memory from another by what was accepted and decided.

    Not by what a start may learn of it and leave unwritten (when a bundle was issued, which earlier versions did not
    write), nor by how this version writes it: the next process may be of another.
    """
    accepted = sorted((mark.issuer, mark.subject, mark.seq, mark.digest) for mark in memory.marks)
    active = None if memory.active is None else memory.active.digest
    decided = sorted((str(cloud), None if end is None else str(end)) for cloud, end in memory.decided.items())
    known = (memory.instance_id, accepted, active, decided, sorted(memory.floors.items()))
    return hashlib.sha256(msgspec.json.encode(known)).hexdigest()


def read(directory: Path, *, uptime: float) -> Began | None:
    """Read the file of an earlier process of this boot; ``None``: there is none. Blocks.

    What the system refuses to read just then is read again: it may note a doubt.
    """
    try:
        found = decode(read_again(directory / FILE, 4096, AGAIN_SECONDS), Began)
    except (OSError, NotThatShapeError):
        return None
    return found if 0.0 <= found.began <= uptime else None


def write(directory: Path, began: Began) -> bool:
    """Leave it for the next process; false where that fails, which costs no more than the module says."""
    try:
        write_atomic(directory / FILE, msgspec.json.encode(began), mode=0o600)
    except HostError:
        return False
    return True


class Note:
    """Keeps the file as it should be. The directory may be slow: it holds up nobody.

    Resources: a task while it is being written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._wanted: Began | None = None
        self._writing: asyncio.Task[None] | None = None

    def keep(self, began: Began) -> None:
        """Have the file say that. Returns at once; what cannot be written is tried again with the next call."""
        if began == self._wanted:
            return
        self._wanted = began
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="note of this boot")

    def again(self) -> None:
        """Write it again: somebody has removed it."""
        began, self._wanted = self._wanted, None
        if began is not None:
            self.keep(began)

    async def last(self, seconds: float) -> None:
        """Wait until it is written, for at most so long."""
        if self._writing is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await asyncio.shield(self._writing)

    async def _write(self) -> None:
        written = None
        while self._wanted is not None and self._wanted != written:
            written, done = self._wanted, False
            with contextlib.suppress(OSError, MemoryError):  # no thread, say
                done = await asyncio.to_thread(write, self._directory, written)
            if not done and self._wanted == written:
                self._wanted = None
