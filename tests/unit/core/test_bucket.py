"""How often something may be done."""

from __future__ import annotations

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


def test_time_that_goes_back_gives_nothing() -> None:
    """A clock that is read twice in the wrong order fills no bucket."""
    bucket = Bucket(1.0, 1)
    assert bucket.take(10.0) == 0
    assert bucket.take(5.0) > 0
    assert bucket.take(10.0) > 0


def test_one_key_cannot_empty_the_common_bucket() -> None:
    """Whoever asks without end is refused by its own bucket; another's first still finds a token."""
    buckets: Buckets[str] = Buckets(Bucket(1.0, 10), per_second=0.1, burst=3)
    assert sum(not buckets.take("greedy", 0.0) for _ in range(1000)) == 3
    assert buckets.take("polite", 0.0) == 0


def test_inventing_keys_gains_no_more_than_the_common_bucket() -> None:
    """With a new key each time the common bucket decides, and memory does not grow."""
    buckets: Buckets[int] = Buckets(Bucket(1.0, 10), per_second=0.1, burst=3, most=50)
    assert sum(not buckets.take(key, 0.0) for key in range(1000)) == 10
    assert len(buckets) == 50
