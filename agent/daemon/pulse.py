"""Whether a loop still goes round, for the watchdog."""

from __future__ import annotations


class Pulse:
    """Watches a mark that a loop sets anew each time round.

    It counts on CLOCK_MONOTONIC, like the watchdog of the service manager: a machine that slept for a night was not
    stuck for a night, and must not be killed at waking because nobody has gone round yet.

    Args:
        stale_seconds: a mark that has stood for so long is a loop that is stuck.
    """

    def __init__(self, stale_seconds: float) -> None:
        self._stale_seconds = stale_seconds
        self._mark: float | None = None
        self._since = 0.0

    def beats(self, mark: float, monotonic: float) -> bool:
        """Whether the loop goes round.

        Args:
            mark: what the loop set last; any value, as long as each round sets another.
            monotonic: the present, in seconds of CLOCK_MONOTONIC.
        """
        if mark != self._mark:
            self._mark, self._since = mark, monotonic
        return monotonic - self._since < self._stale_seconds
