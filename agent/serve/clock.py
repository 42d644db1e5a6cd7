"""The time, as the controller tells it: this side has no witness of its own, and trusts no wall clock.

Except where that is stepped forward, to a time that is ahead of ours: then the machine may have been paused, which boot
time does not count, and what is served may have ended. The controller believes such a step at once
(:mod:`agent.core.timekeeping`); but it may be away, or hang. So it is believed here, too, until the next snapshot says
what time it is. A process that begins with a snapshot which came before it is told how far the clocks were apart then
(:mod:`agent.server.kept`); where nobody knows that, nothing is known of a pause before it began.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from agent.core.clock import utc
from agent.core.timekeeping import STEP_SECONDS
from agent.serve.waiting import Served

_boottime: Final = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


def wall_ahead() -> float:
    """How far the machine's wall clock is ahead of boot time, in seconds."""
    return time.time() - _boottime()


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
        self._told()
        served.forgotten_by(self._told)

    def _told(self) -> None:
        """A snapshot came, which says what time it is."""
        wall = self._served.wall
        self._then = self._wall() - self._boottime() if wall is None else wall
        told = self._served.now.time
        self._lost, self._told_ours = told.lost, told.lost + told.offset

    def now(self) -> datetime:
        """The best estimate of UTC."""
        return utc(self.timestamp())

    def timestamp(self) -> float:
        """The same, as seconds since 1970."""
        boot = self._boottime()
        return boot + self._ours(self._wall() - boot)

    def boottime(self) -> float:
        """Seconds on a clock that never steps back and counts on through suspend."""
        return self._boottime() + self._lost

    def wall_ahead(self) -> timedelta:
        """How far the machine's wall clock, by which clients measure an end, is ahead of our time."""
        wall = self._wall() - self._boottime()
        return timedelta(seconds=wall - self._ours(wall))

    async def sleep(self, seconds: float) -> None:
        """Sleep for so many seconds."""
        await asyncio.sleep(seconds)

    def _ours(self, wall: float) -> float:
        """Seconds from boot time to what we take for the true time; ``wall``: to the wall clock."""
        ours = self._told_ours
        stepped = wall - self._then
        if stepped > STEP_SECONDS and wall - ours > STEP_SECONDS:
            return ours + min(stepped, wall - ours)
        return ours
