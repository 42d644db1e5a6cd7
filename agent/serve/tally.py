"""How many were answered, and who was refused: told to the controller, which keeps the numbers and writes the log."""

from __future__ import annotations

import asyncio
import time
import traceback
from typing import Final, Protocol

import msgspec

from agent.serve.audit import Ledger
from agent.serve.handling import Access, shown
from agent.snapshot.messages import (
    MOST_COUNTED,
    MOST_SERVED,
    Counts,
    Crashed,
    Refused,
    Served,
    ServerSays,
    shortened,
)
from agent.wire.http import Request
from agent.wire.names import PROBE_USER_AGENT

TOLD_AGAIN_SECONDS: Final = 1.0
"""Numbers are told at most this often, and only where there are any."""
COMPLAIN_AGAIN_SECONDS: Final = 60.0


class Say(Protocol):
    """To the controller; false when nobody hears it just now."""

    def __call__(self, *messages: ServerSays) -> bool:
        """Say all of it at once."""


class Tally:
    """See the module. To be made in the event loop.

    Args:
        say: to the controller.
        ledger: counts what is given to whom.
    """

    def __init__(self, say: Say, ledger: Ledger) -> None:
        self._say = say
        self._ledger = ledger
        self._counts: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._complained: dict[int, float] = {}

    def access(self, one: Access) -> None:
        """Count a request that was answered."""
        status = one.status
        self._counts[status] = self._counts.get(status, 0) + 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TOLD_AGAIN_SECONDS, self._due)
        if (status in (0, 403, 429) or status >= 500) and one.user_agent != PROBE_USER_AGENT:
            self._complain(one)

    def _complain(self, one: Access) -> None:
        now = time.monotonic()
        if now - self._complained.get(one.status, float("-inf")) < COMPLAIN_AGAIN_SECONDS:
            return
        said = msgspec.structs.asdict(one) | {"note": one.note if isinstance(one.note, str) else None}
        for name, most in (("method", 256), ("path", 1024), ("user_agent", 512)):
            said[name] = shortened(said[name], most)
        if self._say(Refused(**said)):
            self._complained[one.status] = now

    def broken(self, request: Request, error: Exception) -> None:
        """Tell of a defect of ours, which cost one request: where, and nothing of what was asked but the path."""
        where = "".join(traceback.format_tb(error.__traceback__))[-4000:]
        path = shortened(shown(request.path, request.segments), 1024)
        self._say(Crashed(path, type(error).__name__[:256], shortened(where, 4096)))

    def _due(self) -> None:
        self._timer = None
        if not self.tell() and self._counts:
            self._timer = asyncio.get_running_loop().call_later(TOLD_AGAIN_SECONDS, self._due)

    def tell(self) -> bool:
        """Say the numbers now; they are kept when nobody hears them."""
        counts = tuple(self._counts.items())[:MOST_COUNTED]
        if counts and not self._say(Counts(counts)):
            return False
        for status, _ in counts:
            del self._counts[status]
        rows, refused = self._ledger.take()
        if refused:
            self._say(Served(refused=refused))
        for first in range(0, len(rows), MOST_SERVED):
            self._say(Served(rows[first : first + MOST_SERVED]))
        return True

    def told(self, *further: ServerSays) -> None:
        """The controller asked: after all that there is comes a message without any, by which it knows the end.

        Args:
            further: what is said with that.
        """
        self.tell()
        self._say(*further, Counts(()))

    def close(self) -> None:
        """Say the last numbers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.tell()
