"""How long a credential is good for, by the answer's own two times."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.providers.refusals import good_for
from tests.fakes.clock import START

HOUR = timedelta(hours=1)


@given(
    lied=st.sampled_from([-8 * HOUR, timedelta(0), timedelta(minutes=3)]),
    asking=st.floats(0, 1),
    way=st.floats(0, 20),
    back=st.floats(0, 20),
)
def test_it_ends_no_later_than_it_does(lied: timedelta, asking: float, way: float, back: float) -> None:
    """Counted from the moment of asking it is over when the credential is, though both times are cut to the second."""
    asked_at = START + timedelta(seconds=asking)
    issued_at = asked_at + timedelta(seconds=way)
    expires_at = (issued_at + HOUR).replace(microsecond=0)
    date = (issued_at + timedelta(seconds=back) + lied).replace(microsecond=0)
    length = good_for(expires_at, date, asked_at, HOUR)

    assert length is not None
    assert asked_at + length <= expires_at


@pytest.mark.parametrize("asked", [None, HOUR])
def test_without_a_date_nothing_is_counted(asked: timedelta | None) -> None:
    """An answer that does not say when it was given says no length either."""
    assert good_for(START + HOUR, None, START, asked) is None


def test_what_was_not_asked_for_is_what_the_answer_says() -> None:
    """Where no length was asked for, the answer's two times are all there is."""
    assert good_for(START + 6 * HOUR, START, START) == 6 * HOUR - timedelta(seconds=1)
