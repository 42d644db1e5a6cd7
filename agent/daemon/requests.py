"""Who was answered, and who was refused? All requests are counted; of refusals one a minute of each kind is logged."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from agent.serve.handling import Access, shown
from agent.serve.tally import COMPLAIN_AGAIN_SECONDS


class Requests:
    """See the module.

    Attributes:
        counts: by endpoint and status; status 0: no answer.
    """

    def __init__(self) -> None:
        self.counts: dict[tuple[str, int], int] = {}
        self._complained: dict[tuple[str, int], float] = {}
        self._log = structlog.get_logger()

    def of(self, listener: str) -> Callable[[Access], None]:
        """The function that one endpoint calls with each request."""

        def access(one: Access) -> None:
            self.add(listener, one.status, 1)
            if one.status in (0, 403, 429) or one.status >= 500:
                self.complain(listener, one)

        return access

    def add(self, listener: str, status: int, count: int) -> None:
        """Count ``count`` requests that an endpoint answered with ``status``."""
        key = (listener, status)
        self.counts[key] = self.counts.get(key, 0) + count

    def complain(self, listener: str, one: Access) -> None:
        """Log a request that was refused, once a minute for each status."""
        now, key = time.monotonic(), (listener, one.status)
        if now - self._complained.get(key, float("-inf")) >= COMPLAIN_AGAIN_SECONDS:
            self._complained[key] = now
            self._log.info("request.refused", door=listener, **msgspec.structs.asdict(one))

    def broken(self, request: Any, error: Exception) -> None:
        """Log that a handler crashed: a defect of ours, which costs one request."""
        path = shown(request.path, request.segments)
        self._log.error("request.crashed", path=path, error=type(error).__name__, exc_info=error)
