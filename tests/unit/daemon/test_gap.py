"""When a machine stood still: what counts as one gap, and what of it the next process learns."""

from __future__ import annotations

import pytest

from agent.daemon.gap import GAP_SECONDS, Gap, Known
from agent.host.clock import SystemClock
from tests.fakes.clock import START

AHEAD = 1000.0


class Clocks:
    """A machine's clocks, of which some are ahead already when the process begins."""

    def __init__(self) -> None:
        self.uptime, self.missed = 100.0, AHEAD
        clock = SystemClock(boottime=lambda: self.uptime, wall=START.timestamp, synchronised=lambda: False)
        self.gap = Gap(clock, uncounted=lambda: self.missed)

    def look(self, *, missed: float) -> Known:
        self.uptime += 10.0
        self.missed = missed
        self.gap.look()
        return self.gap.known


def test_a_gap_is_what_was_missed_since_the_last_look() -> None:
    """What was missed before the process began is none, nor are many small ones; one that was confirmed comes once."""
    clocks = Clocks()
    assert clocks.look(missed=AHEAD).since is None
    for number in range(1, 5):
        assert clocks.look(missed=AHEAD + number * (GAP_SECONDS - 1)).since is None
    assert clocks.look(missed=clocks.missed + GAP_SECONDS).since == clocks.uptime
    clocks.gap.confirmed()
    assert clocks.look(missed=clocks.missed).since is None


def test_a_second_gap_does_not_put_off_the_bound_of_the_first() -> None:
    """However often the machine is suspended, it has to be confirmed within the time that the first one left."""
    clocks = Clocks()
    first = clocks.look(missed=AHEAD + GAP_SECONDS).since
    assert first == clocks.uptime
    assert clocks.look(missed=AHEAD + 2 * GAP_SECONDS).since == first


@pytest.mark.parametrize("left", [Known(0), Known(500, 50.0), Known(1000)])
def test_what_the_process_before_knew_is_known_until_the_first_look(left: Known) -> None:
    """A process that ends before its first look hands on what it was left."""
    clocks = Clocks()
    assert clocks.gap.known == Known(round(AHEAD))
    clocks.gap.go_on(left)
    assert clocks.gap.known == left


def test_a_gap_cannot_have_been_later_than_now() -> None:
    """What makes no sense puts no bound off."""
    clocks = Clocks()
    clocks.gap.go_on(Known(1000, clocks.uptime + 1))
    assert clocks.gap.known.since == clocks.uptime


def test_less_than_a_second_is_not_handed_over() -> None:
    """What slews to and fro is not told each time, but what adds up is."""
    clocks = Clocks()
    told = [clocks.look(missed=AHEAD + ahead).missed for ahead in (0.9, 1.0, 0.1, 1.9, 2.0, 1.0)]
    assert told == [1000, 1001, 1001, 1001, 1002, 1001]
