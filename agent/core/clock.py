"""Time as a parameter.

Decisions get ``now`` as an argument. Only the keeper and the doors hold a :class:`Clock`; tests give them one whose
hands they move.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the agent asks of time."""

    def now(self) -> datetime:
        """The best estimate of the true time: aware, UTC. Steps of the machine's wall clock do not move it."""

    def boottime(self) -> float:
        """Seconds on a clock that never steps and counts on through suspend (CLOCK_BOOTTIME)."""

    async def sleep(self, seconds: float) -> None:
        """Sleep for so many seconds of :meth:`boottime`."""


def utc(timestamp: float) -> datetime:
    """The aware UTC datetime of a POSIX timestamp in seconds (a JWT NumericDate, RFC 7519 section 2)."""
    return datetime.fromtimestamp(timestamp, tz=UTC)


class Skew:
    """How far the machine's clock is from the clouds', learned from the ``Date`` of their answers.

    ``Date`` (RFC 9110 section 6.6.1) is cut to the second and arrives late by the time of the answer, so a difference
    below the tolerance is no difference. The first sample is believed at once: at boot, before NTP, it is the only
    thing to go by. A later one that contradicts must be confirmed by the next, or by the machine's wall clock, lest one
    broken server move our time.

    Pure: it holds numbers and gives a correction; the clock applies it.
    """

    TOLERANCE_SECONDS = 5.0

    def __init__(self) -> None:
        self.samples = 0
        self.last_difference: float | None = None
        self._doubt: float | None = None

    @property
    def doubtful(self) -> bool:
        """Whether the last sample contradicted us and was not believed."""
        return self._doubt is not None

    def sample(self, server: datetime, now: datetime, wall: datetime | None = None) -> float:
        """Take one sample.

        Args:
            server: the ``Date`` of an answer from a metadata service or a cloud's token service.
            now: our estimate when the answer came.
            wall: what the machine's wall clock says: a witness, never more.

        Returns:
            Seconds to add to our estimate; ``0.0`` for none.
        """
        difference = (server - now).total_seconds() + 0.5
        first = self.samples == 0
        self.samples += 1
        self.last_difference = difference
        if abs(difference) <= self.TOLERANCE_SECONDS:
            self._doubt = None
            return 0.0
        confirmed = self._doubt is not None and abs(difference - self._doubt) <= self.TOLERANCE_SECONDS
        if wall is not None and abs((server - wall).total_seconds() + 0.5) <= self.TOLERANCE_SECONDS:
            confirmed = True
        if first or confirmed:
            self._doubt = None
            return difference
        self._doubt = difference
        return 0.0
