"""The state that outlives the process, and its one owner: nobody else changes it, in memory or on the disk.

The rules:

1. **Taking away needs nothing.** A withdrawal, and the forgetting of another machine's memory, take effect in memory
   at once; then the copy on the disk is removed, then it is written that it was. No stalled or full disk is in the way.
2. **Giving is written first**, as long as the disk answers within :data:`PATIENCE_SECONDS`: a crash in between must
   not be a downgrade to the machine's identity. A disk that is full, read-only or stalled keeps no worker from its
   identity: the bundle is put in force all the same, and the acknowledgement says that a restart would forget it.
3. **No update is lost.** What was evaluated before the disk was waited for is evaluated again afterwards; what happened
   meanwhile (a withdrawal, the machine's name) stays.
4. **An acknowledgement is the truth**: ``durable`` is said of what is on the disk, and of nothing else. A write that
   failed is repeated until it succeeds.
5. **What was brought stays.** A memory that turns out to be another machine's is forgotten, except what was brought to
   this machine in this boot: a withdrawal that was acknowledged here holds, whatever the machine is called afterwards,
   unless it was addressed to the other machine by its name alone (:func:`agent.identity.admission.brought`).

The disk sees one writer at a time, and always the newest state: a state that a newer one overtook is not written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Final, NamedTuple, Protocol

import structlog

from agent.controller.noting import Notebook, Noting
from agent.core.clock import Clock
from agent.core.errors import HostError
from agent.core.history import History
from agent.core.model import Action, Bundle
from agent.core.verdict import Accepted, Memory, Refused, Same, Verdict
from agent.identity.events import (
    BundleAccepted,
    BundleBrought,
    BundleRevoked,
    MemoryAdopted,
    MemoryDoubted,
    MemoryRecalled,
    MemoryReset,
)
from agent.identity.store import Store

PATIENCE_SECONDS: Final = 2.0
"""How long a caller waits for the disk. After that the disk counts as stalled, and nobody waits for it until it
answers."""

WRITE_AGAIN_SECONDS: Final = 30.0
"""Between attempts to write a memory down that a full disk refused."""

_STALLED: Final = "the disk of the state directory does not answer"
NEVER: Final = float("inf")


class Recorder(Notebook, Protocol):
    """Writes down what must outlive the process. Raises :class:`HostError`."""

    async def save(self, memory: Memory, sealed: bytes | None) -> None:
        """Write the memory, and the sealed bytes of the bundle in force (``None``: drop them), each atomically."""


class Outcome(NamedTuple):
    """The verdict on a bundle, and whether a restart will know of it."""

    verdict: Verdict
    durable: bool


class Durable:
    """See the module. Long because it is the one owner: whoever changes what outlives the process does so here.

    Args:
        store: the state machine, whose memory is written.
        recorder: the disk.
        clock: time.
        history: what happened lately. It is written now and then, and before the end; nothing waits for it.

    Attributes:
        sealed: the bundle in force, as it came; ``None`` when there is none.
        unwritten: the disk does not hold what the memory says: a restart would forget.
        write_at: boot-time seconds: when to call :meth:`retry`.
        noting: the history.

    Resources: one task while something is being written, which outlives the caller that asked for it.
    """

    def __init__(self, store: Store, recorder: Recorder, clock: Clock, history: History | None = None) -> None:
        self.noting = Noting(history or History(), recorder, clock)
        self.sealed: bytes | None = None
        self.unwritten = False
        self.write_at = NEVER
        self._store = store
        self._recorder = recorder
        self._clock = clock
        self._log = structlog.get_logger()
        self._giving = asyncio.Lock()  # one acceptance at a time; what takes away does not wait for it
        self._wanted: tuple[int, Memory, bytes | None] | None = None  # what to write next
        self._asked = self._tried = self._written = 0  # numbers of states: asked for, tried, on the disk
        self._progress = asyncio.Event()
        self._broke_off = False  # since it was written last: it is to be written whatever was written
        self._unless_brought: MemoryAdopted | None = None
        self._writer: asyncio.Task[None] | None = None

    # -- giving -----------------------------------------------------------------------------------------------------

    async def submit(
        self, bundle: Bundle, sealed: bytes, still: Callable[[], bool] = lambda: True, *, copy: bool = False
    ) -> Outcome | None:
        """Evaluate an opened bundle and, if it is accepted, put it in force.

        A caller that is cancelled must not leave half of it: shield it.

        Args:
            bundle: what was opened and verified.
            sealed: as it came.
            still: whether what it was verified by is still so.
            copy: it is our own copy of what was in force before a restart: nobody brought it, and it may be over.

        Returns:
            ``None``: it is not any more, and nothing was put in force: verify it again.
        """
        with self._whole():
            if bundle.action is Action.WITHDRAW:
                return await self._withdraw(bundle, copy=copy)
            return await self._give(bundle, sealed, still, copy=copy)

    async def _give(self, bundle: Bundle, sealed: bytes, still: Callable[[], bool], *, copy: bool) -> Outcome | None:
        async with self._giving:
            if not still():
                return None
            verdict = self._store.evaluate(bundle, self._clock.now(), resume=copy and self._store.bundle is None)
            if not isinstance(verdict, Accepted):
                return await self._nothing_new(verdict, bundle, copy=copy)
            while True:
                asked, durable = await self._write(verdict.memory, sealed)
                if not still():
                    await self._write(self._store.memory, self.sealed)
                    return None
                again = self._store.evaluate(bundle, self._clock.now(), resume=copy and self._store.bundle is None)
                if not isinstance(again, Accepted):
                    # A withdrawal came first, or the lease ended: the disk holds a state that is not in force.
                    await self._write(self._store.memory, self.sealed)
                    return Outcome(again, durable=not self.unwritten)
                if again.memory == verdict.memory:
                    break
                verdict = again
            self._put(again, sealed, self._clock.now(), copy=copy)
            if self._settled() or self._asked != asked:
                # Somebody had the state of before this bundle written down meanwhile, and later than it.
                _, durable = await self._write(self._store.memory, self.sealed)
                mark = self._store.memory.mark(bundle.issuer, bundle.subject)
                if mark is None or mark.seq < bundle.seq:
                    # The memory was found to be another machine's while this was written: it is not what was verified.
                    return None
        return Outcome(again, durable)

    @property
    def is_giving(self) -> bool:
        """Whether a bundle that was opened is about to come into force."""
        return self._giving.locked()

    @property
    def on_disk(self) -> bool:
        """Whether the disk holds the present state: it took the last one, and none is being written."""
        return not self.unwritten and self._writer is None

    async def _nothing_new(self, verdict: Same | Refused, bundle: Bundle, *, copy: bool) -> Outcome:
        if isinstance(verdict, Refused):
            return Outcome(verdict, durable=not self.unwritten)
        if not copy and not (self._store.doubted and bundle.action is Action.SET):  # is it for this machine?
            self._store.apply(BundleBrought(bundle), self._clock.now())
        if self.on_disk:
            return Outcome(verdict, durable=True)
        _, durable = await self._write(self._store.memory, self.sealed)
        return Outcome(verdict, durable)

    def resume(self, bundle: Bundle, sealed: bytes, now: datetime) -> Verdict:
        """Put back in force what an earlier process of this instance had accepted and written down."""
        verdict = self._store.evaluate(bundle, now, resume=True)
        if isinstance(verdict, Accepted):
            self._put(verdict, sealed, now, copy=True)
        return verdict

    def _put(self, verdict: Accepted, sealed: bytes | None, now: datetime, *, copy: bool) -> None:
        """Let it be in force with the bytes that it came in, also where nobody can be told of it for want of memory."""
        try:
            self._store.apply(BundleAccepted(verdict, again=copy), now)
        finally:
            if self._store.memory is verdict.memory:
                self.sealed = sealed

    def lease_anew(self, bundle: Bundle, now: datetime) -> bool:
        """Take the bundle in force as it reads now: its signer may give a shorter lease now, or a longer one."""
        verdict = self._store.evaluate(bundle, now, resume=True)
        if isinstance(verdict, Accepted):
            self._store.apply(BundleAccepted(verdict, again=True), now)
        return isinstance(verdict, Accepted)

    # -- taking away ------------------------------------------------------------------------------------------------

    async def _withdraw(self, bundle: Bundle, *, copy: bool) -> Outcome:
        now = self._clock.now()
        verdict = self._store.evaluate(bundle, now)
        if not isinstance(verdict, Accepted):
            return await self._nothing_new(verdict, bundle, copy=copy)
        self._put(verdict, None if verdict.memory.active is None else self.sealed, now, copy=copy)
        _, durable = await self._write(self._store.memory, self.sealed)
        return Outcome(verdict, durable)

    def revoke(self, now: datetime) -> None:
        """End the bundle in force: it would not be resumed. The memory stays, and the rules with it."""
        self._store.apply(BundleRevoked(), now)

    # -- whose it is ------------------------------------------------------------------------------------------------

    def adopt(self, instance_id: str, boot_id: str, firmware: Mapping[str, str], *, write: bool = True) -> None:
        """The memory is this machine's, which has that name: write it down at once, or a clone would not know."""
        with self._whole() if write else contextlib.nullcontext():
            if self._store.take(MemoryAdopted(instance_id, boot_id, firmware), self._clock.now()) and write:
                self._ask(self._store.memory, self.sealed)

    def reset(self, instance_id: str, boot_id: str, firmware: Mapping[str, str]) -> None:
        """The memory is another machine's: nothing of it is ours but what was brought to this one."""
        self.noting.clear()
        self._unless_brought = None
        with self._whole():
            try:
                self._store.apply(MemoryReset(instance_id, boot_id, firmware), self._clock.now())
            finally:
                if self._store.memory.active is None:
                    self.sealed = None
            self._ask(self._store.memory, self.sealed)

    def recall(self, memory: Memory) -> bool:
        """Know what could not be read at the start, unless in doubt; whether its bundle may come back into force."""
        with self._whole():
            before = self._store.bundle
            known = self._store.take(MemoryRecalled(memory), self._clock.now())
            if before is not None and self._store.bundle is None:
                self.sealed = None
            return known

    def doubt(
        self, why: str, instance_id: str = "", boot_id: str = "", firmware: Mapping[str, str] | None = None
    ) -> None:
        """The owner of the memory is not known yet: its decisions wait for ``adopt`` or ``reset``.

        Where the name is the memory's own, only the network cards object (:mod:`agent.identity.whose`), and a bundle
        that is brought ends the doubt: nothing in force was found here then, and if it were doubted on, each restart
        would set aside what was brought.
        """
        same = bool(instance_id) and instance_id == self._store.memory.instance_id
        self._unless_brought = MemoryAdopted(instance_id, boot_id, firmware or {}) if same else None
        self._store.apply(MemoryDoubted(why), self._clock.now())

    def _settled(self) -> bool:
        adopted, self._unless_brought = self._unless_brought, None
        return adopted is not None and self._store.take(adopted, self._clock.now())

    # -- the disk ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Have the state written anew, soon, if this breaks off: what is on the disk may then be another state.

        Whoever brought a bundle brings it again, and hears that nothing is new: that must not pass for written down.
        """
        try:
            yield
        except BaseException:
            self._broke_off = self.unwritten = True
            self.write_at = 0.0
            raise

    def write(self) -> None:
        """Have the present state written down. Returns at once."""
        self._ask(self._store.memory, self.sealed)

    def retry(self) -> None:
        """Try again to write what the disk refused. Returns at once."""
        self.write_at = NEVER
        if self._broke_off or (self.unwritten and self._writer is None):
            self._ask(self._store.memory, self.sealed)
            self._broke_off = False

    async def last(self, seconds: float) -> None:
        """Before the process ends: have what was not written yet written after all, if the disk takes it in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds / 2):
                await self.noting.last()
        if self.on_disk:
            return
        number = self._ask(self._store.memory, self.sealed)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._tried < number:
                    await self._progress.wait()

    def _ask(self, memory: Memory, sealed: bytes | None) -> int:
        self._asked += 1
        self._wanted = (self._asked, memory, sealed)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_on(), name="memory")
        asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._look, self._asked)
        return self._asked

    def _look(self, number: int) -> None:
        """Perhaps nobody waits for this write; a hanging disk must be reported all the same."""
        if self._tried < number:
            self._cannot(_STALLED)

    async def _write(self, memory: Memory, sealed: bytes | None) -> tuple[int, bool]:
        """Have that state, or a newer one, on the disk.

        Returns:
            The number under which it was asked for; and false if the disk refuses it, or does not answer in time.
        """
        stalled = self.unwritten and self._writer is not None
        number = self._ask(memory, sealed)
        try:
            async with asyncio.timeout(0.0 if stalled else PATIENCE_SECONDS):
                while self._tried < number:
                    await self._progress.wait()
        except TimeoutError:
            self._cannot(_STALLED)
        return number, self._written >= number

    async def _write_on(self) -> None:
        whole = False
        try:
            await self._write_all()
            whole = True
        finally:
            self._writer = None
            if not whole:  # also before its first step
                self._broke_off = self.unwritten = True
                self.write_at = 0.0

    async def _write_all(self) -> None:
        while self._wanted is not None:
            (number, memory, sealed), self._wanted = self._wanted, None
            try:
                await self._recorder.save(memory, sealed)
            except HostError as error:
                # A full disk must not keep a worker from its identity; but someone must hear that a restart would
                # forget.
                self._failed(error.message)
            except Exception as error:  # noqa: BLE001 - the controller's border: whatever it is, it is tried again
                self._log.error("memory.crashed", error=type(error).__name__, exc_info=True)
                self._failed(f"internal error: {type(error).__name__}")
            else:
                self._written = number
                if not self._broke_off and self._wanted is None:
                    self._can()
            self._tried = number
            progress, self._progress = self._progress, asyncio.Event()
            progress.set()

    def _failed(self, reason: str) -> None:
        self._cannot(reason)
        self.write_at = self._clock.boottime() + WRITE_AGAIN_SECONDS

    def _cannot(self, reason: str) -> None:
        if not self.unwritten:
            self._log.error("memory.not_written", reason=reason)
        self.unwritten = True

    def _can(self) -> None:
        if self.unwritten:
            self._log.info("memory.written")
        self.unwritten = False
        self.write_at = NEVER
