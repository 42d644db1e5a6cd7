"""`Retry-After` in both of its forms, and what is no such thing."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.upstream import LONGEST_PAUSE_SECONDS, asked_pause

DATE = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("17", 17),
        (" 17 ", 17),
        ("86400", LONGEST_PAUSE_SECONDS),
        ("9" * 400, LONGEST_PAUSE_SECONDS),
        ("Sat, 28 Nov 2026 12:00:40 GMT", 40),
        ("Sat, 28 Nov 2026 12:00:40 -0000", 40),
        ("Sat, 28 Nov 2026 11:59:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_PAUSE_SECONDS),
        ("Fri, 31 Dec 9999 23:59:59 -2359", LONGEST_PAUSE_SECONDS),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
        ("-5", 0),
        ("1.5", 0),
        ("soon", 0),
        ("\u0665", 0),
        ("", 0),
    ],
)
def test_what_is_asked_is_heard_within_bounds(text: str, seconds: float) -> None:
    """Seconds and dates are heard, up to five minutes; the past and nonsense are no pause."""
    assert asked_pause({"Retry-After": text}, DATE) == seconds


def test_a_date_needs_the_answers_own_date() -> None:
    """A moment is told from the answer's own time: without it nothing is guessed from our clock."""
    assert asked_pause({"Retry-After": format_datetime(DATE, usegmt=True)}, None) == 0
    assert asked_pause({}, DATE) == 0


@given(st.text(max_size=60))
def test_no_text_is_an_error(text: str) -> None:
    """Whatever a server writes there, the pause is a number within the bounds."""
    assert 0 <= asked_pause({"Retry-After": text}, DATE) <= LONGEST_PAUSE_SECONDS
