"""Time as a parameter.

Decisions get ``now`` as an argument. Only what runs (controller, endpoints, sources) holds a :class:`Clock`; tests pass
one that they set. :mod:`agent.core.timekeeping` says who may tell the time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The readings that the agent asks a clock for."""

    def now(self) -> datetime:
        """The best estimate of the true time: aware, UTC."""

    def timestamp(self) -> float:
        """The same as a POSIX timestamp, in seconds: what only compares makes no object of it."""

    def boottime(self) -> float:
        """Seconds on a clock that never goes back and counts on through suspend (CLOCK_BOOTTIME)."""

    async def sleep(self, seconds: float) -> None:
        """Sleep for so many seconds of :meth:`boottime`."""


def utc(timestamp: float) -> datetime:
    """The aware UTC datetime of a POSIX timestamp in seconds (a JWT NumericDate, RFC 7519 section 2)."""
    return datetime.fromtimestamp(timestamp, tz=UTC)
