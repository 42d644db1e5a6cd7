"""How does what was accepted here before come back into force? And what if it is another machine's?

The memory of this instance comes from the previous process, or from the state directory; it is compared with who the
machine is (:func:`agent.identity.whose.whose`), now or once that is known. The bundle in force is opened again. A key
service may be slow, down or silent: it is not waited for long, and the clouds that the bundle decides are pending until
then.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec
import structlog

import agent
from agent import config
from agent.controller import Awaited, Controller
from agent.core.model import Cloud
from agent.core.verdict import Memory
from agent.core.view import Facts
from agent.daemon import compose, disk, grace, handover
from agent.daemon.age import aged
from agent.daemon.copy import Copy
from agent.daemon.gap import Gap
from agent.daemon.opening import Opened
from agent.daemon.prepare import Prepared
from agent.daemon.remembered import Remembered
from agent.daemon.succession import Succession
from agent.daemon.tokens import session_token_key
from agent.daemon.unending import unending
from agent.daemon.who import Who, hint
from agent.host import systemd
from agent.host.clock import SystemClock
from agent.host.state import closed_memory
from agent.identity.store import Store
from agent.identity.whose import Whose, whose
from agent.providers.machine import Machine

RESUME_SECONDS: Final = 1.0
"""How long the start waits for a key before workers are answered."""
LOOK_AT_RUN_SECONDS: Final = 0.5
HELD: Final = timedelta(days=3650)
"""The boot grace while a file that the configuration names has not answered yet."""


class Restorer:
    """See the module. Long because every answer to "whose is it" has to go the same way.

    Args:
        settings: what the process was started with.
        prepared: what was opened.
        who: who the machine is.
        remembered: the state directory.
        succession: what the previous process left.
        clock: time.
        rng: for the store and the controller.

    Attributes:
        began: since when a first bundle is waited for, in seconds of the machine's uptime.
        gap: whether the machine stood still.
        token_key: of the EC2 session tokens.
        controller: the controller, once it is made.
        resuming: the task that opens what was in force.
        recalling: the task that takes back what happened before.
        copying: the task that reads a sealed copy again.
        serving: whether the sources have begun to watch.
        audience: gives the audiences of the configuration in force.
    """

    def __init__(
        self,
        settings: config.Config,
        *,
        prepared: Prepared,
        who: Who,
        remembered: Remembered,
        succession: Succession,
        clock: SystemClock,
        rng: random.Random,
    ) -> None:
        left = succession.left
        self.began = clock.uptime()
        self.gap = Gap(clock, left.gap if left is not None else None)
        self.token_key = b""
        self.serving = False
        self.audience: Callable[[], Iterable[str]] = lambda: settings.identity.audience
        self.controller: Controller
        self.resuming: asyncio.Task[None]
        self.recalling: asyncio.Task[None]
        self.copying: asyncio.Task[None]
        self._settings = settings
        self._prepared = prepared
        self._who = who
        self._remembered = remembered
        self._succession = succession
        self.clock = clock
        self._rng = rng
        self._contradicted = False  # firmware or boot id contradict the metadata service's name
        self._anothers = False  # whether the memory was another machine's
        self._noted: grace.Began | None = None  # what a process of this boot left that was stopped
        self._resumed = False  # whether that was to be opened: from then on it is the intake's to try again
        self._vouched = False  # whether what goes on is more than the disk's alone
        self._late = False  # whether the state directory had not answered when this began
        self._log = structlog.get_logger()

    @property
    def may_settle(self) -> bool:
        """Whether a doubt about whose the memory is may end soon and by itself: a service has yet to say who we are.

        Where there is no service, or each has answered and is contradicted, only a person ends the doubt, or another
        answer of a service, which is not waited for.
        """
        return self._who.may_tell and not self._contradicted

    async def look_at_state(
        self, sockets: list[socket.socket], *, notifier: systemd.Notifier, stop: asyncio.Event, ready_seconds: float
    ) -> bool:
        """Have the state directory read, and wait for it as long as needed; false when told to stop meanwhile.

        Args:
            sockets: where requests come, which are refused while it is not known what was decided here.
            notifier: the service manager.
            stop: is set when we are to stop.
            ready_seconds: after so long we say that we are ready all the same.
        """
        left = self._succession.left
        self._remembered.begin()
        if not await self._remembered.wait(self._prepared.first_look.left):
            self._remembered.stalled(sockets)
            ready_at = self.clock.boottime() + ready_seconds
            if left is None and not await self._remembered.refuse_meanwhile(
                sockets, notifier=notifier, stop=stop, ready_at=ready_at
            ):
                return False
        handed = left.token_key if left is not None else None
        self.token_key = await asyncio.to_thread(session_token_key, self._remembered.directory, handed)
        return True

    async def reconcile(self) -> None:
        """Wait for a state directory that answers late: its memory may be later than what was handed over.

        Raises:
            HostError: it is later.
        """
        if not self._late:  # (it may have answered by now)
            return
        found = await self._remembered.later_than(self.controller.store.memory)
        since = aged(self._remembered.reading.result().lived, self.clock.now(), same_boot=True, replaced=False)
        self._prepared.age.begin(self.controller.store.memory, since)
        if found is not None:
            self.controller.durable.write()

    async def restore(
        self,
        found: list[Machine],
        *,
        changed: Callable[[], None],
        told: Callable[[], Awaitable[bool]],
        follow: Callable[[], bool],
    ) -> None:
        """Bring back the memory of this instance, and the bundle that was in force.

        Args:
            found: what the metadata services said.
            changed: see :class:`agent.controller.Controller`.
            told: likewise.
            follow: likewise.
        """
        succession, opening = self._succession, self._prepared.opening
        succession.take_credentials()
        left, late = succession.left, not self._remembered.reading.done()
        self._late = late
        boot = left.memory.boot_id if late and left is not None else ""
        away = disk.Read(closed_memory(""), None, write=False, broken=True, boot=boot)
        read, sealed, write, broken, self._who.boot_id, lived, *_ = away if late else self._remembered.reading.result()
        name = self._who.name(found, (read if left is None else left.memory).instance_id)
        brought = Memory() if left is None else left.brought
        if left is not None and self._evaluate(left.memory, name) is Whose.ANOTHERS:
            left = succession.left = None  # it is another machine's
        remembered, sealed = handover.reconcile(left, Memory() if broken and left is not None else read, sealed)
        write = write and (left is not None or late or not self._remembered.reading.result().unread)
        named, self._vouched = name or remembered.instance_id, remembered is not read
        waited, now = await self._waited(named), self.clock.now()
        if broken and not late:
            self._prepared.age.begin(remembered, None)
        elif not late:
            replaced = self._noted is not None and self._noted.memory not in {"", grace.digest(read)}
            same_boot = left is not None or read.boot_id == self._who.boot_id
            since = aged(lived, now, same_boot=same_boot, replaced=replaced)
            anothers = self._evaluate(remembered, name) is Whose.ANOTHERS
            self._prepared.age.begin(remembered, None if anothers else since)
        self._recorder = disk.Later(self._prepared.state, self._remembered.reading, self._recalled)
        awaited, policy = self._awaited(named), compose.policy(self._settings)
        store = Store(policy, remembered, now, self._rng, waited=waited, brought=brought, awaited=awaited)
        self.controller = Controller(
            store=store,
            issuer=self._prepared.mint,
            opener=opening,
            recorder=self._recorder,
            sources=[*self._prepared.sources, self._prepared.push],
            clock=self.clock,
            rng=self._rng,
            changed=changed,
            told=told,
            follow=follow,
        )
        opening.accepted = lambda: self.controller.durable.sealed
        opening.in_force, opening.policy = lambda: store.bundle is not None, lambda: store.state.policy
        before = left or self._noted
        self.controller.intake.awaited.go_on(() if before is None else before.awaited)
        self._begin_to_read()
        await asyncio.wait({self.recalling}, timeout=0.0 if late else LOOK_AT_RUN_SECONDS)
        self.controller.history.add(self.clock.now(), "started", "agent", f"version {agent.__version__}")
        if left is not None:
            self.controller.history.restore(left.history)
            self._who.audiences = frozenset(left.audiences)
            self.controller.observe(left.facts)
            signed = handover.decoded(left.signed)
            if sealed is not None and signed is not None and sealed == handover.decoded(left.sealed):
                opening.remember(sealed, Opened(signed, left.recipient))
        self.learn(found, self._settings.identity.audience)
        self._copy.found(remembered, sealed, self._remembered.refused)
        self.resuming = asyncio.create_task(self._resume(name, found, write=write), name="resume")
        await asyncio.wait({self.resuming}, timeout=RESUME_SECONDS)
        if write and (remembered != read or broken or "state.directory" in self._prepared.away.reasons):
            # At once: the next start must not find an empty memory, which allows the fallback. It is tried again.
            self.controller.durable.write()

    def _begin_to_read(self) -> None:
        recall = unending(self._take_back_history, work="history of before", sleep=self.clock.sleep)
        self.recalling = asyncio.create_task(recall, name="history of before")
        self._copy = Copy(self._remembered.directory, self.controller, self.clock)
        copying = unending(self._copy.run, work="copy of what was in force", sleep=self.clock.sleep)
        self.copying = asyncio.create_task(copying, name="copy of what was in force")

    async def _take_back_history(self) -> None:
        """Take back what happened before, once the disk says it. Nothing waits for it but the first writing of ours."""
        await asyncio.wait({self._remembered.reading})
        found = await asyncio.to_thread(self._prepared.state.history)
        self.controller.history.restore(() if self._anothers else found)
        self._recorder.history_read = True

    def _recalled(self, memory: Memory, sealed: bytes | None) -> bool:
        if self._evaluate(memory, self.controller.store.memory.instance_id) is not Whose.OURS:
            return False
        self._copy.found(memory, sealed, self._prepared.state.refused)
        return self.controller.intake.recall(memory, sealed, self._copy.why(memory.active))

    async def _resume(self, name: str, found: list[Machine], *, write: bool) -> None:
        await self._identified(name, found, self._settings.identity.audience, write=write)
        self.give_back()

    def give_back(self) -> None:
        """Give the store what the previous process held, once the bundle that it came from is in force."""
        sources = self._prepared.sources if not self.serving else []
        self._succession.give_back(self.controller, self._prepared.opening.trust, sources=sources)

    def changed(self) -> None:
        """The store may answer otherwise: give back what was left if its bundle is in force now, or none is any more.

        A withdrawal that comes before the bundle could be opened again ends it too: the service manager must not hold
        on to what was withdrawn.
        """
        store = self.controller.store
        if self._succession.pending and (store.bundle is not None or store.memory.active is None):
            self.give_back()

    async def identify_anew(self, found: list[Machine], name: str) -> None:
        """Act on what the services say of a machine that runs, until it is known; no ``name``: none says it is this."""
        self._who.audiences = frozenset()  # those of the name before: until it is said again, nothing is for us by it
        self._prepared.opening.answer_to(self.audience(), ())
        await self._identified(name, found, self.audience(), verdict=None if name else Whose.UNKNOWN)
        if self.controller.store.doubted:
            await self.identify_late(at_once=False)
        else:
            self.learn(found, self.audience())
            self.controller.intake.reconsider()

    async def _identified(
        self,
        name: str,
        found: list[Machine],
        audience: Iterable[str],
        *,
        write: bool = True,
        verdict: Whose | None = None,
    ) -> None:
        """Decide whose the memory is, and resume its bundle if it is ours."""
        who, left = self._who, self._succession.left
        if verdict is None and left is not None and not name and (left.doubted or self._vouched):
            # It was handed over, in this very boot, by a process that knew; or by one that had a reason to doubt, and
            # what the firmware says was no answer to that.
            verdict = Whose.UNKNOWN if left.doubted else Whose.OURS
        verdict = verdict or self._evaluate(self.controller.store.memory, name)
        if verdict is Whose.OURS and not name and self._noted is not None and self._noted.doubted:
            verdict = Whose.UNKNOWN  # nobody has said since that it is this machine's
        if verdict is Whose.ANOTHERS:
            # What was brought is opened anew: the intake has it.
            self._anothers, self._resumed, self._copy.sealed = True, True, None
            who.audiences = frozenset()
            self._succession.drop()
            self._prepared.opening.forget(but=None)
            self.controller.observe(who.learn(found, Facts()))  # what was said of this machine stays
        if verdict is Whose.UNKNOWN and not name:
            self._log.warning("memory.doubtful", hint="nothing it decided is served until this machine's name is known")
        elif verdict is Whose.UNKNOWN and not self._contradicted:
            former = self.controller.store.memory.instance_id
            self._log.error("memory.contradicted", was=former, now=name, hint=hint(former, name))
        self._contradicted = verdict is Whose.UNKNOWN and bool(name)
        if self._contradicted:
            who.audiences = frozenset()  # a bundle for that other name is not for this machine, so far
            self._prepared.opening.answer_to(audience, ())
        sealed = None
        if verdict is Whose.OURS and (self.controller.store.doubted or not self._resumed):
            # A doubt sets aside what was in force or was being opened; here it comes back.
            self._resumed, sealed = True, self.controller.durable.sealed or self._copy.sealed
            self.learn(found, audience)  # it may be addressed to the name that is ours again
        unread = self._copy.why(self.controller.store.memory.active)
        await self.controller.intake.identified(
            verdict, name, boot_id=who.boot_id, firmware=who.firmware, sealed=sealed, unread=unread, write=write
        )
        with contextlib.suppress(ValueError):
            # Its name is one that a metadata service gave it, so there is one, whatever answers in its place just now.
            if verdict is Whose.OURS:
                self._prepared.mint.expect(Cloud(self.controller.store.memory.instance_id.partition(":")[0]))

    def _evaluate(self, memory: Memory, name: str) -> Whose:
        return whose(memory, name, boot_id=self._who.boot_id, firmware=self._who.firmware)

    async def identify_first(self, found: list[Machine], *, at_once: bool) -> None:
        """Find out who this machine is, where the services have not said so yet.

        Args:
            found: what they said at the start.
            at_once: see :meth:`identify_late`.
        """
        if self._who.may_tell and (not found or self._who.silent or self.controller.store.doubted):
            await self.identify_late(at_once=at_once)

    async def identify_late(self, *, at_once: bool) -> None:
        """The metadata service did not answer at the start: act on what it says then.

        Args:
            at_once: ask without a pause first: it was not asked yet.
        """
        while True:
            found = await self._who.ask_until_known(self.controller.store.memory.instance_id, at_once=at_once)
            name = self._who.name(found, self.controller.store.memory.instance_id)
            await self._identified(name, found, self.audience())
            if not self.controller.store.doubted:
                break
            at_once = False
        self.learn(found, self.audience())
        self.controller.intake.reconsider()

    def learn(self, found: list[Machine], audience: Iterable[str]) -> None:
        """Take note of what the metadata services said, beside the ``audience`` of the configuration."""
        facts = self._who.learn(found, self.controller.store.facts())
        self._prepared.opening.answer_to(audience, self._who.audiences)
        self.controller.observe(facts)

    @property
    def known(self) -> grace.Began:
        """What a process that begins after a stop, in the same boot, must know."""
        store = self.controller.store
        return grace.Began(
            store.memory.instance_id,
            self.began,
            self._kernel,
            doubted=store.doubted,
            gap=self.gap.known,
            awaited=tuple(sorted(store.state.awaited)),
            holding=self._prepared.holding,
        )

    def _awaited(self, name: str) -> dict[Cloud, str]:
        """What is waited for in any case: what the metadata service may have, or what the process before waited for."""
        left = self._succession.left
        if left is not None and left.memory.instance_id in ("", name):
            return left.awaited
        before = dict.fromkeys(self._noted.awaited if self._noted else (), "the agent waited when it was stopped")
        return before | Awaited(self._prepared.sources).why if self._settings.keys else {}

    @property
    def _kernel(self) -> str:
        """The boot of the kernel, whatever directory the state is in by now."""
        return self._who.boot_id.partition(":")[0]

    @property
    def known_at_the_end(self) -> grace.Began:
        """The same after everything was written down."""
        ended = "" if not self.controller.durable.on_disk else grace.digest(self.controller.store.memory)
        return msgspec.structs.replace(self.known, memory=ended)

    async def _waited(self, name: str) -> timedelta:
        """How much of the boot grace has passed already for the machine of that name."""
        left = self._succession.left
        if left is not None and left.memory.instance_id in ("", name):
            self.began = self.began if left.holding else left.began
        else:  # the process before had another name's, if it had one: this one's bundle comes by itself
            directory, uptime = Path(self._settings.listen.control).parent, self.clock.uptime()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AT_RUN_SECONDS):
                    noted = await asyncio.to_thread(grace.read, directory, uptime=uptime)
                    if noted is not None and noted.is_of(name) and noted.boot in {"", self._kernel}:
                        self.began = self.began if noted.holding else noted.began
                        if noted.boot == self._kernel:
                            self._noted = noted
                            self.gap.go_on(noted.gap or self.gap.known)
        if self._prepared.holding:
            return -HELD
        return timedelta(seconds=self.clock.uptime() - self.began)
