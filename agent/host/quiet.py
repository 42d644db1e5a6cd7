"""Looking while nothing changes, without waking the event loop.

A look at a file costs its thread some 20 microseconds; to wake the loop for it, start a thread and wait for that costs
half a millisecond, and was most of what an idle agent used. So while all is as it was, one thread looks again and again
by itself, and wakes the loop when something is not.

The look may hang for ever (:mod:`agent.host.patience` says why). Then the pause ends, whoever pauses asks in his own
way and finds out, and no second thread is started here before the first has come back. Who looks somewhere else in the
meantime notices that, and so does the loop, seldom: to wake it costs more than a look.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

MOST_SECONDS: Final = 60.0
"""A pause ends after so long though nothing has changed: what the look does not see is seen then."""
STALLED_SECONDS: Final = 2.0
"""A look that takes longer ends the pause."""
CHECKED_SECONDS: Final = 20.0
"""How often the loop itself sees to that, where nobody else looks."""

_paused: dict[Quiet, Callable[[], None]] = {}
"""The pauses that last, and what ends each, from any thread."""


class Quiet:
    """Pauses that last as long as all looks the same.

    Args:
        every: seconds between two looks.
        most: seconds of the longest pause.

    *Resources*: a daemon thread for as long as a pause lasts, and for as long as a look hangs.
    """

    def __init__(self, every: float, most: float = MOST_SECONDS) -> None:
        self._every = every
        self._most = most
        self._thread: threading.Thread | None = None
        self._beat = 0.0  # when the thread was last seen alive

    async def pause(self, changed: Callable[[], bool]) -> None:
        """Return when ``changed``, called in a thread again and again, says so, or after the longest pause."""
        if self._thread is not None and self._thread.is_alive():
            await asyncio.sleep(self._every)  # it hangs, or has not noticed yet that its pause was cancelled
            return
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        left = threading.Lock()  # released once nobody waits any more; an event would take three times as long
        left.acquire()

        def end() -> None:
            if not over.done():
                over.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(end)

        self._beat = time.monotonic()
        _paused[self] = wake
        timer: asyncio.TimerHandle | None = None

        def check() -> None:
            nonlocal timer
            if self.stalled(time.monotonic()):
                end()
            else:
                timer = loop.call_later(CHECKED_SECONDS, check)

        try:
            try:
                self._thread = threading.Thread(
                    target=self._look, args=(changed, left, wake), daemon=True, name="quiet"
                )
                self._thread.start()
            except RuntimeError:  # no more threads
                self._thread = None
                await asyncio.sleep(self._every)
                return
            timer = loop.call_later(CHECKED_SECONDS, check)
            await over
        finally:
            del _paused[self]
            left.release()
            if timer is not None:
                timer.cancel()

    def _look(self, changed: Callable[[], bool], left: threading.Lock, wake: Callable[[], None]) -> None:
        ends = time.monotonic() + self._most
        try:
            # First at once: what changes before the first look, and is compared with it, would not be seen.
            while not changed() and not left.acquire(timeout=self._every):
                self._beat = now = time.monotonic()
                if now >= ends:
                    break
                for other, wake_other in tuple(_paused.items()):
                    if other.stalled(now):
                        wake_other()
        finally:
            wake()

    def stalled(self, now: float) -> bool:
        """Whether its look hangs, at a moment of ``time.monotonic``."""
        return now - self._beat > self._every + STALLED_SECONDS
