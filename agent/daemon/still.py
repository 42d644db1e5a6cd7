"""Is this still the machine that it was? Asked again and again, since a machine that runs can be copied whole.

A copy of a running machine has everything: the boot's id, what the firmware said at its boot, the keys in memory, the
credentials. Inside nothing tells it from the original. Outside its metadata service does, by another name; so the
services are asked each :data:`ASK_SECONDS`, and at once when the wall clock was stepped or the machine stood still
(a copy resumes later than it was made). Another name in the same boot is a doubt (:mod:`agent.identity.whose`): nothing
of the former identity is served, nothing forgotten.

**Silence.** A service that does not answer confirms nothing. While no clock shows a gap the last answer counts, since
an outage of the service must take nobody's identity. After a gap of :data:`GAP_SECONDS` the machine may be a copy, and
so the former identity is served for :data:`UNCONFIRMED_SECONDS` at most; then nothing of it is, until the service says
the name again. What NTP corrects, and how long a host takes to move a machine, is less than that gap: it must cost
nobody the identity in an outage. And EC2's word that its service is switched off is an answer: hardening does that
after the boot, and it is for good.

Not told: a copy whose clocks show no such gap while its metadata service is silent or repeats the original's name, and
a copy of a machine that has no metadata service, or one that is switched off, or whose name is the configuration's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from agent.daemon.who import Who
from agent.host.clock import SystemClock, uncounted
from agent.identity.store import Store
from agent.providers.machine import Machine

ASK_SECONDS: Final = 60.0
UNCONFIRMED_SECONDS: Final = 900.0
GAP_SECONDS: Final = 30.0
"""Between two looks, forwards. Looks are near each other, so what slewing adds up over days is none."""


class Still:
    """See the module.

    Args:
        who: asks.
        clock: time.
        store: has the name that the machine has had so far; empty while it has none.
        act: acts on another name, and on an empty one: none says that it is still this machine.
        uncounted: the seconds by which other clocks are ahead of one that stands still whenever the machine does.
    """

    def __init__(
        self,
        who: Who,
        clock: SystemClock,
        *,
        store: Store,
        act: Callable[[list[Machine], str], Awaitable[None]],
        uncounted: Callable[[], float] = uncounted,
    ) -> None:
        self._who = who
        self._clock = clock
        self._store = store
        self._act = act
        self._woken = asyncio.Event()
        self._uncounted = uncounted
        self._missed = self._seconds_missed()
        self._since: float | None = None  # a gap that no answer came after

    def wake(self) -> None:
        """The wall clock was stepped, or the machine woke: ask at once."""
        self._woken.set()

    async def watch(self, first: Awaitable[None]) -> None:
        """Ask again and again; returns only where no answer can be another.

        Args:
            first: finds out who the machine is, as long as that is not known.
        """
        await first
        while self._who.may_change:
            await self._pause()
            await self.look()

    async def look(self) -> None:
        """Ask once, and act on it."""
        self._woken.clear()
        missed = self._seconds_missed()
        # Not their sum: a pause after which the wall clock is set right is seen by both.
        gap = max(now - then for now, then in zip(missed, self._missed, strict=True))
        if gap >= GAP_SECONDS and self._since is None:
            self._since = self._clock.uptime()
        self._missed = missed
        former = self._store.memory.instance_id
        found = await self._who.ask()
        name = self._who.name(found, former)
        if name and name == former:
            self._since = None
        elif name or (self._who.silent and self._unconfirmed()):
            self._since = None
            await self._act(found, name)

    def _unconfirmed(self) -> bool:
        return self._since is not None and self._clock.uptime() - self._since >= UNCONFIRMED_SECONDS

    def _seconds_missed(self) -> tuple[float, float]:
        """What a clock that stands still with the machine has missed, as its other clocks say, and as servers do."""
        return self._uncounted(), self._clock.timekeeper.lost

    async def _pause(self) -> None:
        waits = {asyncio.create_task(self._clock.sleep(ASK_SECONDS)), asyncio.create_task(self._woken.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
