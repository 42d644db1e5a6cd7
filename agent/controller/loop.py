"""The one loop: it watches the sources, begins what is due, and tells the listeners when something changed.

It decides nothing: :mod:`agent.identity` does. This package alone lets events happen there, all from one event loop, so
a credential is asked for once at a time and the listeners, which only look, need no lock. Bundles come in by
:mod:`agent.controller.intake`, credentials by :mod:`agent.controller.issuing`; what outlives the process belongs to
:mod:`agent.controller.durable` alone.

Resources: one task for each source and each piece of work under way, one loop. All end with :meth:`Controller.run`.

Errors: nothing a source, a bundle or an upstream does ends the loop. The three kinds of failure are told apart (a
source is broken, a bundle is refused, a credential is not issued), each logged once where it happens, counted, and
never allowed to take away what is served.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final, NoReturn

import structlog

from agent.controller.durable import Durable, Recorder
from agent.controller.intake import Intake
from agent.controller.issuing import Issuer, Issuing
from agent.controller.opener import Contained, Opener, is_for_want
from agent.controller.seldom import Seldom
from agent.controller.tasks import Tasks
from agent.core import refresh
from agent.core.clock import Clock
from agent.core.counters import Counters, bump
from agent.core.errors import SourceError, UnansweredError, UnreadableError
from agent.core.history import History
from agent.core.model import SealedBundle
from agent.core.source import Ack, Source
from agent.core.text import instant
from agent.core.verdict import Event, Notice, Policy
from agent.core.view import Facts
from agent.identity import leftovers
from agent.identity.events import (
    ClockMoved,
    FirstAwaited,
    GraceMoved,
    Holding,
    MachineObserved,
    MintedFor,
    PolicyChanged,
    Remnant,
    TimeDoubted,
    Waiting,
)
from agent.identity.notices import next_look
from agent.identity.store import Store

MOVED_SECONDS: Final = 0.5
"""Below this our clock was not moved: it was only read twice, one reading after the other."""


async def _nobody() -> bool:
    """Nobody answers workers from elsewhere."""
    return True


class Controller:
    """See the module. Long because it is the one place where the parts meet and are told apart.

    Args:
        store: the state machine.
        issuer: where credentials come from.
        opener: what opens bundles; ``None`` when no key is configured: every submission is then refused.
        recorder: what writes the memory down.
        sources: the ways in.
        clock: time.
        rng: for retries.
        changed: called on the loop whenever an answer may have changed; it must not block.
        told: waits until whoever answers workers has what was told last; false: that could not be learned in time. No
            bundle is acknowledged before.
        follow: looks at the machine's clocks, each time round; may move our time. Returns whether there is a reason to
            ask the clouds for the time.

    Attributes:
        intake: bundles on their way in.
        issuing: credentials on their way in.
        durable: what outlives the process.
        counters: since the start.
        source_state: by source: ``starting``, ``ok``, or what is wrong with it.
        source_read: by source: when it was last read, or failed to be.
        history: what happened lately.
        last_step: when the loop last went round, in boot-time seconds: what a watchdog must look at.
    """

    def __init__(
        self,
        *,
        store: Store,
        issuer: Issuer,
        opener: Opener | None,
        recorder: Recorder,
        sources: Sequence[Source],
        clock: Clock,
        rng: random.Random,
        changed: Callable[[], None] = lambda: None,
        told: Callable[[], Awaitable[bool]] = _nobody,
        follow: Callable[[], bool] = lambda: False,
    ) -> None:
        self.store = store
        self.counters = Counters()
        self.source_state: dict[str, str] = {source.name: "starting" for source in sources}
        self.source_read: dict[str, datetime] = {}
        self.history = History()
        self.durable = Durable(store, recorder, clock, self.history)
        self._sources = {source.name: source for source in sources}
        self._clock = clock
        self._rng = rng
        self._changed = changed
        self._follow = follow
        self._offset = self._our_offset()
        self._doubtful = False  # whether there is a doubt about our clock that could not be followed up yet
        self._log = structlog.get_logger()
        self._seldom = Seldom(clock.boottime)
        self._woken = asyncio.Event()
        self._version = -1
        self._tasks = Tasks()
        self.intake = Intake(
            store,
            self.durable,
            None if opener is None else Contained(opener),
            self._sources,
            clock=clock,
            rng=rng,
            counters=self.counters,
            history=self.history,
            tasks=self._tasks,
            wake=self._woken.set,
            changed=self._notify,
            told=told,
        )
        self.issuing = Issuing(
            store,
            issuer,
            clock=clock,
            counters=self.counters,
            history=self.history,
            tasks=self._tasks,
            wake=self._woken.set,
        )
        self.last_step = clock.boottime()

    # -- what the daemon learns -------------------------------------------------------------------------------------

    def observe(self, facts: Facts) -> None:
        """Take note of what the machine's real metadata said."""
        self.store.apply(MachineObserved(facts), self._clock.now())

    def reconfigure(self, policy: Policy) -> None:
        """Take another policy (a reload)."""
        self.store.apply(PolicyChanged(policy), self._clock.now())

    def await_bundle(self, seconds: float) -> None:
        """Wait so long from now on for a first bundle: what would bring it could not be asked so far."""
        now = self._clock.now()
        self.store.apply(GraceMoved(now + timedelta(seconds=seconds)), now)
        self._woken.set()

    def restore(self, holdings: Iterable[Holding]) -> int:
        """Take back what an earlier process held, as far as it still belongs here; how many."""
        now = self._clock.now()
        return sum(self.store.take(holding, now) for holding in holdings)

    def restore_id_tokens(self, left: Iterable[MintedFor]) -> None:
        """Take back the identity tokens of whoever is still served."""
        now = self._clock.now()
        for one in left:
            event = leftovers.minted(self.store.state, one, now)
            if event is not None:
                self.store.apply(event, now)

    def go_on(self, remnants: Iterable[Remnant], waiting: Iterable[Waiting]) -> None:
        """Serve on what an earlier bundle left, and retry from where an earlier process stood."""
        now = self._clock.now()
        for remnant in remnants:
            self.store.apply(remnant, now)
        for one in waiting:
            self.store.apply(one, now)

    # -- the loop ---------------------------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            for source in self._sources.values():
                group.create_task(self._watch(source), name=f"source {source.name}")
            group.create_task(self._keep(), name="controller")
        raise AssertionError("internal error: the controller ended")  # pragma: no cover

    async def _keep(self) -> NoReturn:
        try:
            while True:
                self._woken.clear()
                self.step()
                now = self._clock.now()
                seconds = (next_look(self.store.state, now) - now).total_seconds()
                again = min(self.intake.due_at, self.durable.write_at)
                await self._sleep(min(seconds, again - self._clock.boottime()))
        finally:
            self._tasks.cancel()

    def step(self) -> None:
        """Once round: tell what changed, start what is due. Never blocks."""
        doubtful = self._follow()
        self.rebase()
        now = self._clock.now()
        if doubtful:
            self.intake.reconsider()  # what time was lost moves no offset, and what was far ahead may be due
        if doubtful or self._doubtful:
            self._doubtful = not self.store.take(TimeDoubted(), now)
        self.last_step = self._clock.boottime()
        for notice in self.store.tick(now):
            self._tell(notice)
        self.intake.step(self.last_step)
        self.store.apply(FirstAwaited(self.intake.awaited.why), now)
        if self.durable.write_at <= self.last_step:
            self.durable.retry()
        self.durable.noting.note()
        self.issuing.settle()
        for work in self.store.due(now):
            self.issuing.begin(work)
        self._notify()

    async def _sleep(self, seconds: float) -> None:
        """Sleep on the injected clock, or until something wakes the loop."""
        sleeper = asyncio.ensure_future(self._clock.sleep(max(seconds, 0.0)))
        sleeper.add_done_callback(lambda slept: None if slept.cancelled() else self._woken.set())
        try:
            await self._woken.wait()
        finally:
            sleeper.cancel()

    def _notify(self) -> None:
        version = self.store.version
        if version != self._version:
            self._changed()
            self._version = version  # after it: what breaks off is told once more

    async def _watch(self, source: Source) -> NoReturn:
        name, on_error, on_success = (
            source.name,
            partial(self._source_failed, source),
            partial(self._source_worked, source.name),
        )

        async def submit(sealed: SealedBundle) -> Ack:
            return await self.intake.submit(sealed)

        attempt = 0
        while True:
            try:
                await source.watch(submit, on_error=on_error, on_success=on_success)
            except Exception as error:  # noqa: BLE001 - the controller's border: one source must not end the others
                attempt += 1
                self._log.error("source.crashed", source=name, error=type(error).__name__, exc_info=True)
                kind = UnansweredError if is_for_want(error) else SourceError
                on_error(kind(f"crashed: {type(error).__name__}"))
                await self._clock.sleep(refresh.retry_seconds(attempt, None, denied=True, rng=self._rng))

    def _source_failed(self, source: Source, error: SourceError) -> None:
        name, before = source.name, self.source_state.get(source.name)
        self.intake.awaited.failed(name, error)
        self._woken.set()  # it may have been waited for
        bump(self.counters.source_troubles, name)
        self.source_state[name], self.source_read[name] = error.message, self._clock.now()
        if before == error.message:
            return  # once a change, not at each attempt: a source that is down for a night fills no journal
        if isinstance(error, UnreadableError):
            self.intake.unreadable(source, error)
            return
        self.history.add(self._clock.now(), "source-failed", name, error.message)
        if (unsaid := self._seldom.unsaid("source.failed", name)) is not None:
            self._log.warning("source.failed", source=name, reason=error.message, hint=error.hint, unsaid=unsaid)

    def _source_worked(self, name: str) -> None:
        before, self.source_state[name] = self.source_state.get(name), "ok"
        self.intake.awaited.answered(name)
        self.source_read[name] = self._clock.now()
        if before != "ok":
            self._woken.set()  # it may have been waited for
        if before in ("ok", "starting"):
            return
        self.history.add(self._clock.now(), "source-recovered", name, "it can be read again")
        if (unsaid := self._seldom.unsaid("source.recovered", name)) is not None:
            self._log.info("source.recovered", source=name, unsaid=unsaid)

    # -- time -------------------------------------------------------------------------------------------------------

    def time_moved(self) -> None:
        """Our time was moved, the machine resumed, or somebody doubts our time: go round now.

        To be called by whoever heard of it. The instants that are waited for are moved along before anything else is
        done.
        """
        self.rebase()
        self.intake.reconsider()
        self._woken.set()

    def rebase(self) -> None:
        """See whether our clock was moved, and if so move what was counted from a moment of it.

        To be called by whoever moves the clock, before anything else is done: no reader may see a new time beside old
        deadlines.
        """
        offset = self._our_offset()
        by = offset - self._offset
        if abs(by) < MOVED_SECONDS:
            return
        self._offset = offset
        self.issuing.scoped.moved(timedelta(seconds=by))
        self.store.apply(ClockMoved(timedelta(seconds=by)), self._clock.now())
        self._log.warning("clock.corrected", seconds=round(by, 1))
        self.intake.verify_anew()
        self.intake.reconsider()

    def _our_offset(self) -> float:
        return self._clock.now().timestamp() - self._clock.boottime()

    def _tell(self, notice: Notice) -> None:
        say = {Event.IDENTITY: self._log.info, Event.ENDED: self._log.error, Event.HORIZON: self._log.warning}
        horizon = instant(notice.horizon) if notice.horizon is not None else None
        kind = {Event.IDENTITY: "identity", Event.ENDED: "ended", Event.HORIZON: "ends-soon"}[notice.event]
        self.history.add(self._clock.now(), kind, str(notice.cloud), notice.why or "")
        say[notice.event](notice.event, cloud=notice.cloud, origin=notice.origin, why=notice.why, horizon=horizon)
