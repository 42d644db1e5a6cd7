"""A clock whose hands the test moves. It wakes sleepers on ``advance`` and tells when someone sleeps."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


class FakeClock:
    """Implements :class:`agent.core.clock.Clock`."""

    def __init__(self, start: datetime = START, *, boottime: float = 1000.0) -> None:
        self._utc = start
        self._boottime = boottime
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> datetime:
        return self._utc

    def timestamp(self) -> float:
        return self._utc.timestamp()

    def boottime(self) -> float:
        return self._boottime

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._boottime + seconds, next(self._order), future))
        await future

    @property
    def sleeping(self) -> int:
        """How many tasks sleep on this clock."""
        return sum(not future.done() for _, _, future in self._sleepers)

    def next_waking(self) -> float | None:
        """Seconds until the next sleeper is due."""
        live = [at for at, _, future in self._sleepers if not future.done()]
        return max(min(live) - self._boottime, 0.0) if live else None

    def set_utc(self, moment: datetime) -> None:
        """Step UTC without the passing of time: a correction."""
        self._utc = moment

    def move(self, seconds: float) -> None:
        """Let time pass and wake whoever is due, without giving them the loop yet."""
        self._boottime += seconds
        self._utc += timedelta(seconds=seconds)
        while self._sleepers and self._sleepers[0][0] <= self._boottime:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    async def advance(self, seconds: float) -> None:
        """Let time pass in steps from sleeper to sleeper, giving each the loop when its time has come."""
        end = self._boottime + seconds
        await settle()
        while (wait := self.next_waking()) is not None and self._boottime + wait <= end:
            self.move(wait)
            await settle()
        self.move(end - self._boottime)
        await settle()


async def settle(rounds: int = 20) -> None:
    """Give every ready task the loop until things are quiet."""
    for _ in range(rounds):
        await asyncio.sleep(0)
