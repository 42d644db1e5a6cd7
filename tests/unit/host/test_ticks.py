"""Who looks from time to time is woken with all others that do."""

from __future__ import annotations

import pytest

from agent.host import ticks


@pytest.mark.parametrize("every", [0.25, 10.0, 15.0, 20.0, 30.0])
@pytest.mark.parametrize("began", [0.0, 0.125, 29.875, 30.0, 59.75, 123_456.625, 10_000_000.375])
def test_whoever_begins_when_all_are_woken_at_the_same_instants(began: float, every: float) -> None:
    """The next instant is a whole multiple, no look is later than without that, and none waits for nothing."""
    left = ticks.left(began, every)
    assert 0 < left <= every
    assert (began + left) % every == 0
