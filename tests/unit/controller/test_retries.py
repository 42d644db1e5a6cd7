"""Which bytes are looked at again, and when."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from agent.controller.retries import NEVER, Retries
from agent.core.model import SealedBundle
from tests.fakes.clock import FakeClock

A, B = SealedBundle(b"a", "one"), SealedBundle(b"b", "two")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def retries(clock: FakeClock) -> Retries:
    return Retries({"one", "two"}.__contains__, clock, random.Random(1))


def test_what_is_kept_is_due_once(retries: Retries, clock: FakeClock) -> None:
    """Until somebody keeps it anew: what is being looked at must not be begun again meanwhile."""
    now = clock.boottime()
    retries.keep(A, 0, 10.0)
    retries.keep(B, 0, 20.0)

    assert retries.due_at == now + 10
    assert retries.due(now + 9) == []
    assert retries.due(now + 10) == [A]
    assert retries.due(now + 10) == []
    assert retries.due_at == now + 20
    assert retries.origins == {"one", "two"}


def test_there_is_one_place_an_origin(retries: Retries) -> None:
    """Each source has one place, and what anybody can push has none: it must not pile up."""
    newer = SealedBundle(b"newer", "one")
    retries.keep(A, 0, 0.0)
    retries.keep(newer, 0, 0.0)
    retries.keep(SealedBundle(b"c", "pushed"), 0, 0.0)

    assert retries.due(NEVER) == [newer]
    assert retries.origins == {"one"}


def test_parts_of_an_origin_have_a_place_each(retries: Retries) -> None:
    """What one part of a source brought neither takes the place of another's nor counts as newer than it."""
    parts = [SealedBundle(b"a", "one", "instance"), SealedBundle(b"b", "one", "project")]
    for part in parts:
        retries.take(part)
        retries.keep(part, 0, 0.0)

    assert all(map(retries.newest, parts))
    assert retries.due(NEVER) == parts
    assert retries.origins == {"one"}


def test_attempts_are_those_of_the_same_bytes(retries: Retries) -> None:
    """Whatever else comes of that origin is new, and is said and tried as new."""
    retries.keep(A, 0, None)
    assert retries.take(A) == 1
    assert retries.take(A) == 0

    retries.keep(A, 4, None)
    assert retries.take(SealedBundle(b"another", "one")) == 0
    assert retries.origins == frozenset()


def test_what_waits_for_a_word_is_due_with_it(retries: Retries, clock: FakeClock) -> None:
    """What waits for a word is due with it and never by itself; what was forgotten is not due even then."""
    retries.keep(A, 0, None)
    retries.keep(B, 0, None)
    assert retries.due_at == NEVER
    assert retries.due(clock.boottime() + 1e9) == []

    retries.forget("two")
    retries.retry_now()
    assert retries.due(clock.boottime()) == [A]


def test_who_is_silent_is_asked_less_and_less(retries: Retries, clock: FakeClock) -> None:
    """The key service of a fleet that is down must not be asked by all of the fleet in each second when it comes back."""
    waits = []
    for attempts in range(20):
        retries.keep_soon(A, attempts, 0.0)
        waits.append(retries.due_at - clock.boottime())

    assert 1.0 <= waits[0] < max(waits[10:])
    assert min(waits[10:]) > waits[0]
    assert max(waits) < 3600


def test_a_pause_that_it_asks_for_is_heard(retries: Retries, clock: FakeClock) -> None:
    """`Retry-After` of a key service: until then it is not asked, but a first bundle waits half a minute for it at most."""
    for asked, least in ((20.0, 20.0), (3000.0, 30.0)):
        retries.keep_soon(A, 0, asked)
        assert least <= retries.due_at - clock.boottime() < least + 2.0
