"""Whether a loop still runs, for the watchdog."""

from __future__ import annotations


class Pulse:
    """Watches a mark that a loop sets anew in each round.

    It counts on CLOCK_MONOTONIC, like the watchdog of the service manager: a machine that slept for a night was not
    stuck for a night, and the process must not be killed at waking because the loop has not run yet.

    Args:
        stale_seconds: if the mark stays the same for so long, the loop is stuck.
    """

    def __init__(self, stale_seconds: float) -> None:
        self._stale_seconds = stale_seconds
        self._mark: float | None = None
        self._since = 0.0

    def beats(self, mark: float, monotonic: float) -> bool:
        """Whether the loop runs.

        Args:
            mark: what the loop set last; any value, as long as each round sets another.
            monotonic: CLOCK_MONOTONIC now, in seconds.
        """
        if mark != self._mark:
            self._mark, self._since = mark, monotonic
        return monotonic - self._since < self._stale_seconds
