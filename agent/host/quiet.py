"""Looking while nothing changes, without waking the event loop.

A look at a file costs its thread some 20 microseconds; to wake the loop for it, start a thread and wait for that costs
half a millisecond, and was most of what an idle agent used. So while all is as it was, one thread looks again and again
by itself, and wakes the loop when something is not.

The look may hang for ever (:mod:`agent.host.patience` says why). Then the pause ends, whoever pauses asks in his own
way and finds out, and no second thread is started here before the first has come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

MOST_SECONDS: Final = 20.0
"""A pause ends after so long though nothing has changed: what the look does not see is seen then."""
STALLED_SECONDS: Final = 2.0
"""A look that takes longer ends the pause."""


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
        left = threading.Event()

        def end() -> None:
            if not over.done():
                over.set_result(None)

        def look() -> None:
            ends = time.monotonic() + self._most
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                try:
                    # First at once: what changes before the first look, and is compared with it, would not be seen.
                    while not changed() and not left.wait(self._every) and time.monotonic() < ends:
                        self._beat = time.monotonic()
                finally:
                    loop.call_soon_threadsafe(end)

        timers: list[asyncio.TimerHandle] = []  # one

        def check() -> None:
            if time.monotonic() - self._beat > self._every + STALLED_SECONDS:
                end()
            else:
                timers[:] = [loop.call_later(self._every + STALLED_SECONDS, check)]

        self._beat = time.monotonic()
        try:
            self._thread = threading.Thread(target=look, daemon=True, name="quiet")
            self._thread.start()
        except RuntimeError:  # no more threads
            self._thread = None
            await asyncio.sleep(self._every)
            return
        timers.append(loop.call_later(self._every + STALLED_SECONDS, check))
        try:
            await over
        finally:
            left.set()
            timers[0].cancel()
