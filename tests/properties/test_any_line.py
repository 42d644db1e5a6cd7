"""Whichever line of the controller fails for want of memory, and some after it: nothing is lost, and renewal goes on.

The tests of single parts have a *fake* fail: the disk, the cloud, the key service. A machine without memory fails
anywhere: between what a withdrawal changes and its being written down, or in what takes note of a failure. Here every
line that may fail does so, one in each run, or a row of those that the same task runs; then all is well again, and the
rules must hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import structlog

from agent.core.model import AwsCredential, Cloud
from agent.core.view import Live
from tests.fakes.clock import settle
from tests.fakes.faults import Fault, broken_by
from tests.properties.test_meanwhile import Made, Meanwhile

LIFE = timedelta(minutes=20)
STUCK_SECONDS = 180.0
"""After so long without a round the service manager ends a process."""


def broke_off(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None


class AnyLine(Meanwhile):
    """A controller whose outside answers, with a service manager and a source that bring on what broke off."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.unheard: list[Made] = []
        super().__init__()
        loop = asyncio.get_running_loop()
        loop.time = self.clock.boottime  # type: ignore[method-assign]
        loop.set_exception_handler(lambda _loop, _context: None)  # what nobody waits for may break off

    def _acknowledged(self) -> None:
        for one, task in [pair for pair in self.acks if pair[1].done() and broke_off(pair[1])]:
            self.acks.remove((one, task))
            self.unheard.append(one)  # 500, or a source that crashed
        super()._acknowledged()

    async def flow(self, seconds: float, rounds: int = 1, *, well: bool = True) -> None:
        """Time passes; everything that is asked meanwhile is answered."""
        for _ in range(rounds):
            for held in (self.opening, self.writing, self.issuing):
                while any(not call.done() for call in held.calls):
                    held.let_go(0, well=well)
                    await settle(8)
            await self.clock.advance(seconds)
            self.hand_over()
            self.look()
            await self._brought_on()

    async def _brought_on(self) -> None:
        stuck = self.clock.boottime() - self.controller.last_step > STUCK_SECONDS
        if self.tasks[0].done() or stuck:
            await self.succeed(put_back=False)
        for task in [one for one in self.tasks[1:] if one.done()]:
            self.tasks.remove(task)
            if broke_off(task):
                self.settle()  # whoever asks who we are asks again
        unheard, self.unheard = self.unheard, []
        for one in unheard:
            self._submit(one, "file")

    def _credential(self, name: str) -> AwsCredential:
        return msgspec.structs.replace(super()._credential(name), expires_at=self.clock.now() + LIFE)

    async def serves(self) -> None:
        """All is well from here on: what was accepted is served, and renewed before its end."""
        self.fault.over()
        await self.flow(LIFE.total_seconds() / 5, 6)
        answer = self.store.answer(Cloud.AWS, self.clock.now())
        assert isinstance(answer, Live), answer
        assert self.disk[0] == self.store.memory, "the disk is behind"
        assert not self.controller.durable.unwritten


async def renewed(it: AnyLine) -> None:
    """A bundle is accepted, renewed, and not renewed for once; another sender's takes its place."""
    it.bring("a", "file")
    await it.flow(1, 2)
    await it.flow(300, 3)
    await it.flow(600, well=False)
    await it.flow(30, 2)
    it.bring("b", "https")
    await it.flow(1, well=False)
    await it.flow(40, 2)
    await it.serves()


async def withdrawn(it: AnyLine) -> None:
    """A withdrawal is heard, acknowledged, and known to the process after a kill."""
    it.bring("a", "file")
    await it.flow(1, 3)
    it.bring("a", "file", withdraw=True)
    await it.flow(1, 3)
    it.fault.over()
    await it.flow(40, 4)
    assert it.store.memory.active is None
    await it.restart()
    await it.flow(1, 2)
    assert it.store.memory.active is None, "a withdrawal was forgotten"


Story = Callable[[AnyLine], Coroutine[Any, Any, None]]


async def told(story: Story, fault: Fault) -> None:
    with fault:
        it = AnyLine(fault)
        try:
            await it.flow(1)
            await story(it)
        finally:
            fault.over()
            await it.end()


DURABLE = ("controller/durable", "controller/intake", "controller/retries")


@pytest.mark.parametrize(("row", "error"), [(1, MemoryError), (3, MemoryError), (1, asyncio.CancelledError)])
@pytest.mark.parametrize(("story", "files"), [(renewed, ("controller/issuing",)), (withdrawn, DURABLE)])
def test_whichever_line_fails_nothing_is_lost(
    story: Story, files: tuple[str, ...], row: int, error: type[BaseException]
) -> None:
    """Each line that runs fails once; then what was accepted is served and renewed, and what was withdrawn stays so.

    What is waited for may be cancelled by others, by a library say.
    """
    with structlog.testing.capture_logs():
        broken = broken_by(files, lambda fault: asyncio.run(told(story, fault)), error, row)

    assert broken == {}
