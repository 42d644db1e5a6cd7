"""A watch that nobody waits for does not end with what it raises."""

from __future__ import annotations

import asyncio
import errno
import weakref

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
            task = asyncio.create_task(unending(watch, work="a look", sleep=clock.sleep))
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
        task = asyncio.create_task(unending(asyncio.Event().wait, work="a look", sleep=FakeClock().sleep))
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


@pytest.mark.parametrize("times", [1, 2, 6])
def test_what_is_done_about_a_crash_may_fail_as_well(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Without memory to say so, or for the pause, it goes on as soon as there is some."""
    lacking = {"log": times, "pause": times}

    def lacks(what: str) -> None:
        if lacking[what]:
            lacking[what] -= 1
            raise MemoryError

    async def scenario() -> int:
        begun = 0

        async def watch() -> None:
            nonlocal begun
            begun += 1
            if begun <= times:
                raise MemoryError

        async def sleep(_seconds: float) -> None:
            lacks("pause")

        monkeypatch.setattr(structlog, "get_logger", lambda: lacks("log"))
        await unending(watch, work="a look", sleep=sleep)
        return begun

    assert asyncio.run(scenario()) == times + 1
    assert lacking == {"log": 0, "pause": 0}


def test_what_broke_off_is_held_no_longer_than_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the broken round held (a socket, say, whose other end waits for its end) is let go before the pause."""

    class Held:
        def error(self, *_: object, **__: object) -> None:
            """Tell nobody."""

    seen: list[weakref.ref[Held]] = []
    held: list[bool] = []

    async def watch() -> None:
        if not seen:
            one = Held()
            seen.append(weakref.ref(one))
            raise ZeroDivisionError

    async def sleep(_seconds: float) -> None:
        held.append(seen[0]() is not None)

    monkeypatch.setattr(structlog, "get_logger", Held)
    asyncio.run(unending(watch, work="a look", sleep=sleep))
    assert held == [False]
