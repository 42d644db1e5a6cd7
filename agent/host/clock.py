"""The machine's clocks.

Deadlines run on CLOCK_BOOTTIME, which neither steps nor stands still in suspend. UTC is that clock plus an offset taken
at the start and corrected from the clouds' own ``Date``. As long as no cloud has told us the time, the wall clock is
followed (NTP may step it right after boot); from then on a step of the wall clock, by hours in either direction, moves
nothing.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Final

from agent.core.clock import Skew, utc

WALL_STEP_SECONDS: Final = 2.0


class SystemClock:
    """A :class:`agent.core.clock.Clock` on the machine's clocks."""

    def __init__(self) -> None:
        self._offset = time.time() - self.boottime()
        self.skew = Skew()

    def boottime(self) -> float:
        """Seconds on a clock that never steps and counts on through suspend."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def now(self) -> datetime:
        """The best estimate of UTC."""
        boottime = time.clock_gettime(time.CLOCK_BOOTTIME)
        if not self.skew.samples:
            wall = time.time() - boottime
            if abs(wall - self._offset) > WALL_STEP_SECONDS:
                self._offset = wall
        return utc(boottime + self._offset)

    def learn(self, server: datetime) -> float:
        """Learn from a ``Date`` that has just come; return by how many seconds our time was moved."""
        shift = self.skew.sample(server, self.now())
        self._offset += shift
        return shift

    @property
    def wall_error_seconds(self) -> float:
        """How far the machine's wall clock is from our estimate: positive when the wall clock is ahead."""
        return time.time() - self.boottime() - self._offset

    async def sleep(self, seconds: float) -> None:
        """Sleep. The loop's timer stands still in suspend, so a long sleep is cut into pieces that notice a resume."""
        end = self.boottime() + seconds
        while (left := end - self.boottime()) > 0:  # noqa: ASYNC110 - it waits for time, nothing else
            await asyncio.sleep(min(left, 15.0))
