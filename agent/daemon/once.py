"""Work that may be asked for often and is done one at a time: a thousand signals are not a thousand reloads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agent.daemon.unending import unending


class Once:
    """Does a piece of work when asked; asked while it is under way, once more after that, however often.

    So the work *begins* after the asking, at least once.

    Args:
        work: what to do. What it raises is a defect of ours: it is logged, ends that round, and no other.
        name: of the task.

    Attributes:
        task: the round that is under way, or was last.
    """

    def __init__(self, work: Callable[[], Awaitable[object]], *, name: str) -> None:
        self.task: asyncio.Task[None] | None = None
        self._work = work
        self._name = name
        self._wanted = False

    @property
    def wanted(self) -> bool:
        """Whether the work will be done once more after the present round."""
        return self._wanted

    def ask(self) -> None:
        """Have it done. Returns at once."""
        self._wanted = True
        if self.task is None or self.task.done():
            rounds = unending(self._do, work=self._name, sleep=asyncio.sleep, seconds=0.0)
            self.task = asyncio.create_task(rounds, name=self._name)

    async def _do(self) -> None:
        while self._wanted:
            self._wanted = False
            await self._work()
