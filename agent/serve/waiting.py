"""Waiting for the view to change: the one thing that a listener may wait for on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agent.core.clock import Clock
from agent.core.model import Cloud
from agent.core.view import Answer, Pending, View

Changed = Callable[[int], Awaitable[None]]
"""Returns once ``view.version`` differs from the one given; at once when it already does."""


class Changes:
    """A :data:`Changed` for a view that somebody rings for.

    Given the version that the waiter saw, no change between its look and its wait can be missed.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._event = asyncio.Event()

    def notify(self) -> None:
        """The version may have changed. Called in the event loop's thread."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def __call__(self, seen: int) -> None:
        """Wait until the view's version is not ``seen``."""
        while self._view.version == seen:
            await self._event.wait()


class Watch:
    """The view with a clock, and the waiting for it."""

    def __init__(self, view: View, clock: Clock, changed: Changed) -> None:
        self.view = view
        self.clock = clock
        self._changed = changed

    def look(self, cloud: Cloud) -> Answer:
        """The answer now."""
        return self.view.answer(cloud, self.clock.now())

    async def settled(self, cloud: Cloud, seconds: float) -> Answer:
        """The first answer that is not :class:`Pending`, or the pending one after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    seen = self.view.version
                    answer = self.look(cloud)
                    if not isinstance(answer, Pending):
                        return answer
                    await self._changed(seen)
        except TimeoutError:
            return self.look(cloud)

    async def changed(self, seen: int) -> None:
        """Wait until the view's version is not ``seen``."""
        await self._changed(seen)
