"""The arithmetic of renewal, as properties over lifetimes and seeds."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import refresh
from tests.fakes.clock import START

lifetimes = st.integers(15 * 60, 36 * 3600).map(lambda s: timedelta(seconds=s))
seeds = st.integers(0, 2**32).map(random.Random)
MINUTE = timedelta(minutes=1)


@given(lifetimes, seeds)
def test_aws_is_renewed_within_the_window(lifetime: timedelta, rng: random.Random) -> None:
    """An AWS credential is renewed between three quarters and the whole of min(60 min, L/3)."""
    age = refresh.renew_aws_at(START, START + lifetime, rng) - START
    bound = min(60 * MINUTE, lifetime / 3)

    assert bound * 0.75 <= age <= bound


@given(lifetimes, seeds)
def test_every_client_finds_a_fresh_aws_credential(lifetime: timedelta, rng: random.Random) -> None:
    """A client that read a credential at any moment of its service finds another at its first attempt to refresh.

    The earliest attempts known: Java at half of what was left when it read; the 2026 cross-SDK rule at 60 minutes before
    the end for sessions of 90 minutes and more; botocore at 15 minutes before the end.
    """
    renewed = refresh.renew_aws_at(START, START + lifetime, rng)
    half_life_of_the_first_reader = START + lifetime / 2
    advisory = START + lifetime - (60 * MINUTE if lifetime >= 90 * MINUTE else 15 * MINUTE)

    assert renewed <= half_life_of_the_first_reader
    if lifetime > 22.5 * MINUTE:
        assert renewed <= max(advisory, START)
    assert lifetime - (renewed - START) >= lifetime * 2 / 3


@given(st.integers(3600, 12 * 3600).map(lambda s: timedelta(seconds=s)), seeds)
def test_a_google_token_outlasts_twenty_minutes_without_upstream(lifetime: timedelta, rng: random.Random) -> None:
    """A Google token of an hour and more is replaced while it has ten minutes left even after a 20-minute outage."""
    left = START + lifetime - refresh.renew_google_at(START, START + lifetime, rng)

    assert 32 * MINUTE <= left <= 40 * MINUTE


@given(st.integers(60, 3600).map(lambda s: timedelta(seconds=s)), seeds)
def test_a_short_google_token_is_replaced_in_proportion(lifetime: timedelta, rng: random.Random) -> None:
    """Of a Google token that lives less than an hour, at least 32 minutes in sixty are left when it is replaced."""
    left = START + lifetime - refresh.renew_google_at(START, START + lifetime, rng)

    assert lifetime * 32 / 60 - timedelta(microseconds=2) <= left <= lifetime * 40 / 60


@given(st.integers(1, 10_000), st.none() | st.integers(0, 86_400), st.booleans(), seeds)
def test_retries_never_stop_and_never_storm(attempt: int, left: int | None, denied: bool, rng: random.Random) -> None:
    """Every wait lies between the floor and the cap of its kind, after any number of failures."""
    seconds = refresh.retry_seconds(attempt, None if left is None else timedelta(seconds=left), denied=denied, rng=rng)
    urgent = left is None or left <= 900
    cap = (60.0 if urgent else 300.0) if denied else (30.0 if urgent else 60.0)

    assert refresh.RETRY_FLOOR_SECONDS <= seconds <= cap


@given(st.integers(1, 6 * 3600), st.booleans(), seeds)
def test_the_machines_own_is_read_again_before_it_ends(left: int, google: bool, rng: random.Random) -> None:
    """The machine's own credential is read again before its end, unless it ends within seconds."""
    expires = START + timedelta(seconds=left)
    again = refresh.reread_instance_at(START, expires, google=google, rng=rng)

    assert again > START
    assert again <= max(expires, START + timedelta(seconds=2))


@given(st.floats(0, 300), st.none() | st.integers(0, 86_400))
def test_a_pause_that_was_asked_for_is_kept_within_reason(asked: float, left: int | None) -> None:
    """A server's pause is kept, but never over a quarter of the life left, nor over half a minute when time is short."""
    kept = refresh.pause_seconds(asked, None if left is None else timedelta(seconds=left))

    assert 0 <= kept <= asked
    assert kept <= (30 if left is None or left <= 900 else asked)
    assert left is None or kept <= left / 4
    if left is not None and left > 1200:
        assert kept == asked


