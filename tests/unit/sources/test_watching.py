"""The loop that the sources share."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import SourceError
from agent.core.model import SealedBundle
from agent.sources.watching import RetryLater, keep_watching, retry_seconds
from tests.unit.sources.support import Listener, StepClock, run


@given(attempt=st.integers(min_value=1, max_value=10_000), seed=st.integers(min_value=0, max_value=99))
def test_the_wait_is_jittered_over_its_whole_length_and_bounded(attempt: int, seed: int) -> None:
    """Never in a tight loop, never more than a minute, never more than doubling allows."""
    seconds = retry_seconds(attempt, random.Random(seed))
    assert 0.2 <= seconds <= max(0.2, min(60.0, 2.0 ** min(attempt - 1, 16)))


def test_a_fleet_that_fails_together_comes_back_spread_out() -> None:
    """Ten thousand workers at their tenth failure: no second of the minute gets much more than its share."""
    waits = [retry_seconds(10, random.Random(n)) for n in range(10_000)]
    each = [sum(second <= wait < second + 1 for wait in waits) for second in range(60)]
    assert max(each) < 2 * 10_000 / 60


def test_failures_grow_the_wait_and_success_forgets_them() -> None:
    """The wait grows with failures in a row, a look that goes well starts it anew, and a request to wait is heeded."""

    async def test() -> None:
        script = [SourceError("1")] * 6 + [None] + [RetryLater("later", seconds=100.0)] + [SealedBundle(b"x", "s")] * 2
        heard, clock = Listener(), StepClock()

        async def look() -> SealedBundle | None:
            if not script:
                raise KeyboardInterrupt
            step = script.pop(0)
            if isinstance(step, SourceError):
                raise step
            return step

        class Top(random.Random):
            def uniform(self, a: float, b: float) -> float:
                return b

        import asyncio

        task = asyncio.ensure_future(
            keep_watching(
                look,
                lambda: 7.0,
                submit=heard.submit,
                on_error=heard.trouble,
                on_success=heard.ok,
                clock=clock,
                rng=Top(),
            )
        )
        waits = [await clock.step() for _ in range(9)]
        assert waits == [1, 2, 4, 8, 16, 32, 7, 101, 7]
        await clock.asleep()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(heard.troubles) == 7
        assert heard.bodies == [b"x"], "the same bytes are submitted once"
        assert heard.oks == 3

    run(test())


def test_our_own_mistakes_are_not_the_sources_trouble() -> None:
    """An error that is none of the source's goes up to the controller's border."""

    async def look() -> None:
        raise ZeroDivisionError

    async def test() -> None:
        heard = Listener()
        with pytest.raises(ZeroDivisionError):
            await keep_watching(
                look,
                lambda: 0.0,
                submit=heard.submit,
                on_error=heard.trouble,
                on_success=heard.ok,
                clock=StepClock(),
                rng=random.Random(1),
            )
        assert heard.troubles == []

    run(test())
