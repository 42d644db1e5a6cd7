"""The machine's clocks.

Deadlines run on CLOCK_BOOTTIME, which neither steps nor stands still in suspend. UTC is that clock plus an offset taken
at the start and corrected from the clouds' own ``Date``. As long as no cloud has told us the time, the wall clock is
followed (NTP may step it right after boot); from then on a step of the wall clock, by hours in either direction, moves
nothing. It is a reason to ask, though: a machine that its hypervisor stopped for an hour (a snapshot, a migration) has
lost that hour on every clock but the one that NTP then sets right. When a cloud confirms it, the lost time is added to
the clock that never steps, so that every deadline is where it was.

The offset moves only in :meth:`SystemClock.learn` and :meth:`SystemClock.follow`, never by itself: whoever calls them
also moves what was counted from a moment of ours (:meth:`agent.core.store.Store.rebase`), so that no reader sees a new
time beside old deadlines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from agent.core.clock import Skew, utc

WALL_STEP_SECONDS: Final = 2.0
UNDER_WAY_SECONDS: Final = 90.0
"""An answer that came within so many seconds of a step of the wall clock may have been given before it."""
NAP_SECONDS: Final = 15.0
"""A resume from suspend is noticed within so many seconds: the loop's own timers do not count while it lasts."""


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SystemClock:
    """A :class:`agent.core.clock.Clock` on the machine's clocks.

    Args:
        boottime: seconds on a clock that never steps and counts on through suspend.
        wall: seconds since 1970, as the machine believes.
        nap_seconds: the longest sleep in one piece.
    """

    def __init__(
        self,
        *,
        boottime: Callable[[], float] = _boottime,
        wall: Callable[[], float] = time.time,
        nap_seconds: float = NAP_SECONDS,
    ) -> None:
        self._boottime = boottime
        self._wall = wall
        self._nap_seconds = nap_seconds
        self._lost = 0.0  # seconds in which the whole machine stood still
        self._offset = self._seen_wall = wall() - boottime()
        self._stepped = 0.0  # by so many seconds the wall clock was stepped since a cloud last agreed with us
        self._stepped_at = 0.0  # when, on CLOCK_BOOTTIME
        self.skew = Skew()

    def boottime(self) -> float:
        """Seconds on a clock that never steps back and counts on through suspend."""
        return self._boottime() + self._lost

    def uptime(self) -> float:
        """CLOCK_BOOTTIME as every process of this machine reads it, in seconds: nothing is added to it."""
        return self._boottime()

    def now(self) -> datetime:
        """The best estimate of UTC."""
        return utc(self.boottime() + self._offset)

    def learn(self, server: datetime) -> float:
        """Learn from a ``Date`` that has just come; return by how many seconds our time was moved."""
        self._look()
        shift = self.skew.sample(server, self.now(), utc(self._wall()))
        if shift > 0 and abs(shift - self._stepped) <= 2 * Skew.TOLERANCE_SECONDS:
            self._lost += shift
        else:
            self._offset += shift
        # An answer that was under way while the machine stood still agrees with a clock that is behind since: it says
        # nothing about the step, and must not make the correction that follows look like one of our own error.
        late = self._boottime() - self._stepped_at > UNDER_WAY_SECONDS
        if shift or (late and not self.skew.doubtful):
            self._stepped = 0.0
        return shift

    def follow(self) -> bool:
        """Look at the wall clock: follow its step if nothing better is known.

        Returns:
            Whether it was stepped away from what we know: a reason to ask a cloud for the time, not one to believe.
        """
        doubtful = self._look()
        if not self.skew.samples and abs(self.wall_error_seconds) > WALL_STEP_SECONDS:
            self._offset += self.wall_error_seconds
        return doubtful

    def _look(self) -> bool:
        """Whether the wall clock was stepped away from what a cloud told us, since the last look."""
        wall = self._wall() - self._boottime()
        step, self._seen_wall = wall - self._seen_wall, wall
        if not self.skew.samples or abs(step) <= WALL_STEP_SECONDS:
            return False
        agrees = abs(self.wall_error_seconds) <= Skew.TOLERANCE_SECONDS
        self._stepped, self._stepped_at = (0.0 if agrees else self._stepped + step), self._boottime()
        return not agrees

    @property
    def wall_error_seconds(self) -> float:
        """How far the machine's wall clock is from our estimate: positive when the wall clock is ahead."""
        return self._wall() - self.boottime() - self._offset

    async def sleep(self, seconds: float) -> None:
        """Sleep. The loop's timer stands still in suspend, so a long sleep is cut into naps that notice a resume."""
        end = self.boottime() + seconds
        while (left := end - self.boottime()) > 0:  # noqa: ASYNC110 - it waits for time, nothing else
            await asyncio.sleep(min(left, self._nap_seconds))