def test_a_fleet_in_its_last_quarter_hour_asks_less_than_sts_throttles_at() -> None:
    """Ten thousand workers whose credentials end within minutes ask STS fewer than 600 times a second, at the mean."""
    rng = random.Random(1)
    waits = [refresh.retry_seconds(40, 10 * MINUTE, denied=False, rng=rng) for _ in range(10_000)]
    assert 10_000 / (sum(waits) / len(waits)) < 600


class Edge(random.Random):
    """Draws the lowest or the highest that may be drawn."""

    def __init__(self, share: float) -> None:
        super().__init__(0)
        self._share = share

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self._share

    def random(self) -> float:
        return self._share


LOW, HIGH = Edge(0.0), Edge(1.0)


def between(seconds: Callable[[random.Random], float]) -> tuple[float, float]:
    """The least and the most that may be drawn."""
    return seconds(LOW), seconds(HIGH)


@pytest.mark.parametrize(
    ("attempt", "left", "how", "bounds"),
    [
        (1, None, {}, (0.2, 1.0)),
        (2, None, {}, (0.2, 2.0)),
        (5, None, {}, (0.2, 16.0)),
        (6, None, {}, (15.0, 30.0)),
        (60, None, {}, (15.0, 30.0)),
        (60, 15 * MINUTE, {}, (15.0, 30.0)),
        (60, 16 * MINUTE, {}, (0.2, 60.0)),
        (6, 16 * MINUTE, {}, (0.2, 32.0)),
        (60, None, {"local": True}, (0.2, 10.0)),
        (3, None, {"local": True}, (0.2, 4.0)),
        (60, 16 * MINUTE, {"local": True}, (0.2, 60.0)),
        (1, None, {"denied": True}, (7.5, 15.0)),
        (2, 16 * MINUTE, {"denied": True}, (15.0, 30.0)),
        (60, None, {"denied": True}, (30.0, 60.0)),
        (60, 16 * MINUTE, {"denied": True}, (150.0, 300.0)),
    ],
)
def test_how_long_a_retry_waits(
    attempt: int, left: timedelta | None, how: dict[str, bool], bounds: tuple[float, float]
) -> None:
    """It doubles up to a bound, which is lower in the last quarter hour and for the machine's own service."""
    denied, local = how.get("denied", False), how.get("local", False)

    assert between(lambda rng: refresh.retry_seconds(attempt, left, denied=denied, rng=rng, local=local)) == bounds


@pytest.mark.parametrize(
    ("left", "google", "bounds"),
    [
        (6 * 60 * MINUTE, False, (225.0, 300.0)),
        (9 * MINUTE, False, (135.0, 180.0)),
        (timedelta(seconds=3), False, (1.5, 2.0)),
        (60 * MINUTE, True, (1800.0, 1800.0)),
        (30 * MINUTE, True, (1080.0, 1080.0)),
        (12 * MINUTE, True, (22.5, 30.0)),
        (timedelta(seconds=100), True, (7.5, 10.0)),
        (timedelta(seconds=1), True, (1.5, 2.0)),
    ],
)
def test_when_the_machines_own_is_read_again(left: timedelta, google: bool, bounds: tuple[float, float]) -> None:
    """Every five minutes, or at a third of what is left; Google's each half hour, and each half minute at its end."""

    def seconds(rng: random.Random) -> float:
        return (refresh.reread_instance_at(START, START + left, google=google, rng=rng) - START).total_seconds()

    assert between(seconds) == bounds


@pytest.mark.parametrize(
    ("asked", "left", "kept"),
    [
        (100.0, None, 30.0),
        (10.0, None, 10.0),
        (100.0, 15 * MINUTE, 30.0),
        (100.0, 16 * MINUTE, 100.0),
        (1000.0, 16 * MINUTE, 240.0),
        (100.0, MINUTE, 15.0),
        (100.0, -MINUTE, 0.0),
    ],
)
def test_how_much_of_a_pause_is_kept(asked: float, left: timedelta | None, kept: float) -> None:
    """All of it while much is held, and a quarter of the life left at most."""
    assert refresh.pause_seconds(asked, left) == kept


def test_the_oldest_that_each_grows() -> None:
    """Google's is replaced 32 minutes before its end at the latest, a shorter one in proportion; AWS's after an hour."""
    assert refresh.oldest_google(2 * 60 * MINUTE) == 88 * MINUTE
    assert refresh.oldest_google(30 * MINUTE) == 14 * MINUTE
    assert refresh.oldest_aws(12 * 60 * MINUTE) == 60 * MINUTE
    assert refresh.oldest_aws(90 * MINUTE) == 30 * MINUTE
