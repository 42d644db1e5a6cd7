"""What outlives the process: the memory, and the sealed bundle as it came. Never an opened credential.

The bundle lies in a file named after its digest and is written first; the memory, which names the digest, second, by
one rename. So at every instant the memory points at a bundle that is there, and a crash can only lose the newest offer.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Final

import msgspec

from agent.core.errors import HostError
from agent.core.model import Cloud
from agent.core.verdict import Memory
from agent.host.files import sweep, write_atomic

MEMORY_FILE: Final = "memory.json"
MAX_BYTES: Final = 1 << 20
_VERSION: Final = 1
_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: a version, so that an older agent after a downgrade refuses rather than misreads it."""

    version: int
    memory: Memory


class StateDirectory:
    """The directory systemd gives us (``StateDirectory=``), or any other.

    Args:
        directory: it must exist and be ours; files are 0600.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self) -> tuple[Memory, bytes | None]:
        """Read what an earlier process wrote.

        Returns:
            The memory (an empty one when there is none) and the sealed bundle it names, if that is there.

        Raises:
            HostError: there is a memory and it cannot be read or makes no sense. Treat every cloud as decided then: see
                :func:`closed_memory`.
        """
        path = self._directory / MEMORY_FILE
        sweep(path)
        sweep(self._directory / "bundle-*.jose")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return Memory(), None
        except OSError as error:
            raise HostError(f"{path}: cannot be read: {(error.strerror or '').lower()}") from None
        try:
            envelope = msgspec.json.decode(data, type=_Envelope)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HostError(f"{path}: expected what the agent wrote, got something else: {error}") from None
        if envelope.version != _VERSION:
            raise HostError(f"{path}: expected version {_VERSION}, got {envelope.version}")
        memory = envelope.memory
        sealed = None
        if memory.active is not None:
            if not _DIGEST.match(memory.active.digest):
                raise HostError(f"{path}: expected the digest of a bundle, got something else")
            with contextlib.suppress(OSError):
                sealed = self._bundle_path(memory.active.digest).read_bytes()[:MAX_BYTES]
        return memory, sealed

    async def save(self, memory: Memory, sealed: bytes | None) -> None:
        """Write the memory and the sealed bundle it names; a slow disk holds up nobody but the caller.

        Raises:
            HostError: they could not be written; what was there before still is.
        """
        await asyncio.to_thread(self._save, memory, sealed)

    def _save(self, memory: Memory, sealed: bytes | None) -> None:
        keep = self._bundle_path(memory.active.digest) if memory.active is not None else None
        if keep is not None and sealed is not None:
            write_atomic(keep, sealed, mode=0o600)
        write_atomic(
            self._directory / MEMORY_FILE, msgspec.json.encode(_Envelope(version=_VERSION, memory=memory)), mode=0o600
        )
        for path in self._directory.glob("bundle-*.jose"):
            if path != keep:
                with contextlib.suppress(OSError):
                    path.unlink()

    def keep_broken(self) -> None:
        """Give a memory that makes no sense a second name, for a person to look at.

        The first name stays until a good memory replaces it: at no instant is there none, which would read as "nothing
        was ever decided here".
        """
        path = self._directory / MEMORY_FILE
        broken = path.with_suffix(".json.broken")
        with contextlib.suppress(OSError):
            broken.unlink(missing_ok=True)
            broken.hardlink_to(path)

    def _bundle_path(self, digest: str) -> Path:
        return self._directory / f"bundle-{digest[:32]}.jose"


def closed_memory(instance_id: str) -> Memory:
    """The memory to go on with when the real one is unreadable: every cloud counts as decided by a bundle.

    An attacker who can garble the file, or a dying disk, must not turn into the machine's own identity.
    """
    return Memory(instance_id=instance_id, decided=dict.fromkeys(Cloud))
