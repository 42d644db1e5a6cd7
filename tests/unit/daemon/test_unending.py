"""A watch that nobody waits for does not end with what it raises."""

from __future__ import annotations

import asyncio
import errno

import pytest
import structlog

from agent.daemon.unending import AGAIN_SECONDS, unending
from tests.fakes.clock import FakeClock, settle


def test_it_goes_on_after_whatever_it_raises_and_ends_with_its_return() -> None:
    """Each crash is logged, and the watch begins again after a pause; one that is done is not begun again."""
    crashes: list[Exception] = [MemoryError(), OSError(errno.EAGAIN, "no thread"), ZeroDivisionError()]

    async def scenario() -> None:
        begun, clock = 0, FakeClock()

        async def watch() -> None:
            nonlocal begun
            begun += 1
            if begun <= len(crashes):
                raise crashes[begun - 1]

        with structlog.testing.capture_logs() as logs:
            task = asyncio.create_task(unending(watch, work="a look", clock=clock))
            for number in range(1, len(crashes) + 1):
                await settle()
                assert begun == number
                await clock.advance(AGAIN_SECONDS)
            await task
        assert begun == len(crashes) + 1
        assert [(line["event"], line["work"], line["error"]) for line in logs] == [
            ("work.crashed", "a look", type(crash).__name__) for crash in crashes
        ]

    asyncio.run(scenario())


def test_it_is_cancelled_as_a_task_is() -> None:
    """The end of the daemon ends it."""

    async def scenario() -> None:
        task = asyncio.create_task(unending(asyncio.Event().wait, work="a look", clock=FakeClock()))  # type: ignore[arg-type]
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
