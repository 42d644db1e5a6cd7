"""What the kernel is told of who sleeps: :mod:`agent.host.alarm`."""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable

import pytest

from agent.host import alarm as alarm_module
from agent.host.alarm import Alarm
from agent.host.libc import libc

AT_ONCE = (ctypes.c_long * 4)(0, 0, 0, 1)
"""A timer for a moment that is long past."""


class Kernel:
    """Counts how often it is told when to wake somebody; the first time it may do so at once."""

    def __init__(self, *, hasty: bool = False) -> None:
        self.timerfd_create: Callable[..., int] = libc().timerfd_create
        self.told = 0
        self.hasty = hasty

    def timerfd_settime(self, descriptor: int, flags: int, value: object, before: None) -> int:
        self.told += 1
        hasty, self.hasty = self.hasty, False
        return int(libc().timerfd_settime(descriptor, flags, ctypes.byref(AT_ONCE) if hasty else value, before))


def made() -> Alarm:
    """One in the loop that runs."""
    alarm = Alarm.on(asyncio.get_running_loop(), lambda: None)
    if alarm is None:
        pytest.skip("no timerfd here")
    return alarm


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def test_only_the_first_to_wake_is_told_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sleeps longer than another, or leaves before his time, costs no call; the last to leave disarms."""

    async def story() -> None:
        alarm, kernel = made(), Kernel()
        monkeypatch.setattr(alarm_module, "libc", lambda: kernel)
        began = now()
        sleepers = [asyncio.create_task(alarm.wait(began + after)) for after in (2000, 3000, 3000, 1000)]
        await asyncio.sleep(0)
        assert kernel.told == 2
        for one in (2, 1):
            sleepers[one].cancel()
            await asyncio.wait({sleepers[one]})
        assert kernel.told == 2
        for one in (3, 0):
            sleepers[one].cancel()
            await asyncio.wait({sleepers[one]})
        assert kernel.told == 4
        alarm.close()

    asyncio.run(story())


def test_a_kernel_that_wakes_too_soon_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has told of the moment, and tells no more: whoever is not due yet would sleep for ever."""

    async def story() -> None:
        alarm, kernel = made(), Kernel(hasty=True)
        monkeypatch.setattr(alarm_module, "libc", lambda: kernel)
        moment = now() + 0.3
        async with asyncio.timeout(60):
            await alarm.wait(moment)
            assert now() >= moment
            await alarm.wait(moment)
        alarm.close()

    asyncio.run(story())
