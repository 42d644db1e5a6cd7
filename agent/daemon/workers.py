"""Where are workers answered? In a process of its own where there is one to begin it; else here, by the same words."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import structlog

from agent import config
from agent.daemon import listening
from agent.daemon.servers import Servers
from agent.daemon.unending import unending
from agent.daemon.unit import ServerProcess, ServerUnit
from agent.host.sockets import read_socket_table
from agent.serve.link import Link
from agent.serve.server import WorkerServer
from agent.serve.waiting import Served
from agent.server.answering import answering, diagnosis_of

BEGINS_SECONDS: Final = 5.0
"""How long a server is waited for. Connections wait in the kernel's queue."""
AGAIN_SECONDS: Final = 0.2
"""Until the next try, where the process has no file descriptor left."""
CRASHED_SECONDS: Final = 1.0
"""Until the next try after anything else. Connections wait."""
_LATE_HINT: Final = "workers wait until it is there; has this machine no process or memory left?"


async def sockets_of(
    child: ServerProcess | None,
    settings: config.Listen,
    passed: Mapping[str, Sequence[socket.socket]],
    *,
    apart: Callable[[int | None], None],
) -> tuple[list[socket.socket], list[str]]:
    """The sockets on which workers ask, if they are ours, and where they ask.

    Args:
        child: the process that answers.
        settings: ``[listen]``.
        passed: the sockets that the service manager passed.
        apart: told how many descriptors another unit has that answers in our place; ``None``: that is not known.

    Raises:
        HostError: an address cannot be bound.
    """
    if isinstance(child, ServerUnit):
        addresses = await child.addresses(settings.http)
        apart(child.room)
        return [], addresses
    sockets, absent = listening.worker_sockets(settings, passed)
    for error in absent:
        structlog.get_logger().error("listen.absent", reason=error.message, hint=error.hint)
    return sockets, listening.names(sockets)


class Workers:
    """See the module.

    Args:
        servers: what whoever answers is told and asks.
        sockets: on which workers ask.
        passed: the sockets that the service manager passed; a netlink socket may be among them.
        child: the process; ``None``: this one answers.

    Attributes:
        owners: how the owner of a connection is found.

    *Resources*: the sockets and the child, until :meth:`close`.
    """

    def __init__(
        self,
        servers: Servers,
        sockets: Sequence[socket.socket],
        *,
        passed: Iterable[socket.socket],
        child: ServerProcess | None,
    ) -> None:
        self.owners = "by socket"
        self._servers = servers
        self._sockets = sockets
        self._passed = tuple(passed)
        self._child = child
        self._here: WorkerServer | None = None
        self._link: Link | None = None
        self._made: WorkerServer | None = None
        self._beginning: set[asyncio.Task[None]] = set()
        self._closing = False

    async def begin(self) -> None:
        """Answer from now on."""
        if self._child is None:
            await self._begin_here()
            return
        # A socket that asks the kernel who is connected is made by the service manager, where we may make none.
        asking = [one for one in self._passed if one.family == socket.AF_NETLINK]
        if not asking and not _may_ask():
            self.owners = "by address"
        self._child.answer([*self._sockets, *asking], self._servers, self._gone)
        if not await self.answered(BEGINS_SECONDS):
            structlog.get_logger().error("server.late", seconds=BEGINS_SECONDS, hint=_LATE_HINT)

    async def answered(self, seconds: float) -> bool:
        """Wait until workers are answered by what was told last, for so many seconds; whether they are."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._servers.serving()
            return True
        return False

    async def begun(self, settled: Callable[[], Awaitable[None]]) -> None:
        """Wait for what readiness tells of, workers' answers first.

        For those without end: while there are none all else goes on, and a start that takes too long is the service
        manager's to end. It would say that all is well to whoever starts after us, or has just installed this.

        Args:
            settled: waits for the rest.
        """
        await self._servers.serving()
        await settled()

    def _gone(self) -> None:
        # It cannot be begun anew: this process executes nothing any more. Better a thinner wall than no identity.
        structlog.get_logger().error("server.gone", hint="workers are answered by the agent itself; restart it")
        self._keep(self._begin_here, "answer here")

    def _keep(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        kept = unending(work, work=name, sleep=asyncio.sleep, seconds=CRASHED_SECONDS)
        task = asyncio.get_running_loop().create_task(kept, name=name)
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin_here(self) -> None:
        # It may be begun anew: of what there is already there is no second one.
        if self._link is None:
            self._link = Link(lost=self._lost)
        await self._connect(self._link)
        served = await self._link.first()
        if self._made is None:
            self._made = self._server(self._link, served)
        while True:
            with contextlib.suppress(OSError):  # no descriptor for what watches connections: it is waited for, as below
                self._made.listen(self._sockets)
                break
            await asyncio.sleep(AGAIN_SECONDS)
        self._here = self._made

    async def _connect(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        ours, its = await _pair()
        self._servers.link(ours, partial(self._catch_up, link))
        await loop.create_unix_connection(link.protocol, sock=its)

    def _catch_up(self, link: Link) -> None:
        # A process that is cut off is ended, so that it serves nothing old. This one cannot be: what it was told and
        # has not read (the event loop stood still, say) is overtaken by what is served now, and it is told again.
        link.break_off()
        if link.served is not None:
            link.served.take(self._servers.latest())

    def _lost(self) -> None:
        if not self._closing and self._link is not None:
            self._keep(partial(self._connect, self._link), "connect again")

    def _server(self, link: Link, served: Served) -> WorkerServer:
        diagnosis = diagnosis_of(self._passed)
        if diagnosis is None:  # a sandbox without netlink: the table says it too, more slowly
            self.owners = "by table"
        return answering(link, served, diagnosis, table=read_socket_table)

    async def close(self, grace_seconds: float) -> None:
        """Accept nothing more, and give what is under way so many seconds.

        Args:
            grace_seconds: see there.
        """
        self._closing = True
        if beginning := set(self._beginning):
            await asyncio.wait(beginning, timeout=grace_seconds)
            for task in beginning:
                task.cancel()  # whatever it waits for: the rest of the end must come
        if self._here is None:
            for one in self._sockets:
                one.close()
        if self._child is not None:
            await self._child.close(grace_seconds)
        if self._here is not None:
            await self._here.close(grace_seconds)


async def _pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a connection, as soon as there are descriptors for them: without it nobody is answered."""
    while True:
        with contextlib.suppress(OSError):
            return socket.socketpair()
        await asyncio.sleep(AGAIN_SECONDS)


def _may_ask() -> bool:
    """Whether a process of ours may make a socket that asks the kernel who is connected."""
    made = diagnosis_of(())
    if made is not None:
        made.close()
    return made is not None
