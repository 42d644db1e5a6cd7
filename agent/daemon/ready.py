"""Is it ready, and is it alive? Tells the service manager, and feeds its watchdog."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import structlog

from agent.core.model import Cloud
from agent.core.view import Live, Pending
from agent.daemon.pulse import Pulse
from agent.host import memory, systemd, ticks
from agent.host.clock import SystemClock
from agent.host.notifying import TELL_AGAIN_SECONDS
from agent.identity.store import Store

READY_AFTER_SECONDS: Final = 10.0
"""After the grace. A unit that depends on us starts late rather than never: its jobs then see the outage."""
LOOK_AGAIN_SECONDS: Final = 0.05
LOOKS: Final = 20
"""So often, and as far apart, somebody is looked for who answers, before it is told that nobody does."""
STALE_LOOP_SECONDS: Final = 90.0
"""The controller's loop runs at least once a minute; one that has not for this long is stuck."""


class Readiness:
    """See the module.

    Args:
        notifier: the service manager.
        clock: time.
        store: what is served.
        started: when this process did.

    Attributes:
        told: whether the service manager was told that we are ready.
        answers: tells whether workers are answered.
    """

    def __init__(self, notifier: systemd.Notifier, clock: SystemClock, store: Store, started: datetime) -> None:
        self.told = False
        self._reloads = False  # whether one is under way that was announced
        self._again: asyncio.TimerHandle | None = None
        self._status: asyncio.TimerHandle | None = None
        self.answers: Callable[[], bool] = lambda: True
        self._notifier = notifier
        self._clock = clock
        self._store = store
        self._started = started
        self._log = structlog.get_logger()

    def status_line(self) -> str:
        """A line that says whose identity is served."""
        now = self._clock.now()
        said = []
        for cloud in Cloud:
            answer = self._store.answer(cloud, now)
            said.append(f"{cloud}: {answer.name} ({answer.origin})" if isinstance(answer, Live) else f"{cloud}: none")
        return ("" if self.answers() else "nobody answers workers: they wait; ") + ", ".join(said)

    def tell_status(self) -> None:
        """Tell the service manager whose identity is served.

        That nobody answers is told once it lasts, since what was published just now is yet to be taken; and then, when
        somebody does again.
        """
        if self._status is not None:
            self._status.cancel()
            self._status = None
        if self._notifier.active:
            self._tell_status(LOOKS if self.told else 0)

    def _tell_status(self, looks: int) -> None:
        answers = self.answers()
        if answers or looks == 0:
            self._notifier.status(self.status_line())
        self._status = None
        if not answers:
            pause = LOOK_AGAIN_SECONDS if looks > 0 else TELL_AGAIN_SECONDS
            self._status = asyncio.get_running_loop().call_later(pause, self._tell_status, looks - 1)

    async def tell(
        self, seconds: float, settled: Callable[[], Awaitable[object]], may_settle: Callable[[], bool]
    ) -> None:
        """Say that we are ready once no answer is pending, or when waiting longer would not help.

        Args:
            seconds: how long an answer may be pending.
            settled: waits for what else must be there: workers' answers, and the environment files.
            may_settle: whether a doubt about whose the memory is may end by itself. Else it is not waited for: while it
                lasts, no cloud that a bundle decided is served.
        """
        deadline = self._clock.boottime() + seconds
        while self._clock.boottime() < deadline:
            if not any(self._awaited(cloud, may_settle) for cloud in Cloud):
                break
            await asyncio.sleep(0.05)
        self.tell_status()
        await settled()
        self.told = True
        self._say_ready()
        memory.compact()
        self._log.info("agent.ready", seconds=round((self._clock.now() - self._started).total_seconds(), 3))

    def _awaited(self, cloud: Cloud, may_settle: Callable[[], bool]) -> bool:
        now = self._clock.now()
        if not isinstance(self._store.answer(cloud, now), Pending):
            return False
        return may_settle() or not self._store.doubts(cloud, now)

    def reload_began(self) -> None:
        """Begin a reload. Its end is told by ``READY=1``, as that of a start is, which it must not announce early."""
        if self.told:
            self._reloads = True
            self._notifier.reloading(monotonic_seconds=time.monotonic())

    def reload_ended(self) -> None:
        """See :meth:`reload_began`."""
        self._reloads = False
        if self.told:
            self._say_ready()

    def _say_ready(self) -> None:
        """Say so, until it is heard. Its queue may be full: a start that is never announced would be ended by it."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._reloads or not self._notifier.active:
            return  # during a reload that would be its end
        heard = False
        try:
            heard = self._notifier.ready(self.status_line())
        finally:
            if not heard:  # also where it broke off
                self._again = asyncio.get_running_loop().call_later(TELL_AGAIN_SECONDS, self._say_ready)

    async def feed_watchdog(self, seconds: float, last_step: Callable[[], float]) -> None:
        """Feed it only while the controller's loop runs; that this runs shows that the event loop does.

        Args:
            seconds: after which the service manager would end us.
            last_step: when the controller's loop last ran.
        """
        pulse = Pulse(STALE_LOOP_SECONDS)
        answers = self.answers()
        while True:
            if answers != (answers := self.answers()):
                self.tell_status()
            told = not pulse.beats(last_step(), time.monotonic()) or self._notifier.alive()
            pause = seconds / 3 if told else min(seconds / 3, TELL_AGAIN_SECONDS)
            await asyncio.sleep(ticks.left(asyncio.get_running_loop().time(), pause))
