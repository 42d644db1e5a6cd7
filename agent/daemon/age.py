"""Has the disk gone back in time? A backup that is put back forgets what was withdrawn since; nothing on it says so.

So the state directory says when the agent was last alive, and whether it ended in order. A disk that was copied while
the machine ran, and is put back a day later, has an agent that was alive a day ago and never ended. So has one whose
machine lost its power and was off for a day: no more can be known, and it is said either way. It decides nothing: to
serve nothing would take every worker's identity after a cut of the power. Within one boot what lies in ``/run`` says
more (:attr:`agent.daemon.grace.Began.memory`): there another memory than was left is another one for sure.

Not told: a copy that was made while the machine was off, or after an orderly end, put back at a boot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from agent.core.clock import Clock
from agent.core.errors import HostError
from agent.core.verdict import Memory
from agent.host import ticks
from agent.host.state import Lived, StateDirectory

ALIVE_SECONDS: Final = 600.0
LOOK_SECONDS: Final = 30.0
AGED: Final = timedelta(hours=1)
"""A machine that crashed is back sooner."""
HINT: Final = (
    "a bundle that was withdrawn since may be in force again: compare what `credential-agent status` says with what "
    "was issued, and seal the newest bundle, or the withdrawal, anew and push it; the alarm ends with that (one that "
    "was taken before does not end it)"
)

_Accepted = tuple[str, str, int, str]


def aged(lived: Lived | None, now: datetime, *, same_boot: bool, replaced: bool) -> datetime | None:
    """Since when the state directory may know nothing; ``None``: no reason to think so.

    Args:
        lived: what it says of the agent before.
        now: the time.
        same_boot: whether that one ran in this boot of the machine.
        replaced: whether the memory in it is another one than was left in this boot.
    """
    if lived is None:
        return now if replaced else None
    if lived.since is not None:
        return lived.since
    if replaced:
        return lived.at
    return lived.at if not same_boot and not lived.ended and now - lived.at >= AGED else None


def _accepted(memory: Memory) -> frozenset[_Accepted]:
    """What was accepted; without what a start may learn of it (when a bundle was issued)."""
    return frozenset((mark.issuer, mark.subject, mark.seq, mark.digest) for mark in memory.marks)


class Age:
    """Keeps the note, and the alarm.

    Args:
        state: the directory.
        clock: time.
    """

    def __init__(self, state: StateDirectory, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._since: datetime | None = None
        self._accepted: frozenset[_Accepted] = frozenset()
        self._may_write = False
        self._log = structlog.get_logger()

    def begin(self, memory: Memory, since: datetime | None) -> None:
        """The disk was read.

        Args:
            memory: what the agent goes on with.
            since: see :func:`aged`; without a stream there is nothing to forget.
        """
        self._since = since if memory.marks else None
        self._accepted = _accepted(memory)
        self._may_write = True
        if self._since is not None:
            self._log.error("state.aged", since=self._since.isoformat(timespec="seconds"), hint=HINT)

    def reason(self, memory: Memory) -> str | None:
        """Why there is an alarm, if there is one: until something newer is brought."""
        if self._since is None or _accepted(memory) != self._accepted:
            self._since = None
            return None
        return (
            f"it may have gone back in time: nobody wrote there after {self._since:%Y-%m-%d %H:%M} UTC, and the agent "
            "had not ended (a backup was put back, or the machine lost its power)"
        )

    def troubles(self, memory: Memory) -> dict[str, str]:
        """The same, by the key of the configuration."""
        why = self.reason(memory)
        return {} if why is None else {"state.directory": why}

    async def run(self, memory: Callable[[], Memory]) -> None:
        """Say again and again that the agent is alive; soon, when an alarm has ended: a crash must not bring it back.

        Args:
            memory: gives the present one.
        """
        while True:
            await self._write(ended=False)
            said, until = (self._may_write, self._since), self._clock.boottime() + ALIVE_SECONDS
            while said == (self._may_write, self._since) and (now := self._clock.boottime()) < until:
                await self._clock.sleep(min(ticks.left(now, LOOK_SECONDS), until - now))
                self.reason(memory())

    async def last(self, memory: Memory, seconds: float) -> None:
        """Say that it ends in order."""
        self.reason(memory)
        try:
            async with asyncio.timeout(seconds):
                await self._write(ended=True)
        except TimeoutError:
            return

    async def _write(self, *, ended: bool) -> None:
        if not self._may_write:
            return  # the disk has not answered: it may say something else
        try:
            await self._state.live(Lived(at=self._clock.now(), ended=ended, since=self._since))
        except HostError:
            return  # the disk's trouble is told by whoever writes what matters
