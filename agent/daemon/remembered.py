"""Which bundle was accepted before? The state directory, claimed and read once: it may hang, or be another agent's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from agent.core.errors import HostError
from agent.core.verdict import Memory
from agent.daemon import disk, listening
from agent.host import machine, systemd
from agent.host.clock import SystemClock
from agent.host.files import passes, refused
from agent.host.state import StateDirectory, StateVersionError, closed_memory

CLAIM_SECONDS: Final = 5.0
"""How long to wait for a previous process that is slow to end."""
AGAIN_SECONDS: Final = (0.1, 0.3, 1.0)
"""Until a memory is read again that could not be read just then."""
UNREADABLE_HINT: Final = (
    "no worker gets the machine's identity in place of a bundle's, until one is accepted. Which numbers were accepted "
    "and withdrawn is forgotten with it: push the newest bundle, or the withdrawal, again"
)
UNREAD: Final = "the memory, which lies beside it, cannot be read"
REFUSED_HINT: Final = (
    "no worker gets the machine's identity in place of a bundle's. The file stays as it is until one is accepted: mend "
    "the disk, or let the agent's user read it (owner, mode, label), and restart the agent"
)


class Remembered:
    """See the module.

    Args:
        state: the state directory.
        directory: its path.
        clock: time.
        environ: what the service manager passed.
        root: where ``/proc`` and ``/sys`` are.
        activated: whether the service manager gave us the sockets: then we are the only agent here.
    """

    def __init__(
        self,
        state: StateDirectory,
        directory: Path,
        *,
        clock: SystemClock,
        environ: Mapping[str, str],
        root: Path,
        activated: bool,
    ) -> None:
        self.directory = directory
        self._state = state
        self._clock = clock
        self._environ = environ
        self._root = root
        self._activated = activated
        self._log = structlog.get_logger()
        self.reading: asyncio.Task[disk.Read]

    def begin(self) -> None:
        """Begin to read it. Returns at once."""
        self.reading = asyncio.create_task(self._read(), name="read state")

    @property
    def refused(self) -> str | None:
        """Why it is not known whether the sealed bundle is there; ``None``: it is known."""
        if not self.reading.done():
            return disk.STALLED
        read = self.reading.result()
        return UNREAD if read.broken else read.refused

    async def wait(self, seconds: float) -> bool:
        """Wait for at most so long; returns whether it was read."""
        await asyncio.wait({self.reading}, timeout=seconds)
        return self.reading.done()

    def stalled(self, sockets: list[socket.socket]) -> None:
        """Log that it does not answer."""
        self._log.error(
            "state.stalled",
            reason=disk.STALLED,
            http=listening.names([one for one in sockets if one.family != socket.AF_UNIX]),
            hint="look at the disk of state.directory",
        )

    async def refuse_meanwhile(
        self, sockets: list[socket.socket], *, notifier: systemd.Notifier, stop: asyncio.Event, ready_at: float
    ) -> bool:
        """Refuse everybody while it is not known what was decided here; false when told to stop meanwhile.

        Args:
            sockets: where requests come.
            notifier: the service manager.
            stop: is set when we are to stop.
            ready_at: boot-time seconds at which to say that we are ready all the same.
        """
        reading, stopped = self.reading, asyncio.create_task(stop.wait(), name="stop")
        async with disk.answer_meanwhile(sockets):
            while not reading.done() and not stopped.done():
                notifier.status(f"nothing is served: {disk.STALLED}")
                notifier.alive()
                if self._clock.boottime() >= ready_at:
                    notifier.ready(f"nothing is served: {disk.STALLED}")
                await asyncio.wait({reading, stopped}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not reading.done():
            reading.cancel()
        return reading.done() and not reading.cancelled()

    async def later_than(self, ours: Memory) -> disk.Read | None:
        """Wait for a directory that answers late.

        Returns:
            Its content; ``None`` where that must not be written over.

        Raises:
            HostError: its memory is later than ours: the next start has both to choose from.
        """
        read = await asyncio.shield(self.reading)
        self._log.info("state.answers")
        if not read.broken and disk.is_later(read.memory, ours):
            raise HostError("state.directory: it has a later memory than the one that was handed over: start again")
        return read if read.write else None

    async def _read(self) -> disk.Read:
        """Everything that is asked of the state directory, in threads: it may not answer."""
        await self._claim()
        read, unread = await self._loaded()
        boot = await asyncio.to_thread(machine.boot, self.directory, self._environ, self._root)
        return disk.Read(*read, boot, await asyncio.to_thread(self._state.lived), unread, self._state.refused)

    async def _claim(self) -> None:
        """Become the only owner of the state directory.

        The process with the service manager's sockets is the only agent here. The previous process has ended, unless it
        hangs in the kernel on a disk that does not answer: it is not waited for, and nothing is written until it is
        gone.

        Raises:
            HostError: another agent has it, and keeps it.
        """
        deadline = self._clock.boottime() + CLAIM_SECONDS
        while not await asyncio.to_thread(self._claimed):
            if self._activated:
                self._log.error("state.busy", reason="the process before this one hangs, and still owns the directory")
                return
            if self._clock.boottime() >= deadline:
                raise HostError(
                    f"state.directory: another agent uses {str(self.directory)!r}",
                    hint="two agents would take back each other's sequence numbers: stop the other (systemctl stop "
                    "credential-agent), or give this one a directory of its own",
                )
            await asyncio.sleep(0.05)

    def _claimed(self) -> bool:
        try:
            return self._state.claim()
        except HostError as error:
            # A file system without locks (some network ones) is no reason to leave a worker without identity.
            self._log.error("state.not_locked", reason=error.message)
            return True

    async def _loaded(self) -> tuple[tuple[Memory, bytes | None, bool, bool], bool]:
        """The memory, the sealed bundle, whether both may be written over, cannot be read, were refused."""
        again = iter(AGAIN_SECONDS)
        while True:
            try:
                memory, sealed = await asyncio.to_thread(self._state.load)
                seconds = next(again, None) if self._state.refused else None
                if seconds is None:
                    return (memory, sealed, True, False), False
            except HostError as error:
                cause = error.__context__
                seconds = next(again, None) if passes(cause) else None
                if seconds is None:
                    # A restore that gave it another owner, or a label that forbids it, says nothing of it either.
                    unread = refused(cause)
                    hint = error.hint or (REFUSED_HINT if unread else UNREADABLE_HINT)
                    self._log.error("memory.unreadable", reason=error.message, hint=hint)
                    await asyncio.to_thread(self._state.keep_broken)
                    return (closed_memory(""), None, not isinstance(error, StateVersionError), True), unread
            await asyncio.sleep(seconds)
