"""The kernel wakes us: when a sleep is over on CLOCK_BOOTTIME, and when the wall clock was stepped.

The event loop's own timers run on CLOCK_MONOTONIC, which stands still in suspend: a sleep of an hour would go on for an
hour after the machine woke. Two timerfds (timerfd_create(2)) stand in the loop as readers instead. One is armed on
CLOCK_BOOTTIME for the earliest sleeper and fires the moment the machine resumes if its time has passed. The other, on
CLOCK_REALTIME with ``TFD_TIMER_CANCEL_ON_SET``, never expires, and becomes readable when the clock is set: by NTP, by a
hypervisor's agent after a pause, and by the kernel itself at a resume.

``os.timerfd_create`` came with Python 3.13; this speaks to libc.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import heapq
import itertools
import os
import time
from collections.abc import Callable
from typing import Final

from agent.host.libc import libc

_TFD_NONBLOCK: Final = os.O_NONBLOCK
_TFD_CLOEXEC: Final = os.O_CLOEXEC
_TFD_TIMER_ABSTIME: Final = 1
_TFD_TIMER_CANCEL_ON_SET: Final = 2
_FAR_SECONDS: Final = 1 << 33  # the year 2242: it is armed to be cancelled, not to expire


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """See the module. Made by :meth:`on`.

    Resource handling: two descriptors and two readers of the loop until :meth:`close`, which wakes everybody who waits.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ends: int, steps: int, changed: Callable[[], None]) -> None:
        self._loop = loop
        self._ends = ends
        self._steps = steps
        self._changed = changed
        # Mutable state: who waits until when, earliest first. A cancelled one is dropped when its time comes.
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._armed = 0.0  # when the kernel is to wake us; 0: never
        self.open = True
        loop.add_reader(ends, self._over)
        loop.add_reader(steps, self._stepped)
        self._watch()

    @classmethod
    def on(cls, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> Alarm | None:
        """An alarm in ``loop``; ``None`` where the kernel, a sandbox or the descriptor limit refuses it."""
        flags = _TFD_NONBLOCK | _TFD_CLOEXEC
        ends = libc().timerfd_create(time.CLOCK_BOOTTIME, flags)
        steps = libc().timerfd_create(time.CLOCK_REALTIME, flags)
        if ends >= 0 and steps >= 0:
            return cls(loop, ends, steps, changed)
        for descriptor in (ends, steps):
            if descriptor >= 0:
                os.close(descriptor)
        return None

    async def wait(self, until: float) -> None:
        """Wait until CLOCK_BOOTTIME reads ``until`` (seconds), or until :meth:`wake`: whoever waits looks again."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        heapq.heappush(self._waiting, (until, next(self._numbers), waiter))
        self._arm()
        try:
            await waiter
        finally:
            if waiter.cancelled():
                self._arm()

    def wake(self) -> None:
        """Have everybody who waits look again."""
        waiting, self._waiting = self._waiting, []
        for _, _, waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Give everything back."""
        if not self.open:
            return
        self.open = False
        for descriptor in (self._ends, self._steps):
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self.wake()

    def _arm(self) -> None:
        while self._waiting and self._waiting[0][2].done():
            heapq.heappop(self._waiting)
        # An instant that is past fires at once; zero would disarm.
        until = max(self._waiting[0][0], 1e-9) if self._waiting else 0.0
        # Most who begin to wait, or leave, are not the first: nothing is said anew for them.
        if until != self._armed and _set(self._ends, _TFD_TIMER_ABSTIME, until):
            self._armed = until

    def _over(self) -> None:
        _drain(self._ends)
        self._armed = 0.0  # it has expired
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        while self._waiting and (self._waiting[0][0] <= now or self._waiting[0][2].done()):
            waiter = heapq.heappop(self._waiting)[2]
            if not waiter.done():
                waiter.set_result(None)
        self._arm()

    def _watch(self) -> None:
        _set(self._steps, _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET, float(_FAR_SECONDS))

    def _stepped(self) -> None:
        _drain(self._steps)
        self._watch()
        self._changed()


def _set(descriptor: int, flags: int, at: float) -> bool:
    """Arm it; false: who is told of steps was told of one that came before, and is armed all the same (ECANCELED)."""
    seconds = int(at)
    value = _Timer(_Timespec(0, 0), _Timespec(seconds, int((at - seconds) * 1e9)))
    return bool(libc().timerfd_settime(descriptor, flags, ctypes.byref(value), None) == 0)


def _drain(descriptor: int) -> None:
    # ECANCELED: the clock was stepped; EAGAIN: somebody else has read it.
    with contextlib.suppress(OSError):
        os.read(descriptor, 8)
