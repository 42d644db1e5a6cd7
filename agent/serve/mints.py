"""Limits how often requests may have something minted, and how many at once; a failure is not tried again at once.

Naming an audience costs a worker nothing, and each new one costs a call of the user's quota: one worker made 229 a
second. A token that is held already is served without any of this.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from agent.core.bucket import Bucket, Buckets
from agent.core.errors import AgentError
from agent.core.model import IdToken
from agent.serve.fairness import Turnstile
from agent.wire.http import Asker

T = TypeVar("T")

Demand = Callable[[str], Awaitable[IdToken | None]]
"""Mint an identity token for an audience, or say ``None``; raises :class:`AgentError` when it failed."""

AT_ONCE: Final = 8
PER_SECOND: Final = 2.0
BURST: Final = 100.0
PER_SECOND_BY_ONE: Final = 0.2
BURST_BY_ONE: Final = 20.0
"""In an hour, the life of a token, one asker makes fewer than are kept, so nobody's are pushed out by another's."""
FAILED_SECONDS: Final = 5.0
_FAILURES_KEPT: Final = 256


class TooOften(Exception):
    """Not now.

    Attributes:
        seconds: after which it may be asked again, whole and at least 1.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = max(1, math.ceil(seconds))


class Mints(Generic[T]):
    """The one way from a request to a mint (:data:`Demand`, say).

    Args:
        demand: mints; shares one flight for each audience of one identity.
        clock: seconds that never step.
    """

    def __init__(
        self, demand: Callable[[str], Awaitable[T | None]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._demand = demand
        self._clock = clock
        # All mutable state:
        self._gate = Turnstile(AT_ONCE)
        self._buckets: Buckets[Hashable] = Buckets(
            Bucket(PER_SECOND, BURST), per_second=PER_SECOND_BY_ONE, burst=BURST_BY_ONE
        )
        self._flights: dict[tuple[str, str], asyncio.Task[T | None]] = {}
        self._failed: dict[tuple[str, str], tuple[float, AgentError]] = {}  # oldest first

    async def mint(self, audience: str, asker: Asker | None, *, name: str) -> T | None:
        """A token for ``audience``; whoever asks for the same at the same time shares it.

        Args:
            audience: for whom it is.
            asker: who has it minted.
            name: of the identity that is served: what was begun, or failed, for another is not this one's.

        Raises:
            TooOften: this asker, or all of them, have caused enough.
            AgentError: it failed, now or a moment ago.
        """
        wanted = (name, audience)
        flight = self._flights.get(wanted)
        if flight is None:
            failed = self._failed.get(wanted)
            if failed is not None and self._clock() < failed[0]:
                raise failed[1]
            owner = None if asker is None else await asker.owner()
            flight = self._flights.get(wanted)  # somebody else's, meanwhile
            if flight is None:
                wait = self._buckets.take(owner, self._clock())
                if wait:
                    raise TooOften(wait)
                flight = asyncio.get_running_loop().create_task(self._fly(audience, owner), name="mint for a request")
                self._flights[wanted] = flight
                flight.add_done_callback(lambda done: self._flown(wanted, done))
        # Shielded: who leaves must not take it from the others; its result is kept for whoever asks next.
        return await asyncio.shield(flight)

    async def _fly(self, audience: str, owner: Hashable) -> T | None:
        async with self._gate.turn(owner):
            return await self._demand(audience)

    def _flown(self, wanted: tuple[str, str], flight: asyncio.Task[T | None]) -> None:
        self._flights.pop(wanted, None)
        error = None if flight.cancelled() else flight.exception()
        self._failed.pop(wanted, None)
        if isinstance(error, AgentError):
            self._failed[wanted] = (self._clock() + FAILED_SECONDS, error)
            if len(self._failed) > _FAILURES_KEPT:
                del self._failed[next(iter(self._failed))]
