"""The sealed copy of the bundle in force, which the system refuses to read: it is there, as far as anybody can tell.

It is no lost one, whose end may allow the machine's identity: the clouds that it decided are pending, and it is read
again until the disk says what is there, or another bundle takes its place. A copy in the handover needs no disk.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import structlog

from agent.controller import Controller
from agent.core.errors import HostError
from agent.core.verdict import Mark, Memory
from agent.host.clock import SystemClock
from agent.host.state import bundle_path, read_sealed

READ_AGAIN_SECONDS: Final = 5.0
REFUSED_HINT: Final = (
    "what it decided is pending, and it is read every few seconds: mend the disk, let the agent's user read the file "
    "(owner, mode, label), or bring the bundle again"
)


class Copy:
    """See the module.

    Args:
        directory: of the state.
        controller: puts it in force.
        clock: time.

    Attributes:
        sealed: the copy; ``None``: it is not there, or not known yet.
    """

    def __init__(self, directory: Path, controller: Controller, clock: SystemClock) -> None:
        self.sealed: bytes | None = None
        self._directory = directory
        self._controller = controller
        self._clock = clock
        self._unread: tuple[Mark, str] | None = None
        self._wanted = asyncio.Event()

    def why(self, active: Mark | None) -> str | None:
        """Why that bundle, which was in force, is pending; ``None``: it is known what is there."""
        if self._unread is None or self._unread[0] != active:
            return None
        mark, reason = self._unread
        return f"the sealed copy of bundle {mark.seq}, which was in force, is read again: {reason}"

    def found(self, memory: Memory, sealed: bytes | None, refused: str | None) -> None:
        """Go on from what was read; what was refused, and why, is read until it is known what is there."""
        unread = (memory.active, refused) if sealed is None and refused and memory.active else None
        told, self.sealed, self._unread = self._unread, sealed, unread
        if unread is not None and unread != told:
            structlog.get_logger().error("bundle.unread", seq=unread[0].seq, reason=unread[1], hint=REFUSED_HINT)
            self._wanted.set()

    async def run(self) -> None:
        """Read what is wanted, for ever."""
        while True:
            await self._wanted.wait()
            unread = self._unread
            if unread is None or (await self._settled(unread[0]) and self._unread == unread):
                self._wanted.clear()
                self._unread = None

    async def _settled(self, mark: Mark) -> bool:
        """Wait, and look once; false where it is to be looked at again."""
        store, intake = self._controller.store, self._controller.intake
        await self._clock.sleep(READ_AGAIN_SECONDS)
        if store.memory.active != mark or store.bundle is not None:
            return True
        try:
            sealed = await asyncio.to_thread(read_sealed, bundle_path(self._directory, mark.digest))
        except HostError:
            return False
        if store.memory.active == mark and store.bundle is None:
            self.sealed = sealed
            if sealed is None or not store.doubted:  # else whoever settles the doubt brings it
                await intake.read(sealed)
        return True
