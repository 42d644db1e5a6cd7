"""What answers workers, in whichever process: who is connected comes from the kernel, everything else by a link."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

from agent.host.sockdiag import SocketDiagnosis
from agent.host.sockets import SocketTable
from agent.serve.fairness import Owners
from agent.serve.link import Link
from agent.serve.server import Use, WorkerServer
from agent.serve.waiting import Served
from agent.server.asking import Asking


def diagnosis_of(passed: Iterable[socket.socket]) -> SocketDiagnosis | None:
    """What asks the kernel about one socket; ``None``: it cannot be asked here.

    Args:
        passed: what the service manager passed, the socket for this perhaps among it.
    """
    try:
        return SocketDiagnosis(passed)
    except OSError:
        return None


def answering(
    link: Link,
    served: Served,
    diagnosis: SocketDiagnosis | None,
    *,
    table: Callable[[], SocketTable] | None = None,
    use: Use | None = None,
) -> WorkerServer:
    """Make it. To be called in the event loop.

    Args:
        link: the way to the controller.
        served: what came by it first.
        diagnosis: finds the owner of a connection; it is closed with the server.
        table: finds it where that does not; ``None``: nothing does, and connections count by their addresses.
        use: what this process uses, for the controller; ``None``: it is the controller's own.
    """
    if diagnosis is None:
        owners = None if table is None else Owners(table, whose=served.whose)
        return WorkerServer(link, served, owners, use=use)
    owners = Owners(table or SocketTable, diagnosis.owner, whose=served.whose, close=diagnosis.close)
    return WorkerServer(link, served, owners, Asking(diagnosis), use=use)
