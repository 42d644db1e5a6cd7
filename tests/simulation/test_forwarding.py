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


def test_a_larger_group_costs_the_scheduler_more_than_it_saves_the_sender() -> None:
    """Each recipient gets the entries of all: with 256 in a bundle a scheduler sends out ten times what it does now."""
    now, most = measure(256, hours=1), measure(256, hours=1, group=256)
    assert now.served == most.served == 256
    assert most.calls < now.calls
    assert most.out_bytes > 8 * now.out_bytes
    assert now.out_bytes < 256 * 16_000
    assert now.in_bytes < 2 * most.in_bytes
