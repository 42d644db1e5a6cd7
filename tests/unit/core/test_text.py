"""What people read of instants, lengths of time and the system's refusals."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta, timezone

import pytest

from agent.core.text import instant, os_reason, spell, when

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_an_instant_is_utc_and_never_later_than_it_is() -> None:
    """Whatever zone it is given in, and rounded down: a credential must not be said to end later than it does."""
    there = timezone(timedelta(hours=5, minutes=30))
    assert instant(datetime(2026, 11, 24, 17, 30, 0, 999999, tzinfo=there)) == "2026-11-24T12:00:00Z"


@pytest.mark.parametrize(
    ("seconds", "words", "finer"),
    [
        (0, "0 s", "0 s"),
        (59, "59 s", "59 s"),
        (90, "1 min", "1 min 30 s"),
        (120, "2 min", "2 min"),
        (3661, "1 h 1 min", "1 h 1 min"),
        (86400 + 3600, "1 d 1 h", "1 d 1 h"),
    ],
)
def test_a_length_is_said_in_two_units(seconds: int, words: str, finer: str) -> None:
    """Seconds beside minutes only where somebody asks for them."""
    length = timedelta(seconds=seconds)
    assert (spell(length), spell(length, seconds=True)) == (words, finer)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (119, "in 119 s"),
        (0, "in 0 s"),
        (-0.5, "0 s ago"),
        (-119, "119 s ago"),
        (120, "in 2 min"),
        (5 * 3600 + 300, "in 5 h 05 min"),
        (-26 * 3600, "26 h 00 min ago"),
    ],
)
def test_a_moment_is_said_from_here(seconds: float, words: str) -> None:
    """How far off it is, ahead or behind."""
    assert when(NOW + timedelta(seconds=seconds), NOW) == words


def test_the_systems_reason_is_without_the_path() -> None:
    """What the system says of the error, in lower case; of one that it says nothing of, so much."""
    assert (
        os_reason(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/secret")) == "no such file or directory"
    )
    assert os_reason(OSError("odd")) == "unknown error"
    assert os_reason(OSError("odd"), "cannot be run") == "cannot be run"
