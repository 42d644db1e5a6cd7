"""Who was answered, and who was refused? All requests are counted; of refusals one a minute of each kind is logged."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from agent.host import arrival
from agent.serve.handling import Access


class Requests:
    """See the module.

    Attributes:
        counts: by endpoint and status; status 0: no answer.
    """

    def __init__(self) -> None:
        self.counts: dict[tuple[str, int], int] = {}
        self._complained: dict[tuple[str, int], float] = {}
        self._log = structlog.get_logger()

    def of(self, door: str) -> Callable[[Access], None]:
        """The function that one endpoint calls with each request."""

        def access(one: Access) -> None:
            key = (door, one.status)
            self.counts[key] = self.counts.get(key, 0) + 1
            if one.status == int(arrival.FINGERPRINT) and one.user_agent == arrival.USER_AGENT:
                return  # our own probe, every half minute
            if one.status in (0, 403, 429) or one.status >= 500:
                now = time.monotonic()
                if now - self._complained.get(key, float("-inf")) >= 60.0:
                    self._complained[key] = now
                    self._log.info("request.refused", door=door, **msgspec.structs.asdict(one))

        return access

    def broken(self, request: Any, error: Exception) -> None:
        """Log that a handler crashed: a defect of ours, which costs one request."""
        self._log.error("request.crashed", path=request.path, error=type(error).__name__, exc_info=error)
