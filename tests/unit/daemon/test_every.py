"""A pause follows the configuration while it lasts."""

from __future__ import annotations

import asyncio

import pytest

from agent.daemon.every import Every
from tests.fakes.clock import FakeClock, settle


@pytest.mark.parametrize(
    ("passed", "seconds", "left"), [(10.0, 15.0, 5.0), (20.0, 15.0, 0.0), (10.0, 100.0, 90.0), (10.0, 60.0, 50.0)]
)
def test_a_pause_has_the_length_that_the_configuration_says_now(passed: float, seconds: float, left: float) -> None:
    """Shorter, longer or as before: it counts from its own begin, and what is over is over at once."""

    async def scenario() -> None:
        clock, length = FakeClock(), [60.0]
        every = Every(clock, lambda: length[0])
        pause = asyncio.create_task(every.pause())
        await settle()
        await clock.advance(passed)
        length[0] = seconds
        every.changed()
        await settle()
        if left:
            await clock.advance(left - 1)
            assert not pause.done()
            await clock.advance(1)
        await settle()
        assert pause.done()

    asyncio.run(scenario())


def test_a_pause_ends_early_only_for_what_it_was_told() -> None:
    """A change that is not the one that ends it does not end it."""

    async def scenario() -> None:
        clock, over = FakeClock(), [False]
        every = Every(clock, lambda: 60.0)
        pause = asyncio.create_task(every.pause(lambda: over[0]))
        await settle()
        every.changed()
        await settle()
        assert not pause.done()
        over[0] = True
        every.changed()
        await settle()
        assert pause.done()

    asyncio.run(scenario())
