"""What is logged of our own time? What we had to jump over, and a doubt that the clouds are asked about."""

from __future__ import annotations

import structlog

from agent.host.clock import SystemClock


class TimeLog:
    """Follows the machine's clocks, and says what came of it.

    Args:
        clock: our time.
    """

    def __init__(self, clock: SystemClock) -> None:
        self._clock = clock
        self._lost_told = 0.0  # seconds, of those that were lost since the start
        self._log = structlog.get_logger()

    def follow(self) -> bool:
        """Look at the machine's clocks. Returns whether there is a reason to ask the clouds for the time."""
        doubtful = self._clock.follow()
        timekeeper = self._clock.timekeeper
        if timekeeper.lost > self._lost_told:
            self._log.warning(
                "clock.time_lost",
                seconds=round(timekeeper.lost - self._lost_told, 1),
                believed=str(timekeeper.believed),
            )
            self._lost_told = timekeeper.lost
        if doubtful:
            ahead = {str(witness): round(seconds, 1) for witness, seconds in timekeeper.differences.items()}
            self._log.info("clock.doubtful", believed=str(timekeeper.believed), ahead_seconds=ahead)
        return doubtful
