"""What a large cluster costs whoever forwards to it: in questions and bytes, which are the same on every machine."""

from __future__ import annotations

from tests.simulation.forwarding import measure


def test_the_cost_grows_with_the_workers_and_no_faster() -> None:
    """One exchange for each renewal, however many there are; one verification for each worker; bytes by the worker."""
    small, large = measure(64, hours=2), measure(256, hours=2)
    for one in (small, large):
        assert (one.served, one.verified) == (one.count, one.count)
        assert one.exchanges == one.renewals + 1
    assert large.out_bytes <= small.out_bytes * 4.1
    assert large.in_bytes <= small.in_bytes * 4.1
