"""The workers' endpoint: the gate, then one of three dialects by the first segment of the path, which are disjoint."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from agent.core.clock import Clock
from agent.core.errors import TargetError
from agent.core.model import Cloud
from agent.core.view import Live
from agent.serve.audit import Ledger
from agent.serve.container import ContainerDialect
from agent.serve.early import Early
from agent.serve.ec2 import Ec2Dialect
from agent.serve.fairness import Owners
from agent.serve.gate import Gate, Refusal
from agent.serve.gce import GceDialect
from agent.serve.gce_accounts import DemandScoped
from agent.serve.handling import DROP, Access, Later, Outcome, Peer
from agent.serve.hiding import GCE_ROOT, folded
from agent.serve.intake import Intake
from agent.serve.listener import Listener
from agent.serve.mints import Demand
from agent.serve.proxy import Passthrough, Proxy
from agent.serve.remembered import Memory
from agent.serve.waiting import Served, Watch
from agent.wire import container, ec2, gce, names
from agent.wire.http import Request, Response

_MAX_REASON: Final = 400


class WorkerEndpoint:
    """Everything that workers speak to.

    Args:
        served: what is served.
        clock: decides when that ends.
        wall_ahead: how far the machine's wall clock, by which clients measure an end, is ahead of it.
        demand: mints identity tokens.
        scoped: mints access tokens for fewer scopes.
        ec2: the real EC2 service, when this machine has one.
        gce: the real GCE server, when this machine has one.
        access: told of every request.
        broken: told of an exception in our own code; the request ends without an answer or with 500.
        owners: names the owner of a connection, when that matters.
        ledger: counts what is given to whom.

    *Resources*: none until :meth:`listen`. ``listener.close`` ends what is under way, after the listening sockets were
    closed.
    """

    def __init__(
        self,
        served: Served,
        clock: Clock,
        *,
        wall_ahead: Callable[[], timedelta],
        demand: Demand,
        scoped: DemandScoped,
        ec2: Passthrough | None = None,
        gce: Passthrough | None = None,
        access: Callable[[Access], None] | None = None,
        broken: Callable[[Request, Exception], None] | None = None,
        owners: Owners | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        watch = self._watch = Watch(served, clock)
        settings = served.settings
        early = Early(served, wall_ahead)
        self._gate = Gate(settings.extra_hosts)
        self._ec2 = Ec2Dialect(
            watch,
            Proxy(ec2, seconds=settings.ec2_upstream_seconds, connections=settings.passed_connections) if ec2 else None,
            early,
        )
        self._container = ContainerDialect(watch, early)
        self._gce = GceDialect(
            watch,
            Proxy(gce, seconds=settings.gce_upstream_seconds, connections=settings.passed_connections) if gce else None,
            early,
            demand=demand,
            scoped=scoped,
        )
        memory = Memory(served, clock, mint=self._ec2.tokens.mint, left=self._ec2.tokens.left)
        self._broken = broken
        self._takes_bodies = gce is not None
        self.listener = Listener(
            self._handle,
            broken=self._failed,
            clock=clock,
            limits=settings.limits,
            access=access,
            bodies=self._means_body,
            owners=owners,
            memory=memory,
            ledger=ledger,
        )
        served.forgotten_by(memory.forget, early.forget, self._ec2.forget, self._container.forget, self._gce.forget)

    def protocol(self) -> asyncio.Protocol:
        """The factory of connections."""
        return self.listener.protocol()

    def listen(self, sockets: Sequence[socket.socket]) -> Intake:
        """Answer on these listening sockets until the returned intake is closed. To be called in the event loop."""
        return self.listener.listen(sockets)

    def _means_body(self, method: str, target: str) -> bool:
        """Guest attributes that are passed through to a real GCE server; nothing else that workers ask has a body."""
        if method != "PUT" or not self._takes_bodies:
            return False
        try:
            segments = self.listener.target(target).segments
        except TargetError:
            return False
        return segments[:2] == GCE_ROOT and folded(segments[2:4]) == ("instance", "guest-attributes")

    def _handle(self, request: Request, _peer: Peer) -> Outcome | Later:
        outcome = self._dialect(request)
        if names.ORIGIN_HEADER not in request.headers:
            return outcome
        gcp = request.segments[:1] == (names.GCE_ROOT,)
        return self._asked_whose(Cloud.GCP if gcp else Cloud.AWS, outcome)

    def _dialect(self, request: Request) -> Outcome | Later:
        refusal = self._gate.refusal(request)
        if refusal is not None:
            return self._refused(request, refusal)
        first = request.segments[0] if request.segments else ""
        if first == names.GCE_ROOT:
            return self._gce.handle(request)
        if first in container.ROOTS:
            return self._container.handle(request)
        if not first and names.EC2_TOKEN_HEADER not in request.headers and self._gce.advertises_google():
            # ``/`` is in both trees. A session token says who asks; without one EC2 would say 401 anyway.
            return self._gce.handle(request)
        return self._ec2.handle(request)

    def _asked_whose(self, cloud: Cloud, outcome: Outcome | Later) -> Outcome | Later:
        """Add whose identity it is if that is asked for (our own ``wait`` does): SDKs get only what they know."""
        if callable(outcome):
            return partial(self._later_whose, cloud, outcome)
        if not isinstance(outcome, Response):
            return outcome
        answer = self._watch.look(cloud)
        lines = f"{names.ORIGIN_HEADER}: {answer.origin if isinstance(answer, Live) else 'none'}\r\n"
        refused = self._watch.served.now.refused
        if refused is not None:
            # These words may quote a stranger's bundle: no part of them may become a line of its own.
            plain = "".join(c if " " <= c <= "~" else " " for c in refused)[:_MAX_REASON]
            lines += f"{names.REFUSED_HEADER}: {plain}\r\n"
        return outcome.plus(lines.encode("ascii"))

    async def _later_whose(self, cloud: Cloud, later: Later) -> Outcome:
        outcome = self._asked_whose(cloud, await later())
        assert not callable(outcome)
        return outcome

    def _refused(self, request: Request, refusal: Refusal) -> Response:
        """A refusal in the dialect that was spoken."""
        return self._refusal_as_spoken(request, refusal).noted(refusal.reason)

    def _refusal_as_spoken(self, request: Request, refusal: Refusal) -> Response:
        first = request.segments[0] if request.segments else ""
        allow = () if refusal.allow is None else (("Allow", refusal.allow),)
        if first == names.GCE_ROOT or not first:
            return gce.failure(refusal.status, refusal.why, *allow, flavored=self._gce.advertises_google())
        if first in container.ROOTS:
            return container.failure(refusal.status, "Refused", refusal.why, *allow)
        return ec2.failure(refusal.status, *allow)

    def _failed(self, request: Request, error: Exception) -> Outcome:
        if self._broken is not None:
            self._broken(request, error)
        # A document path must never carry an error (awscrt); elsewhere an error of ours is called one.
        return DROP if request.segments[1:3] == names.EC2_IAM else Response(500)
