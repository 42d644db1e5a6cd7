"""Virtual time for asyncio: whenever every task waits, the clock jumps to the next one that is due.

A day passes in the time that the code needs to run, always in the same order, without a thread or a socket. Five clocks
hang together in :class:`Time` as they do on a real machine: the true time, the cloud's ``Date`` (the true one, unless a
server lies), CLOCK_MONOTONIC (stands still in suspend), CLOCK_BOOTTIME (does not) and a wall clock that may be wrong.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any, TypeVar

from tests.fakes.clock import START

T = TypeVar("T")


class Time:
    """The clocks of one simulated machine.

    Attributes:
        suspended: seconds spent in suspend: CLOCK_MONOTONIC did not count them.
        paused: seconds in which a hypervisor held the whole machine: none of its clocks counted them.
        wall_error: by how many seconds the wall clock is ahead of the truth.
    """

    def __init__(self, loop: WarpLoop) -> None:
        self._loop = loop
        self.suspended = 0.0
        self.paused = 0.0
        self.wall_error = 0.0

    def elapsed(self) -> float:
        """Seconds of true time since the start."""
        return self._loop.time() + self.suspended + self.paused

    def true(self) -> datetime:
        return START + timedelta(seconds=self.elapsed())

    def boottime(self) -> float:
        return 1000.0 + self._loop.time() + self.suspended

    def wall(self) -> float:
        return self.true().timestamp() + self.wall_error


class Stuck(AssertionError):
    """Every task waits and nothing will ever wake one."""


class _Jump:
    """A selector that does not wait: it moves the clock by as much as it was asked to wait."""

    def __init__(self, loop: WarpLoop) -> None:
        self._real = selectors.DefaultSelector()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("every task waits for something that will not come")
        if timeout > 0:
            self._loop.jump(timeout)
        return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class WarpLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time.

    Attributes:
        watch: called at the last instant before each jump and at the first after it: between the two nothing happens.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self.watch: Callable[[], None] = lambda: None
        super().__init__(_Jump(self))  # type: ignore[arg-type]

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        self.watch()
        self._now += seconds
        self.watch()


def run(main: Callable[[WarpLoop], Coroutine[Any, Any, T]]) -> T:
    """Run ``main(loop)`` to its end on a loop of virtual time."""
    loop = WarpLoop()
    try:
        return loop.run_until_complete(main(loop))
    finally:
        # A check that failed was raised out of the loop itself: let every task end before it is closed.
        loop.watch = lambda: None
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.close()
