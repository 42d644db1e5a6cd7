"""Has the machine stood still, without anybody having said since that it is still the same one?

A copy of a running machine resumes later than it was made, and so some clock of it shows a gap; so does a machine that
was moved, and one whose clock was set. The gap outlives the process (:class:`Known`, in the handover, and over a stop
in :mod:`agent.daemon.grace`): a start confirms nothing, and the copy may be made while none of ours runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from agent.host.clock import SystemClock, uncounted

UNCONFIRMED_SECONDS: Final = 900.0
GAP_SECONDS: Final = 30.0
"""Between two looks, forwards. Looks are near each other, so what slewing adds up over days is none."""


class Known(msgspec.Struct, frozen=True):
    """What the next process of this boot must know.

    Attributes:
        missed: by how many whole seconds other clocks were ahead of one that stands still with the machine, when last
            looked at.
        since: CLOCK_BOOTTIME, in seconds, when a gap was seen that no answer came after; ``None``: there is none.
    """

    missed: int
    since: float | None = None


class Gap:
    """See the module.

    Args:
        clock: time.
        left: what the process before knew.
        uncounted: the seconds by which other clocks are ahead of one that stands still whenever the machine does.
    """

    def __init__(
        self, clock: SystemClock, left: Known | None = None, *, uncounted: Callable[[], float] = uncounted
    ) -> None:
        self._clock = clock
        self._uncounted = uncounted
        self._missed = self._seconds_missed()
        self._since: float | None = None
        self._told = round(self._missed[0])
        if left is not None:
            self.go_on(left)

    def go_on(self, left: Known) -> None:
        """Take over what an earlier process of this boot knew, before the first look."""
        self._missed = (float(left.missed), self._missed[1])
        self._since = None if left.since is None else min(left.since, self._clock.uptime())
        self._told = round(self._missed[0])

    @property
    def known(self) -> Known:
        """What the next process must know."""
        return Known(self._told, self._since)

    @property
    def unconfirmed(self) -> bool:
        """Whether the last gap was so long ago that the machine would have been confirmed, if it were the same."""
        return self._since is not None and self._clock.uptime() - self._since >= UNCONFIRMED_SECONDS

    def look(self) -> None:
        """Look at the clocks."""
        missed = self._seconds_missed()
        # Not their sum: a pause after which the wall clock is set right is seen by both.
        gap = max(now - then for now, then in zip(missed, self._missed, strict=True))
        if gap >= GAP_SECONDS and self._since is None:
            self._since = self._clock.uptime()
        self._missed = missed
        if abs(missed[0] - self._told) >= 1.0:  # what slews to and fro is not handed over each time
            self._told = round(missed[0])

    def confirmed(self) -> None:
        """It is the same machine, or it is dealt with that it may not be."""
        self._since = None

    def _seconds_missed(self) -> tuple[float, float]:
        """What a clock that stands still with the machine has missed, as its other clocks say, and as servers do."""
        return self._uncounted(), self._clock.timekeeper.lost
