"""The time that dates a request: our own, until a server refuses it as too old or too new and says what time it has.

As the SDKs do. Requests to that server are then dated by its own time, and requests to nobody else: what one server
believes moves neither our clock (:mod:`agent.core.timekeeping`) nor a signature for another.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from agent.core.clock import utc

FARTHEST: Final = timedelta(hours=24)
"""No signature is made for an instant further away: it could be kept until then."""
TRIED_SECONDS: Final = 60.0


class SigningTime:
    """The time by the servers that refused a date. Mutable, and all in memory.

    Args:
        boottime: seconds on a clock that does not step: their time goes on with it, whatever is done to ours.
    """

    def __init__(self, boottime: Callable[[], float]) -> None:
        self._boottime = boottime
        self._offsets: dict[str, float] = {}

    def at(self, server: str, now: datetime) -> datetime:
        """When a request to ``server`` is to be dated.

        Args:
            server: its URL up to the path, or any other name of it.
            now: our time.
        """
        offset = self._offsets.get(server)
        theirs = now if offset is None else utc(offset + self._boottime())
        return theirs if abs(theirs - now) <= FARTHEST else now

    def refused(self, server: str, said: datetime | None) -> None:
        """Take note that ``server`` did not take the date of a request.

        Args:
            server: as above.
            said: the ``Date`` of the refusal, which has just come.
        """
        before = self._offsets.pop(server, None)
        if said is None:
            return
        offset = said.timestamp() - self._boottime()
        # The time it names was tried, and refused as well: it does not go by its own Date. Next time it gets ours
        # again.
        if before is None or abs(before - offset) > TRIED_SECONDS:
            self._offsets[server] = offset
