"""What time it is for whoever answers workers: what the controller told last, and what a step of the wall clock says since."""

from __future__ import annotations

from datetime import timedelta

import pytest

from agent import snapshot
from agent.core.clock import utc
from agent.core.view import Absent
from agent.serve.clock import ServedClock
from agent.serve.waiting import Served
from agent.snapshot import ServeSettings, Snapshot, Stretch, Time

NOON = 1_800_000_000.0
HOUR = 3600.0


class Hands:
    """The clocks of a machine whose controller says that it is noon.

    Args:
        wrong: by how much the wall clock is ahead of that, in seconds.
        before: so long ago, by the wall clock alone, came what this process begins with; ``None``: it comes now.
    """

    def __init__(self, *, wrong: float = 0.0, before: float | None = None) -> None:
        self.boot, self.wall = 1000.0, NOON + wrong
        came = None if before is None else self.wall - self.boot
        self.wall += before or 0.0
        self.served = Served(self.said(NOON), wall=came)
        self.clock = ServedClock(self.served, boottime=lambda: self.boot, wall=lambda: self.wall)

    def said(self, now: float) -> bytes:
        """The snapshot of a controller that takes the present for ``now``."""
        nobody = (Stretch(Absent("none")),)
        told = Time(0.0, now - self.boot)
        return snapshot.encode(Snapshot(settings=ServeSettings(token_key=b"k"), time=told, aws=nobody, gcp=nobody))

    def after(self, *, boot: float = 0.0, wall: float = 0.0) -> float:
        """Seconds since noon once the clocks have gone on by so much."""
        self.boot += boot
        self.wall += wall
        assert self.clock.wall_ahead() == utc(self.wall) - self.clock.now()
        return (self.clock.now() - utc(NOON)).total_seconds()


@pytest.mark.parametrize("wrong", [-10 * HOUR, -60.0, 0.0, 60.0, 10 * HOUR])
def test_it_counts_on_from_what_it_was_told(wrong: float) -> None:
    """However wrong the wall clock is: boot time alone counts."""
    assert Hands(wrong=wrong).after(boot=HOUR, wall=HOUR) == pytest.approx(HOUR)


@pytest.mark.parametrize("wrong", [0.0, 60.0, 10 * HOUR])
def test_a_pause_that_boot_time_did_not_count_is_noticed(wrong: float) -> None:
    """The wall clock is set right after it: what would have ended meanwhile has ended, though no controller says so."""
    hands = Hands(wrong=wrong)
    assert hands.after(wall=2 * HOUR) == pytest.approx(2 * HOUR)
    assert hands.after(boot=HOUR, wall=HOUR) == pytest.approx(3 * HOUR)


@pytest.mark.parametrize("wrong", [0.0, 60.0, 10 * HOUR])
def test_a_pause_is_noticed_by_a_process_that_began_after_it(wrong: float) -> None:
    """It is told how far the clocks were apart when what it begins with came: nothing that has ended lives again."""
    hands = Hands(wrong=wrong, before=2 * HOUR)
    assert hands.after() == pytest.approx(2 * HOUR)
    hands.served.take(hands.said(NOON + 3 * HOUR))
    assert hands.after(boot=HOUR, wall=HOUR) == pytest.approx(4 * HOUR)


def test_a_wall_clock_that_is_set_right_moves_nothing() -> None:
    """It was behind, and is stepped to our time: nothing that lives is refused for it."""
    assert Hands(wrong=-2 * HOUR).after(wall=2 * HOUR) == pytest.approx(0.0)


def test_of_a_step_past_our_time_only_what_is_past_it_counts() -> None:
    """It was an hour behind, and is an hour ahead now."""
    assert Hands(wrong=-HOUR).after(wall=2 * HOUR) == pytest.approx(HOUR)


@pytest.mark.parametrize("step", [-10 * HOUR, -60.0, 1.0])
def test_a_step_back_or_a_small_one_moves_nothing(step: float) -> None:
    """What has ended lives no longer by it."""
    assert Hands().after(wall=step) == pytest.approx(0.0)


def test_a_step_that_is_taken_back_is_none() -> None:
    """Whoever had set it wrong has mended it: what lives is served again."""
    hands = Hands()
    hands.after(wall=2 * HOUR)
    assert hands.after(wall=-2 * HOUR) == pytest.approx(0.0)


@pytest.mark.parametrize("believed", [True, False])
def test_the_controllers_next_word_counts(believed: bool) -> None:
    """Whether it has followed the step or knows better."""
    hands = Hands()
    hands.after(wall=2 * HOUR)
    now = 2 * HOUR if believed else 0.0
    hands.served.take(hands.said(NOON + now))
    assert hands.after() == pytest.approx(now)


def test_session_tokens_count_on_boot_time() -> None:
    """A step moves nobody's session."""
    hands = Hands()
    before = hands.clock.boottime()
    hands.after(boot=1.0, wall=2 * HOUR)
    assert timedelta(seconds=hands.clock.boottime() - before) == timedelta(seconds=1)
