"""Looking while nothing changes, without waking the event loop.

A look at a file costs its thread some 100 microseconds with cold caches; to wake the loop for it, start a thread and
wait for that costs a millisecond, and was most of what an idle agent used. So while all is as it was, one thread looks
again and again by itself, and wakes the loop when something is not. Where the kernel tells of whatever happens to the
files (:mod:`agent.host.watches`), it looks when it is told, and else seldom.

The look may hang for ever (:mod:`agent.host.patience` says why). Then the pause ends, whoever pauses asks in his own
way and finds out, and no second thread is started here before the first has come back. Who looks somewhere else in the
meantime notices that, and so does the loop, seldom: to wake it costs more than a look. So either all wait for the
kernel or all look: as soon as one has to look, all others do so too.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from agent.host import ticks
from agent.host.threads import Thread
from agent.host.watches import Watches

MOST_SECONDS: Final = 600.0
"""A pause ends after so long though nothing has changed: a net, under looks that see all there is to see. What follows
costs as much as fifty looks."""
STALLED_SECONDS: Final = 2.0
"""A look that takes longer ends the pause."""
CHECKED_SECONDS: Final = 20.0
"""How often the loop itself sees to that, where nobody else looks."""
TOLD_SECONDS: Final = 15.0
"""How often one looks who would be told. After something was told, which may be of no concern here and happen again at
once, he looks by himself for as long."""

_paused: dict[Quiet, Callable[[], None]] = {}
"""The pauses that last, and what ends each, from any thread."""


class Quiet:
    """Pauses that last as long as all looks the same.

    Args:
        every: seconds between two looks.
        most: seconds of the longest pause.

    *Resources*: a daemon thread for as long as a pause lasts, and for as long as a look hangs; its descriptors.
    """

    def __init__(self, every: float, most: float = MOST_SECONDS) -> None:
        self._every = every
        self._most = most
        self._thread: threading.Thread | None = None
        self._late = 0.0  # when its thread must have been seen alive again
        self._must_look = False  # the kernel would not tell
        self._watches: Watches | None = None

    async def pause(self, changed: Callable[[], bool], paths: Sequence[Path] = ()) -> None:
        """Return when ``changed``, called in a thread again and again, says so, or after the longest pause.

        Args:
            changed: looks.
            paths: all that it looks at; nothing: it cannot be said.
        """
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

        self._must_look = False
        self._alive(0.0)
        _paused[self] = wake
        timer: asyncio.TimerHandle | None = None

        def soon() -> asyncio.TimerHandle:
            return loop.call_later(ticks.left(loop.time(), CHECKED_SECONDS), check)

        def check() -> None:
            nonlocal timer
            if self.stalled(time.monotonic()):
                end()
            else:
                timer = soon()

        try:
            try:
                self._thread = Thread(partial(self._look, changed, paths, left, wake), "quiet")
                self._thread.start()
            except RuntimeError:  # no more threads
                self._thread = None
                await asyncio.sleep(self._every)
                return
            timer = soon()
            await over
        finally:
            del _paused[self]
            left.release()
            self.stir()
            if timer is not None:
                timer.cancel()

    def stir(self) -> None:
        """Have it look soon: something may be otherwise that the kernel does not tell of. From any thread."""
        watches = self._watches
        if watches is not None:
            watches.wake()

    def _look(
        self, changed: Callable[[], bool], paths: Sequence[Path], left: threading.Lock, wake: Callable[[], None]
    ) -> None:
        began = watched_from = time.monotonic()
        try:
            # First at once: what changes before the first look, and is compared with it, would not be seen.
            while not changed():
                now = self._alive(0.0)
                if now - began >= self._most:
                    break
                self._see_to_others(now)
                if self._watches is None:
                    if now >= watched_from and not self._must_look and not _one_must_look():
                        self._watch(paths)
                        continue  # what changed before it was watched is looked for
                    if left.acquire(timeout=self._every):
                        break
                elif left.acquire(blocking=False):
                    break
                elif self._told() or _one_must_look():
                    now = self._alive(0.0)
                    watched_from = now + TOLD_SECONDS
                    self._unwatch()
                    _have_all_look()
                    # Whoever writes again and again is heeded as often as if he were looked for.
                    if left.acquire(timeout=max(0.0, began + self._every - now)):
                        break
                self._alive(0.0)
        finally:
            self._unwatch()
            wake()

    def _told(self) -> bool:
        assert self._watches is not None
        self._alive(TOLD_SECONDS)
        return self._watches.wait(TOLD_SECONDS)

    def _watch(self, paths: Sequence[Path]) -> None:
        self._watches = Watches.on(paths) if paths else None
        self._must_look = self._watches is None
        if self._must_look:
            _have_all_look()

    def _unwatch(self) -> None:
        watches, self._watches = self._watches, None
        if watches is not None:
            watches.close()

    def _alive(self, asleep: float) -> float:
        """Its thread is alive, and now sleeps for so long at most; returns the moment."""
        now = time.monotonic()
        self._late = now + asleep + self._every + STALLED_SECONDS
        return now

    def _see_to_others(self, now: float) -> None:
        for other, wake_other in tuple(_paused.items()):
            if other.stalled(now):
                wake_other()

    @property
    def must_look(self) -> bool:
        """Whether the kernel would not tell it."""
        return self._must_look

    def stalled(self, now: float) -> bool:
        """Whether its look hangs, at a moment of ``time.monotonic``."""
        return now > self._late


def _one_must_look() -> bool:
    return any(one.must_look for one in tuple(_paused))


def _have_all_look() -> None:
    for one in tuple(_paused):
        one.stir()
