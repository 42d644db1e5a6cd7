"""The server itself: from the fork to its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Sequence
from typing import Any, Final

from agent.host import confine
from agent.host.sockdiag import SocketDiagnosis
from agent.host.sockets import SocketTable
from agent.serve.fairness import Owners
from agent.serve.link import Link
from agent.serve.server import WorkerServer
from agent.serve.waiting import Served
from agent.server.asking import Asking

try:
    import uvloop
except ImportError:  # not packaged for this platform: the standard loop does the same, slower
    _LOOP = asyncio.new_event_loop
else:
    _LOOP = uvloop.new_event_loop

CLOSE_SECONDS: Final = 2.0
LAST_SECONDS: Final = 0.25
"""How long the controller may take to read what is said last."""


def run(link: socket.socket, sockets: Sequence[socket.socket], *, parent: int) -> None:
    """Answer workers until the controller is gone or says that it is enough.

    Args:
        link: to the controller.
        sockets: on which workers ask.
        parent: the process id of the master.
    """
    confine.end_with_parent(parent)
    try:
        diagnosis = SocketDiagnosis()
    except OSError:
        diagnosis = None  # connections then count by their addresses
    loop = _LOOP()
    asyncio.set_event_loop(loop)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGTERM})  # what came meanwhile is heeded now
    # The loop is not closed: that would take what is given up in between, and the process ends with it.
    loop.run_until_complete(serve(link, sockets, diagnosis, stop))


async def serve(
    given: socket.socket, sockets: Sequence[socket.socket], diagnosis: SocketDiagnosis | None, stop: asyncio.Event
) -> None:
    """Answer on ``sockets`` what the controller tells over ``given``, until ``stop`` or until nobody tells it.

    Args:
        given: the way to the controller.
        sockets: workers ask there.
        diagnosis: finds the owner of a connection; ``None``: the kernel's table does.
        stop: ends it; set by whoever ends the process, and when the way to the controller ends.
    """
    ended = asyncio.Event()

    def lost() -> None:
        ended.set()
        stop.set()

    link = Link(lost=lost)
    await asyncio.get_running_loop().create_unix_connection(link.protocol, sock=given)
    # The loop runs and has what it needs, and nothing of a stranger was read. From here on it answers on what it has,
    # and can do nothing else.
    confine.give_up_all_but_answering()
    served = await _first(link, stop)
    if served is None:
        return
    owners = ask = None
    if diagnosis is not None:
        owners = Owners(SocketTable, diagnosis.owner, whose=served.whose, close=diagnosis.close)
        ask = Asking(diagnosis)
    server = WorkerServer(link, served, owners, ask)
    server.listen(sockets)
    await stop.wait()
    await server.close(CLOSE_SECONDS)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_SECONDS):  # what was said last is sent
            await ended.wait()


async def _first(link: Link, stop: asyncio.Event) -> Served | None:
    """What is served first; ``None``: it ends before that, since it would keep the sockets and answer nobody."""
    waited: list[asyncio.Future[Any]] = [asyncio.ensure_future(link.first()), asyncio.ensure_future(stop.wait())]
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    for one in waited:
        one.cancel()
    return link.served
