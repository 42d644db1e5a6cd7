"""One thing at a time, and never too seldom."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from agent.daemon.once import Once
from tests.fakes.clock import settle


class Work:
    """Counts its rounds; each goes on until it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.gate = asyncio.Event()

    async def __call__(self) -> None:
        self.begun += 1
        await self.gate.wait()


@pytest.mark.parametrize("asks", [1, 2, 1000])
def test_any_number_while_it_is_under_way_is_one_more(asks: int) -> None:
    """What is asked for while it is done is done once more afterwards, and no oftener; then it rests."""

    async def scenario() -> None:
        work = Work()
        once = Once(work, name="work")
        once.ask()
        await settle()
        for _ in range(asks):
            once.ask()
        await settle()
        assert work.begun == 1
        assert once.wanted
        work.gate.set()
        await settle()
        assert work.begun == 2
        assert not once.wanted
        assert once.task is not None
        assert once.task.done()

    asyncio.run(scenario())


def test_each_asking_is_followed_by_a_beginning() -> None:
    """Whoever asks after it has begun gets a round that begins after that: it sees what it was asked for."""

    async def scenario() -> None:
        work = Work()
        work.gate.set()
        once = Once(work, name="work")
        for number in range(1, 5):
            once.ask()
            await settle()
            assert work.begun == number

    asyncio.run(scenario())


def test_a_round_that_fails_keeps_no_later_one_from_being_done() -> None:
    """An error is logged and ends its round alone: what was asked for meanwhile is done, and so is what is asked later."""

    async def scenario() -> None:
        rounds = 0
        gate = asyncio.Event()

        async def failing() -> None:
            nonlocal rounds
            rounds += 1
            if rounds == 1:
                await gate.wait()
                raise ZeroDivisionError

        once = Once(failing, name="a piece")
        with structlog.testing.capture_logs() as logs:
            once.ask()
            await settle()
            once.ask()
            gate.set()
            await settle()
            assert rounds == 2
            assert once.task is not None
            assert once.task.done()
            once.ask()
            await settle()
        assert rounds == 3
        assert [(line["event"], line["work"], line["error"]) for line in logs] == [
            ("work.crashed", "a piece", "ZeroDivisionError")
        ]

    asyncio.run(scenario())
