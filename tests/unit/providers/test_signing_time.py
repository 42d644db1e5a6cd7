"""Requests are dated by the time of the server that refused ours, and nobody else hears of it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from agent.providers.signing_time import SigningTime
from tests.fakes.clock import START, FakeClock

HOUR = timedelta(hours=1)


def test_a_server_that_refused_ours_is_dated_to_by_its_own() -> None:
    """From its refusal on, and as time goes on; whatever is done to our clock meanwhile."""
    clock = FakeClock()
    times = SigningTime(clock.boottime)
    times.refused("https://one/", START + 5 * HOUR)

    assert times.at("https://one/", START) == START + 5 * HOUR
    assert times.at("https://other/", START) == START
    assert times.at("https://one/", START + 5 * HOUR) == START + 5 * HOUR


def test_a_server_that_does_not_go_by_its_own_date_gets_ours_again() -> None:
    """Its Date lies and its check does not: the two are tried in turn, so that every other request works."""
    times = SigningTime(FakeClock().boottime)
    times.refused("https://one/", START + HOUR)
    assert times.at("https://one/", START) == START + HOUR
    times.refused("https://one/", START + HOUR)
    assert times.at("https://one/", START) == START


@pytest.mark.parametrize("said", [None, START + 25 * HOUR, START - 25 * HOUR, START.replace(year=2099)])
def test_nobody_gets_a_signature_for_another_day(said: object) -> None:
    """A server that says it is next year does not get a signature that is good then."""
    times = SigningTime(FakeClock().boottime)
    times.refused("https://one/", said)  # type: ignore[arg-type]

    assert times.at("https://one/", START) == START
