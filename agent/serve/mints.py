"""Limits how often requests may have something minted, and how many at once; a failure is not tried again at once.

Naming an audience costs a worker nothing, and each new one costs a call of the user's quota: one worker made 229 a
second. A token that is held already is served without any of this.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AsyncExitStack
from typing import Final, Generic, TypeVar

from agent.core.bucket import Bucket, Buckets
from agent.core.errors import AgentError
from agent.core.model import IdToken
from agent.serve.fairness import Pace, Turnstile
from agent.wire.http import Asker

T = TypeVar("T")

Demand = Callable[[str], Awaitable[IdToken | None]]
"""Mint an identity token for an audience, or say ``None``; raises :class:`AgentError` when it failed."""

AT_ONCE: Final = 8
PER_SECOND: Final = 2.0
BURST: Final = 80.0
PER_SECOND_BY_ONE: Final = 0.2
BURST_BY_ONE: Final = 20.0
"""In an hour, the life of a token, one asker makes fewer than are kept, so nobody's are pushed out by another's."""
TURN_SECONDS: Final = 10.0
"""How long a mint waits for its turn. After an outage, those for which nobody waits any more would come all at once."""
AT_ONCE_ASKED: Final = 2 * AT_ONCE
BURST_ASKED: Final = BURST + PER_SECOND * TURN_SECONDS
"""The bounds of the controller, which refuses any worker alike: no less than honest servers ask for. One may begin
while another ends, and what was let in for as long as a turn is waited for may come together with a burst."""
MOST_WAITING: Final = 1024
"""Of each kind, at once. Behind fewer owners no turn comes in time, and addresses can be invented without end."""
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


class Shares:
    """What mints of every kind take together: the controller bounds them together, and refuses whoever comes then.

    Args:
        clock: seconds that never step.

    Attributes:
        gate: so many at once, the turns shared among the owners.
        buckets: so often, likewise: what one asks beyond its own is refused, what all ask beyond theirs waits.
        pace: gives of the bucket for all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.gate = Turnstile(AT_ONCE)
        self.buckets: Buckets[Hashable] = Buckets(
            Bucket(PER_SECOND, BURST), per_second=PER_SECOND_BY_ONE, burst=BURST_BY_ONE
        )
        self.pace = Pace(self.buckets.take_common, clock)


class _Flight(Generic[T]):
    """One mint for all who want it. It waits in the queue of each of their owners, and begins in the first turn.

    Attributes:
        result: of it.
        turns: what waits for a turn, by owner; once it has begun, what mints.
        begun: what mints.
        paid: whether one of them has had a token of the common bucket.
    """

    def __init__(self) -> None:
        self.result: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()
        self.turns: dict[Hashable, asyncio.Task[T | None]] = {}
        self.begun: asyncio.Task[T | None] | None = None
        self.paid = False

    def begin(self, owner: Hashable) -> None:
        """It is the owner's turn, and the others' are not waited for."""
        self.begun = self.turns.pop(owner)
        for task in self.turns.values():
            task.cancel()


class Mints(Generic[T]):
    """The one way from a request to a mint (:data:`Demand`, say).

    Args:
        demand: mints; shares one flight for each audience of one identity.
        shares: what other kinds take from, too.
        clock: seconds that never step.
    """

    def __init__(
        self,
        demand: Callable[[str], Awaitable[T | None]],
        shares: Shares | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._demand = demand
        self._clock = clock
        self._shares = Shares(clock) if shares is None else shares
        # All mutable state:
        self._flights: dict[tuple[str, str], _Flight[T]] = {}
        self._failed: dict[tuple[str, str], tuple[float, AgentError]] = {}  # oldest first

    async def mint(self, audience: str, asker: Asker | None, *, name: str) -> T | None:
        """A token for ``audience``; whoever asks for the same at the same time shares it.

        Args:
            audience: for whom it is.
            asker: who has it minted.
            name: of the identity that is served: what was begun, or failed, for another is not this one's.

        Raises:
            TooOften: this asker has caused enough, or no turn came in time, or would.
            AgentError: it failed, now or a moment ago.
        """
        wanted = (name, audience)
        flight = self._flights.get(wanted)
        if flight is None:
            failed = self._failed.get(wanted)
            if failed is not None and self._clock() < failed[0]:
                raise failed[1]
        if flight is None or flight.begun is None:
            owner = None if asker is None else await asker.owner()
            flight = self._flights.get(wanted)  # somebody else's, meanwhile
            if flight is None:
                full = len(self._flights) >= MOST_WAITING
                wait = 1.0 if full else self._shares.buckets.take_own(owner, self._clock())
                if wait:
                    raise TooOften(wait)
                flight = self._flights[wanted] = _Flight()
            if flight.begun is None and owner not in flight.turns:
                self._wait(wanted, flight, owner)
        # Shielded: who leaves must not take it from the others; its result is kept for whoever asks next.
        return await asyncio.shield(flight.result)

    def _wait(self, wanted: tuple[str, str], flight: _Flight[T], owner: Hashable) -> None:
        turn = asyncio.get_running_loop().create_task(self._fly(flight, wanted[1], owner), name="mint for a request")
        flight.turns[owner] = turn
        turn.add_done_callback(lambda done: self._flown(wanted, flight, owner, done))

    async def _fly(self, flight: _Flight[T], audience: str, owner: Hashable) -> T | None:
        async with AsyncExitStack() as inside:
            try:
                async with asyncio.timeout(TURN_SECONDS):
                    # Before the gate: who waits here keeps nobody from a place there, and is not in two queues.
                    await self._shares.pace.wait(owner, lambda: flight.paid)
                    flight.paid = True
                    await inside.enter_async_context(self._shares.gate.turn(owner))
            except TimeoutError:
                raise TooOften(1.0) from None
            flight.begin(owner)
            return await self._demand(audience)

    def _flown(
        self, wanted: tuple[str, str], flight: _Flight[T], owner: Hashable, done: asyncio.Task[T | None]
    ) -> None:
        error = None if done.cancelled() else done.exception()
        if flight.begun is not done:
            flight.turns.pop(owner, None)
            if flight.begun is not None or flight.turns:
                return  # another's turn has come, or may come
        del self._flights[wanted]
        self._failed.pop(wanted, None)
        if done.cancelled():
            flight.result.cancel()
            return
        if error is None:
            flight.result.set_result(done.result())
            return
        flight.result.set_exception(error)
        flight.result.exception()  # looked at: whoever asked may have left
        if isinstance(error, AgentError):
            self._failed[wanted] = (self._clock() + FAILED_SECONDS, error)
            if len(self._failed) > _FAILURES_KEPT:
                del self._failed[next(iter(self._failed))]
