"""Is this still the machine that it was? Asked again and again, since a machine that runs can be copied whole.

A copy of a running machine has everything: the boot's id, what the firmware said at its boot, the keys in memory, the
credentials. Inside nothing tells it from the original. Outside its metadata service does, by another name; so the
services are asked each :data:`ASK_SECONDS`, and at once when the wall clock was stepped or the machine stood still
(a copy resumes later than it was made: :mod:`agent.daemon.gap`). Another name in the same boot is a doubt
(:mod:`agent.identity.whose`): nothing of the former identity is served, nothing forgotten.

**Silence.** A service that does not answer confirms nothing. While no clock shows a gap the last answer counts, since
an outage of the service must take nobody's identity. After a gap of
:data:`~agent.daemon.gap.GAP_SECONDS` the machine may be a copy, and so the former identity is served for
:data:`~agent.daemon.gap.UNCONFIRMED_SECONDS` at most, over restarts too; then nothing of it is, until the service says
the name again. What NTP corrects, and how long a host takes to move a machine, is less than that gap: it must cost
nobody the identity in an outage. And EC2's word that its service is switched off is an answer: hardening does that
after the boot, and it is for good.

Not told: a copy whose clocks show no such gap while its metadata service is silent or repeats the original's name, and
a copy of a machine that has no metadata service, or one that is switched off, or whose name is the configuration's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from agent.daemon.gap import Gap, Known
from agent.daemon.who import Who
from agent.host.clock import SystemClock
from agent.identity.store import Store
from agent.providers.machine import Machine

ASK_SECONDS: Final = 60.0
ASK_SOON_SECONDS: Final = 5.0
"""While a step of the clock is believed that one answer could take back: what may have ended is refused until then."""


class Still:
    """See the module.

    Args:
        who: asks.
        clock: time.
        store: has the name that the machine has had so far; empty while it has none.
        act: acts on another name, and on an empty one: none says that it is still this machine.
        gap: whether it stood still.
        noted: called when what the next process must know of the gap has changed.
    """

    def __init__(
        self,
        who: Who,
        clock: SystemClock,
        *,
        store: Store,
        act: Callable[[list[Machine], str], Awaitable[None]],
        gap: Gap,
        noted: Callable[[], None],
    ) -> None:
        self._who = who
        self._clock = clock
        self._store = store
        self._act = act
        self._woken = asyncio.Event()
        self._gap = gap
        self._noted = noted

    def wake(self) -> None:
        """The wall clock was stepped, or the machine woke: ask at once."""
        self._woken.set()

    async def watch(self, first: Coroutine[Any, Any, None]) -> None:
        """Ask again and again; returns only where no answer can be another.

        Args:
            first: finds out who the machine is, as long as that is not known. It may ask for ever, and the process
                before this one may have known of a gap.
        """
        identifying = asyncio.create_task(first, name="identify first")
        try:
            await self._know(identifying)
        finally:
            identifying.cancel()
            await asyncio.gather(identifying, return_exceptions=True)
        while self._who.may_change:
            await self._pause()
            await self.look()

    async def _know(self, identifying: asyncio.Task[None]) -> None:
        """Return when it is known who the machine is."""
        while not identifying.done():
            await self._pause(identifying)
            self._woken.clear()
            self._look_at_clocks()
            if identifying.done() or not self._who.may_change or self._store.doubted:
                continue
            if self._who.silent and self._gap.unconfirmed:
                identifying.cancel()
                await asyncio.gather(identifying, return_exceptions=True)
                await self._act_on([], "")
                return
        identifying.result()
        self._confirmed()

    async def look(self) -> None:
        """Ask once, and act on it."""
        self._woken.clear()
        self._look_at_clocks()
        former = self._store.memory.instance_id
        found = await self._who.ask()
        name = self._who.name(found, former)
        if name and name == former:
            self._confirmed()
        elif name or (self._who.silent and self._gap.unconfirmed):
            await self._act_on(found, name)

    async def _act_on(self, found: list[Machine], name: str) -> None:
        await self._act(found, name)
        self._confirmed()  # not before: whoever is killed in between leaves a doubt, or at least a gap

    def _look_at_clocks(self) -> None:
        before = self._gap.known
        self._gap.look()
        self._tell_if(before)

    def _confirmed(self) -> None:
        before = self._gap.known
        self._gap.confirmed()
        self._tell_if(before)

    def _tell_if(self, before: Known) -> None:
        if self._gap.known != before:
            self._noted()

    async def _pause(self, *more: asyncio.Task[None]) -> None:
        seconds = ASK_SOON_SECONDS if self._clock.timekeeper.has_followed_a_step else ASK_SECONDS
        waits = {asyncio.create_task(self._clock.sleep(seconds)), asyncio.create_task(self._woken.wait())}
        try:
            await asyncio.wait({*waits, *more}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
