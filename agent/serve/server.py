"""What answers workers, made of what the controller says: wherever it runs, it gets everything by its :class:`Link`."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from agent.core.model import Cloud
from agent.serve.audit import AskWho, Ledger
from agent.serve.clock import ServedClock
from agent.serve.endpoint import WorkerEndpoint
from agent.serve.fairness import Owners
from agent.serve.intake import Intake
from agent.serve.link import Link
from agent.serve.tally import Tally
from agent.serve.waiting import Served
from agent.snapshot.messages import Uses

Use = Callable[[int], Uses]
"""What this process uses, having so many connections."""


class WorkerServer:
    """The workers' endpoint behind a link. To be made in the event loop.

    Args:
        link: the way to the controller.
        served: what came by it first.
        owners: tells whose connections are whose.
        ask: tells who asked, for the audit; ``None``: that cannot be known here.
        use: what the process uses, for the controller; ``None``: it is the controller's own.

    *Resources*: what :meth:`listen` was given and what ``link`` holds, until :meth:`close`.
    """

    def __init__(
        self,
        link: Link,
        served: Served,
        owners: Owners | None,
        ask: AskWho | None = None,
        *,
        use: Use | None = None,
    ) -> None:
        settings, clock = served.settings, ServedClock(served)
        self._link = link
        self._use = use
        ledger = Ledger(settings.audit, ask)
        self._tally = Tally(link.say, ledger)
        self._intake: Intake | None = None
        link.told = self._told
        self.endpoint = WorkerEndpoint(
            served,
            clock,
            wall_ahead=clock.wall_ahead,
            demand=link.id_token,
            scoped=link.scoped,
            ec2=link.service(Cloud.AWS) if settings.real_ec2 else None,
            gce=link.service(Cloud.GCP) if settings.real_gce else None,
            access=self._tally.access,
            broken=self._tally.broken,
            owners=owners,
            ledger=ledger,
        )

    def _told(self) -> None:
        """The controller asked for numbers."""
        uses = () if self._use is None else (self._use(self.endpoint.listener.connections),)
        self._tally.told(*uses)

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Answer on these listening sockets, which are closed with this."""
        self._intake = self.endpoint.listen(sockets)

    async def close(self, grace_seconds: float) -> None:
        """Accept nothing more, give what is under way ``grace_seconds``, say the last numbers, and end the link."""
        if self._intake is not None:
            self._intake.close()
        await self.endpoint.listener.close(grace_seconds)
        self._tally.close()
        self._link.close()
