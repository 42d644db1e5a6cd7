"""The watchdog is fed while the loop goes round, and a night asleep is no loop that is stuck."""

from __future__ import annotations

from agent.daemon.pulse import Pulse


def test_a_mark_that_stands_is_a_loop_that_is_stuck() -> None:
    """Without a new mark the beats end after the time given, and begin again with one."""
    pulse = Pulse(90.0)
    assert pulse.beats(1.0, 1000.0)
    assert pulse.beats(1.0, 1089.0)
    assert not pulse.beats(1.0, 1090.0)
    assert pulse.beats(2.0, 1091.0)


def test_a_machine_that_slept_was_not_stuck() -> None:
    """The mark is hours old on boot time at waking; on the clock of the service manager a second passed."""
    pulse = Pulse(90.0)
    assert pulse.beats(5000.0, 1000.0)
    asleep = 8 * 3600.0
    assert pulse.beats(5000.0, 1001.0), f"{asleep} seconds of sleep are none of CLOCK_MONOTONIC"
