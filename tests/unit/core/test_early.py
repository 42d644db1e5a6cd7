"""How soon clients ask again while a bundle may still come."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from agent.core.early import SHORTEST, STEP, early_end
from tests.fakes.clock import START


@given(st.floats(0, 1e8), st.floats(0, 1))
def test_it_is_between_eighteen_and_twenty_minutes_away(seconds: float, share: float) -> None:
    """At every instant, for every worker; and what is told later never ends sooner."""
    now, phase = START + timedelta(seconds=seconds), STEP * share
    end = early_end(now, phase)

    assert SHORTEST - timedelta(seconds=1) <= end - now <= SHORTEST + STEP
    assert end.microsecond == 0
    assert early_end(now + timedelta(seconds=30), phase) >= end


def test_it_stands_still_between_two_requests() -> None:
    """In an hour of a request a second there are thirty ends and not 3,600: who compares sees the same credential."""
    ends = {early_end(START + timedelta(seconds=second)) for second in range(3600)}

    assert len(ends) in (30, 31)
