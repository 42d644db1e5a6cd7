"""The server itself: from the fork to its end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Sequence
from typing import Final

from agent.host import confine
from agent.host.sockdiag import SocketDiagnosis
from agent.host.sockets import SocketTable
from agent.serve.fairness import Owners
from agent.serve.link import Link
from agent.serve.server import WorkerServer
from agent.server.asking import Asking

try:
    import uvloop
except ImportError:  # not packaged for this platform: the standard loop does the same, slower
    _LOOP = asyncio.new_event_loop
else:
    _LOOP = uvloop.new_event_loop

CLOSE_SECONDS: Final = 2.0


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
    # The loop is not closed: that would take what is given up in between, and the process ends with it.
    loop.run_until_complete(_serve(link, sockets, diagnosis, stop))


async def _serve(
    given: socket.socket, sockets: Sequence[socket.socket], diagnosis: SocketDiagnosis | None, stop: asyncio.Event
) -> None:
    link = Link(lost=stop.set)
    await asyncio.get_running_loop().create_unix_connection(link.protocol, sock=given)
    # The loop runs and has what it needs, and nothing of a stranger was read. From here on it answers on what it has,
    # and can do nothing else.
    confine.give_up_all_but_answering()
    served = await link.first()
    owners = ask = None
    if diagnosis is not None:
        owners = Owners(SocketTable, diagnosis.owner, whose=served.whose, close=diagnosis.close)
        ask = Asking(diagnosis)
    server = WorkerServer(link, served, owners, ask)
    server.listen(sockets)
    await stop.wait()
    await server.close(CLOSE_SECONDS)
    await asyncio.sleep(0)  # what was said last is sent
