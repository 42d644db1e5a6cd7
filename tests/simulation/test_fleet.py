"""A fleet that starts in one second storms nobody."""

from __future__ import annotations

from math import sqrt

from tests.simulation.fleet import STS_A_SECOND, fleet

AGENTS = 2_000


def test_after_the_first_cycle_the_peak_is_below_ten_times_the_mean() -> None:
    """After the first cycle no second sees more than ten times the mean, though all started in the same second."""
    traffic = fleet(AGENTS, hours=2)

    assert traffic.peak(20 * 60, 7200) <= 10 * traffic.mean(20 * 60, 7200)


def test_a_spread_first_mint_stays_within_its_bound() -> None:
    """With a spread of S seconds no second of the first cycle sees more than N/S + 5 sqrt(N/S) calls."""
    spread = 100
    traffic = fleet(AGENTS, hours=0.2, spread=spread)

    assert traffic.peak(0, 700) <= AGENTS / spread + 5 * sqrt(AGENTS / spread)
    assert sum(traffic.throttled.values()) == 0


def test_a_crowd_that_is_throttled_is_served_soon() -> None:
    """Without a spread the crowd is throttled, and all have a credential within 20 + 3 N/600 s and 8 N calls."""
    traffic = fleet(AGENTS, hours=0.2)

    assert AGENTS <= traffic.calls[0] <= 4 * AGENTS
    assert traffic.served_by <= 20 + 3 * AGENTS / STS_A_SECOND
    assert sum(traffic.calls.values()) <= 8 * AGENTS


def test_a_fleet_at_the_end_of_what_it_holds_does_not_keep_sts_down() -> None:
    """Ten thousand workers that outlive their credentials in an outage ask less than STS takes, and recover together."""
    agents, back = 1_000, 4800
    traffic = fleet(agents, hours=1.5, spread=300, outage=(1200, back))
    scale = 10_000 / agents

    # From the fortieth minute on credentials of an hour come to their last quarter; the earliest have long backed off.
    assert traffic.mean(2700, back) * scale < STS_A_SECOND
    assert traffic.peak(2700, back) * scale < 1.5 * STS_A_SECOND
    # The first to ask after it are served, and the last have asked within the longest wait.
    assert sum(traffic.calls[second] - traffic.throttled[second] for second in range(back, back + 90)) >= agents
