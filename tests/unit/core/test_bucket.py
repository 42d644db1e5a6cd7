"""How often something may be done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.bucket import Bucket, Buckets


@given(st.lists(st.floats(0, 5), max_size=200))
def test_never_more_than_burst_and_rate(gaps: list[float]) -> None:
    """Whenever it is asked, a bucket gives in any time no more than its burst and what it gained meanwhile."""
    bucket = Bucket(2.0, 5)
    now, given_ = 100.0, 0
    for gap in gaps:
        now += gap
        given_ += not bucket.take(now)
        assert given_ <= 5 + 2.0 * (now - 100.0) + 1e-6


def test_waiting_as_long_as_it_says_suffices() -> None:
    """The seconds that a refusal names are the seconds after which a token is there, and not before."""
    bucket = Bucket(0.5, 1)
    assert bucket.take(10.0) == 0
    assert bucket.take(10.0) == 2.0
    assert bucket.take(11.0) == 1.0
    assert bucket.take(12.0) == 0


def test_asking_often_gains_nothing() -> None:
    """Who asks a hundred times a second gets what who asks once a second gets: time is counted once."""
    bucket = Bucket(2.0, 5)
    assert sum(not bucket.take(10.0 + n / 100) for n in range(101)) == 7


def test_a_token_and_a_half_is_a_token() -> None:
    """What is more than one token and less than two is given at once."""
    bucket = Bucket(1.0, 2)
    assert bucket.take(0.0) == 0
    assert bucket.take(0.5) == 0
    assert bucket.take(0.5) == 0.5


def test_time_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    """A clock that is read twice in the wrong order fills no bucket, and empties none."""
    bucket = Bucket(1.0, 1)
    assert bucket.take(10.0) == 0
    assert bucket.take(5.0) > 0
    assert bucket.take(10.0) > 0
    assert bucket.take(11.0) == 0


@pytest.mark.parametrize(("per_second", "burst"), [(0.0, 5.0), (-1.0, 5.0), (1.0, 0.5)])
def test_a_bucket_that_never_gives_cannot_be_made(per_second: float, burst: float) -> None:
    """One that gains nothing, or never holds a whole token, would lock everybody out for ever."""
    with pytest.raises(RuntimeError, match="internal error"):
        Bucket(per_second, burst)


def test_it_is_scarce_when_more_than_half_is_gone() -> None:
    """From then on it matters who asks; and no more once it has filled again."""
    buckets: Buckets[str] = Buckets(Bucket(1.0, 4), per_second=1.0, burst=2)
    assert not buckets.is_scarce(0.0)
    for _ in range(2):
        assert buckets.take_common(0.0) == 0
    assert not buckets.is_scarce(0.0)
    assert buckets.take_common(0.0) == 0
    assert buckets.is_scarce(0.0)
    assert not buckets.is_scarce(1.0)


def test_the_common_bucket_counts_everybody() -> None:
    """Whoever takes from what all share finds it empty after the last, and one there a moment later."""
    buckets: Buckets[str] = Buckets(Bucket(1.0, 2), per_second=1.0, burst=1)
    assert [buckets.take_common(0.0) for _ in range(3)] == [0, 0, 1.0]
    assert buckets.take_common(1.0) == 0


def test_each_key_has_its_own() -> None:
    """Whoever asks without end is refused by its own bucket, and told for how long; another's has all it held."""
    buckets: Buckets[str] = Buckets(Bucket(1.0, 10), per_second=0.1, burst=3)
    assert sum(not buckets.take_own("greedy", 0.0) for _ in range(1000)) == 3
    assert buckets.take_own("greedy", 0.0) == 10
    assert buckets.take_own("polite", 0.0) == 0


def test_inventing_keys_costs_no_memory() -> None:
    """With a new key each time, the one that has been silent for longest is forgotten."""
    buckets: Buckets[int] = Buckets(Bucket(1.0, 10), per_second=0.1, burst=1, most=50)
    assert not any(buckets.take_own(key, 0.0) for key in range(1000))
    assert len(buckets) == 50
    assert buckets.take_own(999, 0.0) > 0
    assert buckets.take_own(0, 0.0) == 0
