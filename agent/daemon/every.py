"""A pause whose length the configuration says: a reload that makes it shorter is heeded at once, not after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.core.clock import Clock


class Every:
    """See the module.

    Args:
        clock: time.
        seconds: how long a pause is, by the configuration now.
    """

    def __init__(self, clock: Clock, seconds: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """The configuration may say otherwise. Returns at once."""
        self._changed.set()

    async def pause(self, over: Callable[[], bool] = lambda: False) -> None:
        """Pause until so many seconds have passed since this call, or ``over`` says so after a change."""
        began = self._clock.boottime()
        while not over():
            left = began + self._seconds() - self._clock.boottime()
            if left <= 0:
                return
            self._changed.clear()
            waits = [asyncio.ensure_future(self._clock.sleep(left)), asyncio.ensure_future(self._changed.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
