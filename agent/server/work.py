"""The server itself: from the fork to its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from agent.core.errors import SnapshotError
from agent.host import confine, descriptors, process
from agent.host.loop import Loop
from agent.host.sockdiag import SocketDiagnosis
from agent.serve.link import Link
from agent.serve.server import Use
from agent.serve.waiting import Served
from agent.server.answering import answering, diagnosis_of
from agent.server.queues import Queues
from agent.server.supervisor import Supervisor
from agent.snapshot.messages import Uses

_ANY: Final = 1 << 30
CLOSE_SECONDS: Final = 2.0
LAST_SECONDS: Final = 0.25
"""How long the controller may take to read what is said last."""


def run(
    link: socket.socket | None,
    sockets: Sequence[socket.socket],
    *,
    parent: int,
    kept: Sequence[bytes] = (),
    wall: float | None = None,
    master: socket.socket | None = None,
    stands_by: bool = False,
) -> None:
    """Answer workers until the master says that it is enough, or is gone.

    Args:
        link: to the controller; ``None``: there is none.
        sockets: on which workers ask; a netlink socket of the service manager's may be among them.
        parent: the process id of the master.
        kept: what may be a snapshot to begin with; of several, the newest.
        wall: how far the wall clock was ahead of boot time when they came, in seconds; ``None``: that is not known.
        master: is told when workers are answered, and gives links to controllers that come later.
        stands_by: answer nobody until the master says so.
    """
    confine.end_with_parent(parent)
    process.give_up_precedence()
    diagnosis = diagnosis_of(sockets)
    listening = [one for one in sockets if one.family != socket.AF_NETLINK]
    loop = Loop()
    asyncio.set_event_loop(loop)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGTERM})  # what came meanwhile is heeded now
    # The loop is not closed: that would take what is given up in between, and the process ends with it.
    serving = serve(link, listening, diagnosis, stop, _use(), kept=kept, wall=wall, master=master, stands_by=stands_by)
    loop.run_until_complete(serving)


def _use() -> Use | None:
    """What tells how much this process uses: opened now, since it can open nothing later."""
    try:
        watched, others = process.Watched(), process.open_descriptors()
    except OSError:
        return None

    def use(connections: int) -> Uses:
        found = watched.usage()
        return Uses(found.resident_bytes, found.cpu_seconds, others + connections)

    return use


async def serve(
    given: socket.socket | None,
    sockets: Sequence[socket.socket],
    diagnosis: SocketDiagnosis | None,
    stop: asyncio.Event,
    use: Use | None = None,
    *,
    kept: Sequence[bytes] = (),
    wall: float | None = None,
    master: socket.socket | None = None,
    stands_by: bool = False,
) -> None:
    """Answer on ``sockets`` what the controller tells over ``given``, until ``stop``.

    When the controller has ended, what it told last is served on, until that ends.

    Args:
        given: the way to the controller.
        sockets: workers ask there.
        diagnosis: finds the owner of a connection; ``None``: they count by their addresses.
        stop: ends it; set by whoever ends the process, and where nobody tells what to serve.
        use: what this process uses.
        kept: what may be a snapshot to begin with.
        wall: how far the wall clock was ahead of boot time when they came; ``None``: that is not known.
        master: is told when workers are answered, and gives links to controllers that come later.
        stands_by: answer nobody until the master says so.
    """
    ended = asyncio.Event()

    def lost() -> None:
        ended.set()
        if link.served is None:
            stop.set()

    link = Link(lost=lost)
    ended.set()

    async def connect(given: socket.socket) -> None:
        ended.clear()
        await asyncio.get_running_loop().create_unix_connection(link.protocol, sock=given)

    if given is not None:
        await connect(given)
    supervisor = Supervisor(master, connect, stands_by=stands_by)
    queues = Queues(sockets, supervisor.waiting)
    most = descriptors.shares(descriptors.raised(), connections=_ANY, passed=0).connections
    # The loop runs and has what it needs, and nothing of a stranger was read. From here on it answers on what it has,
    # and can do nothing else.
    confine.give_up_all_but_answering()
    link.begin_with(_newest(kept, wall))
    if given is None and link.served is None:
        return  # it was emptied just now, or is none: there is nothing to serve
    served = await _first(link, stop)
    if served is None:
        return
    served.bounded(most)
    server = answering(link, served, diagnosis, use=use)
    supervisor.heed()
    if await _stood_by(supervisor, queues, stop):
        if diagnosis is not None:
            diagnosis.begin()
        server.listen(sockets)
        supervisor.serves()
    await stop.wait()
    await server.close(CLOSE_SECONDS)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_SECONDS):  # what was said last is sent
            await ended.wait()


async def _stood_by(supervisor: Supervisor, queues: Queues, stop: asyncio.Event) -> bool:
    """Wait until workers are to be answered; false: it ends before that."""
    if not supervisor.answers.is_set():
        queues.begin()
        await _either(supervisor.answers.wait(), stop.wait())
    queues.close()
    return supervisor.answers.is_set() and not stop.is_set()


def _newest(kept: Sequence[bytes], wall: float | None) -> Served | None:
    """The newest of those that are snapshots."""
    found: list[Served] = []
    for data in kept:
        with contextlib.suppress(SnapshotError):
            found.append(Served(data, wall=wall))
    return max(found, key=lambda one: one.version, default=None)


async def _first(link: Link, stop: asyncio.Event) -> Served | None:
    """What is served first; ``None``: it ends before that, since it would keep the sockets and answer nobody."""
    await _either(link.first(), stop.wait())
    return link.served


async def _either(*waited: Coroutine[Any, Any, Any]) -> None:
    """Wait for one of them."""
    tasks = [asyncio.ensure_future(one) for one in waited]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for one in tasks:
        one.cancel()
