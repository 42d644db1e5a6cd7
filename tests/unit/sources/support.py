"""What the tests of the sources share: a clock that moves one sleep at a time, and a listener that remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from agent.core.errors import SourceError
from agent.core.model import SealedBundle

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


class StepClock:
    """A clock on which nobody wakes until the test lets one sleeper go."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self.passed = 0.0
        self._sleepers: asyncio.Queue[tuple[float, asyncio.Future[None]]] = asyncio.Queue()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.passed)

    def timestamp(self) -> float:
        return self.now().timestamp()

    def boottime(self) -> float:
        return 1000.0 + self.passed

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.put_nowait((seconds, woken))
        await woken

    async def step(self) -> float:
        """Wait until somebody sleeps, let that time pass, wake them; return how long they slept, in seconds."""
        seconds, woken = await asyncio.wait_for(self._sleepers.get(), 10)
        self.passed += seconds
        if not woken.done():
            woken.set_result(None)
        return seconds

    async def asleep(self) -> float:
        """Wait until somebody sleeps and leave them asleep; return for how long they mean to."""
        entry = await asyncio.wait_for(self._sleepers.get(), 10)
        self._sleepers.put_nowait(entry)
        return entry[0]


class Listener:
    """Stands where the controller stands."""

    def __init__(self) -> None:
        self.submitted: list[SealedBundle] = []
        self.troubles: list[SourceError] = []
        self.oks = 0
        self._news = asyncio.Event()

    async def submit(self, bundle: SealedBundle) -> None:
        self.submitted.append(bundle)
        self._news.set()

    def trouble(self, error: SourceError) -> None:
        self.troubles.append(error)
        self._news.set()

    def ok(self) -> None:
        self.oks += 1
        self._news.set()

    @property
    def bodies(self) -> list[bytes]:
        return [bundle.data for bundle in self.submitted]

    async def until(self, condition: Callable[[Listener], object]) -> None:
        """Wait, event by event, until the condition holds; ten seconds are a failure."""
        async with asyncio.timeout(10):
            while not condition(self):
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def watching(source: Any, listener: Listener) -> Any:
    """Watch ``source`` while the block runs; an error in the watcher is an error of the test."""
    task = asyncio.ensure_future(source.watch(listener.submit, on_error=listener.trouble, on_success=listener.ok))
    try:
        yield task
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def run(test: Coroutine[Any, Any, None] | Awaitable[None]) -> None:
    """Run one asynchronous test, half a minute at most."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(bounded())


def submitted(count: int) -> Callable[[Listener], bool]:
    """So many bundles were submitted."""
    return lambda heard: len(heard.submitted) == count


def oks(count: int) -> Callable[[Listener], bool]:
    """So many looks went well."""
    return lambda heard: heard.oks == count


def troubles(count: int) -> Callable[[Listener], bool]:
    """So many looks failed."""
    return lambda heard: len(heard.troubles) == count
