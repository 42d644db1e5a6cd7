"""The couriers' endpoint: a unix socket for the workers' group. A courier need not be trusted.

The same HTTP and the same listener as the control socket's, with routes of its own. The difference: anybody on the
machine who runs jobs may ask, and each question costs something: a signature and an answer of the metadata service, or
the opening of a bundle. So each user id has a share of each route, and what waits is served by turns.

The attack behind each limit: questions without end (a bucket by user id, a common one above it); many at once (a
turnstile); connections that send nothing (the listener closes those of whoever has most).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import msgspec

from agent.core.bucket import Bucket, Buckets
from agent.core.clock import Clock
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.serve.control import ControlEndpoint, ControlRequest, Route, problem
from agent.serve.fairness import Pace, Turnstile
from agent.serve.handling import Access
from agent.snapshot.settings import Limits
from agent.wire.http import Request, Response

LIMITS: Final = Limits(
    body_bytes=MAX_BUNDLE_BYTES,
    head_seconds=5.0,
    connections=256,
    held=128,
    buffered_bytes=1 << 23,
)


class Share(msgspec.Struct, frozen=True):
    """How often a route may be asked: by one user id, and by all of them together."""

    per_second: float
    burst: float
    common_per_second: float
    common_burst: float
    at_once: int


DEAR: Final = Share(per_second=1.0, burst=20.0, common_per_second=4.0, common_burst=64.0, at_once=8)
CHEAP: Final = Share(per_second=5.0, burst=50.0, common_per_second=50.0, common_burst=200.0, at_once=8)


class CourierEndpoint:
    """The routes, each behind its share.

    Args:
        routes: by method and path.
        clock: time; its boot time refills the shares.
        access: told of every request.
        broken: told of an exception that a route let through.
        whose: the user id that stands for the user of one: with subordinate uids one user could have 65,536 shares.
    """

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Route],
        *,
        clock: Clock,
        access: Callable[[Access], None] | None = None,
        broken: Callable[[Request, Exception], None] | None = None,
        whose: Callable[[int], int] = int,
    ) -> None:
        fair: dict[tuple[str, str], Route] = {
            (method, path): partial(Shared(CHEAP if method == "GET" else DEAR, clock, whose).call, route)
            for (method, path), route in routes.items()
        }
        self._endpoint = ControlEndpoint(
            fair, clock=clock, access=access, broken=broken, limits=LIMITS, named="the couriers' socket", whose=whose
        )
        self.listener = self._endpoint.listener


class Shared:
    """One route's shares.

    Args:
        share: how often, and how many at once.
        clock: time; its boot time refills the shares.
        whose: the user id that stands for the user of one.
    """

    def __init__(self, share: Share, clock: Clock, whose: Callable[[int], int]) -> None:
        self._clock = clock
        self._whose = whose
        self._buckets: Buckets[int] = Buckets(
            Bucket(share.common_per_second, share.common_burst), per_second=share.per_second, burst=share.burst
        )
        self._turns = Turnstile(share.at_once)
        self._pace = Pace(self._buckets.take_common, clock.boottime)

    async def call(self, route: Route, request: ControlRequest) -> Response:
        """The answer of the route, once it is this user's turn; 429 where its share is used up."""
        # Whoever is remembered by user id, for a last refusal say, is so by this one.
        request = msgspec.structs.replace(request, uid=self._whose(request.uid))
        wait = self._buckets.take_own(request.uid, self._clock.boottime())
        if wait:
            return problem(
                429, "this user asks too often; try again later", ("Retry-After", str(max(1, math.ceil(wait))))
            )
        inside = False

        async def work() -> Response:
            nonlocal inside
            async with self._turns.turn(request.uid):
                await self._pace.wait(request.uid)
                inside = True
                return await route(request)

        # What a route has begun may go on without whoever asked, and has its turn until it ends: who leaves makes no
        # room.
        task = asyncio.get_running_loop().create_task(work(), name="courier")
        task.add_done_callback(_looked_at)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not inside:
                task.cancel()  # what waits for its turn goes with its sender
            raise


def _looked_at(task: asyncio.Task[Response]) -> None:
    if not task.cancelled():
        task.exception()  # whoever asked may have left, and nobody is left to be told
