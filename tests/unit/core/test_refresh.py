"""The arithmetic of renewal, as properties over lifetimes and seeds."""

from __future__ import annotations

import random
from datetime import timedelta

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
