"""The machine's clocks: read here, and weighed by the rule of :mod:`agent.core.timekeeping`.

Deadlines run on CLOCK_BOOTTIME, which neither steps nor stands still in suspend; the length of a hypervisor's pause,
which it misses, is added. UTC is that clock plus an offset.

Our time moves only in :meth:`SystemClock.hear`, :meth:`SystemClock.follow` and :meth:`SystemClock.adopt`, never by
itself: whoever calls them also moves what was counted from a moment of ours
(:class:`agent.identity.events.ClockMoved`), so that no reader sees a new time beside old deadlines.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from agent.core.clock import utc
from agent.core.timekeeping import STEP_SECONDS, Reading, Timekeeper, Witness
from agent.host.alarm import Alarm
from agent.host.libc import libc

NAP_SECONDS: Final = 15.0
"""Where the kernel cannot wake us (no timerfd), a resume is noticed within so many seconds."""
MAX_ERROR_MICROSECONDS: Final = 16_000_000
"""Where the kernel itself stops calling its clock synchronised (NTP_PHASE_LIMIT)."""
TIMESYNCD: Final = Path("/run/systemd/timesync/synchronized")
"""systemd-timesyncd touches it each time it has set the clock, and no boot begins with it
(systemd-timesyncd.service(8))."""
MARK_SECONDS: Final = MAX_ERROR_MICROSECONDS / 500
"""How long the mark counts: after so long without a word of NTP the kernel gives its clock up, which it takes to be
wrong by 500 microseconds more each second. It is left behind when timesyncd is stopped, or hears nobody."""

_TIME_ERROR: Final = 5
_STA_UNSYNC: Final = 0x0040


class _Timex(ctypes.Structure):
    """The head of ``struct timex`` (adjtimex(2)); the rest is padding."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("room", ctypes.c_byte * 256),
    )


def synchronised() -> bool:
    """Whether the kernel says that its clock is kept right: adjtimex(2), which needs no privilege to read.

    Where a sandbox forbids the call (systemd's ``ProtectClock=``) the mark of systemd-timesyncd is all there is.
    """
    timex = _Timex()
    state = libc().adjtimex(ctypes.byref(timex))
    if state < 0:
        return _is_marked()
    return state != _TIME_ERROR and not timex.status & _STA_UNSYNC and timex.maxerror < MAX_ERROR_MICROSECONDS


def _is_marked() -> bool:
    try:
        marked = os.stat(TIMESYNCD).st_mtime  # noqa: PTH116 - half the cost of Path.stat
    except OSError:
        return False
    # A mark of the future is of before the clock was set back, by somebody else.
    return -STEP_SECONDS <= time.time() - marked <= MARK_SECONDS


def uncounted() -> float:
    """The seconds by which other clocks are ahead of the event loop's (CLOCK_MONOTONIC).

    It grows with each suspend, each pause after which the wall clock is set right, and each step of that clock.
    """
    monotonic = time.clock_gettime(time.CLOCK_MONOTONIC)
    return max(_boottime(), time.time()) - monotonic


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SystemClock:
    """A :class:`agent.core.clock.Clock` on the machine's clocks.

    Args:
        boottime: seconds on a clock that never steps and counts on through suspend.
        wall: seconds since 1970, as the machine believes.
        synchronised: whether the kernel says that somebody keeps ``wall`` right.
        nap_seconds: the longest sleep in one piece while :meth:`watch` is not in force.
    """

    def __init__(
        self,
        *,
        boottime: Callable[[], float] = _boottime,
        wall: Callable[[], float] = time.time,
        synchronised: Callable[[], bool] = synchronised,
        nap_seconds: float = NAP_SECONDS,
    ) -> None:
        self._boottime = boottime
        self._wall = wall
        self._synchronised = synchronised
        self._nap_seconds = nap_seconds
        self._alarm: Alarm | None = None
        self._doubt = False  # a server contradicted us, and `follow` has not returned that yet
        self.timekeeper = Timekeeper(self._read())

    def boottime(self) -> float:
        """Seconds on a clock that never steps back and counts on through suspend."""
        return self._boottime() + self.timekeeper.lost

    def uptime(self) -> float:
        """CLOCK_BOOTTIME as every process of this machine reads it, in seconds: nothing is added to it."""
        return self._boottime()

    def now(self) -> datetime:
        """The best estimate of UTC."""
        return utc(self.timestamp())

    def timestamp(self) -> float:
        """The same, as seconds since 1970."""
        return self.boottime() + self.timekeeper.offset

    def hear(self, witness: Witness, date: datetime, took: float = 0.0) -> bool:
        """Hear the ``Date`` of an answer that has just come, ``took`` seconds after it was asked for.

        Returns:
            Whether somebody should look at the time now: it was moved, or there is a reason to ask others.
        """
        before = self.timekeeper.ours
        # ``Date`` is cut to the second: half a second is lost on average.
        self._doubt |= self.timekeeper.hear(witness, date.timestamp() + 0.5, self._read(), took=took)
        return self._doubt or self._moved(before)

    def follow(self) -> bool:
        """Look at the machine's clocks.

        Returns:
            Whether there is a reason to ask the clouds for the time; each reason is returned once.
        """
        before = self.timekeeper.ours
        doubt, self._doubt = self.timekeeper.look(self._read()) or self._doubt, False
        self._moved(before)
        return doubt

    def adopt(self, witness: Witness, now: datetime, wall_error_seconds: float | None) -> None:
        """Take over the time of the previous process. Call it before anything is measured by this clock."""
        self.timekeeper.adopt(witness, now.timestamp(), self._read(), wall_error=wall_error_seconds)

    @property
    def wall_error_seconds(self) -> float:
        """How far the machine's wall clock is from our estimate: positive when the wall clock is ahead."""
        return self._wall() - self.boottime() - self.timekeeper.offset

    @property
    def disputed_seconds(self) -> float:
        """How far the metadata service, which is not believed, says that our time is behind; 0: it does not."""
        return self.timekeeper.disputed(self._read())

    def watch(self, changed: Callable[[], None]) -> None:
        """From now on have the kernel wake us: when a sleep is over, also in suspend, and when the clock is stepped.

        Args:
            changed: called on the loop when the wall clock was stepped or the machine resumed.
        """
        self._alarm = Alarm.on(asyncio.get_running_loop(), changed)

    def close(self) -> None:
        """Close what :meth:`watch` opened. Sleepers go on in naps."""
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            alarm.close()

    async def sleep(self, seconds: float) -> None:
        """Sleep until so many seconds have passed, suspended or not."""
        end = self.boottime() + seconds
        while (left := end - self.boottime()) > 0:
            if self._alarm is not None and self._alarm.open:
                await self._alarm.wait(self._boottime() + left)
            else:
                # The loop's timer stands still in suspend: a long sleep is cut into naps that notice a resume.
                await asyncio.sleep(min(left, self._nap_seconds))

    def _read(self) -> Reading:
        return Reading(self._boottime(), self._wall(), self._synchronised())

    def _moved(self, before: float) -> bool:
        if self.timekeeper.ours == before:
            return False
        if self._alarm is not None:
            self._alarm.wake()  # the time lost counts towards every sleep
        return True
