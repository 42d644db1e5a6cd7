"""One thing at a time, and never too seldom."""

from __future__ import annotations

import asyncio

import pytest

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
    """An error is the task's; the next asking begins anew."""

    async def scenario() -> None:
        rounds = 0

        async def failing() -> None:
            nonlocal rounds
            rounds += 1
            if rounds == 1:
                raise ZeroDivisionError

        once = Once(failing, name="work")
        once.ask()
        assert once.task is not None
        with pytest.raises(ZeroDivisionError):
            await once.task
        once.ask()
        await once.task
        assert rounds == 2

    asyncio.run(scenario())
