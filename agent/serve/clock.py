"""The time, as the controller tells it: this side has no witness of its own, and trusts no wall clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from agent.core.clock import utc
from agent.serve.waiting import Served


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ServedClock:
    """A :class:`agent.core.clock.Clock` that counts on from what the newest snapshot says.

    Args:
        served: what is served.
        boottime: seconds on a clock that never steps and counts on through suspend.
        wall: seconds since 1970, as the machine believes.
    """

    def __init__(
        self, served: Served, *, boottime: Callable[[], float] = _boottime, wall: Callable[[], float] = time.time
    ) -> None:
        self._served = served
        self._boottime = boottime
        self._wall = wall

    def now(self) -> datetime:
        """The best estimate of UTC."""
        told = self._served.now.time
        return utc(self._boottime() + told.lost + told.offset)

    def boottime(self) -> float:
        """Seconds on a clock that never steps back and counts on through suspend."""
        return self._boottime() + self._served.now.time.lost

    def wall_ahead(self) -> timedelta:
        """How far the machine's wall clock, by which clients measure an end, is ahead of our time."""
        told = self._served.now.time
        return timedelta(seconds=self._wall() - self._boottime() - told.lost - told.offset)

    async def sleep(self, seconds: float) -> None:
        """Sleep for so many seconds."""
        await asyncio.sleep(seconds)
