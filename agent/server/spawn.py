"""Begins this program as a child: imports next to nothing, so that both processes load what they need side by side.

To be called before anything else is imported, and before the right to execute is given up. A start is as long as the
longer of the two then, and not as long as both one after the other.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

UNIT_VARIABLE: Final = "CREDENTIAL_AGENT_SERVE_SOCKET"
"""Names the socket of the unit that answers workers in place of a child."""


def unit_of(environ: Mapping[str, str]) -> str | None:
    """Where the unit listens that answers workers; ``None``: none is named, or we were given workers' sockets."""
    path = environ.get(UNIT_VARIABLE)
    return None if not path or "http" in environ.get("LISTEN_FDNAMES", "").split(":") else path


def spawn(environ: Mapping[str, str]) -> tuple[subprocess.Popen[bytes] | None, socket.socket]:
    """Begin it.

    Args:
        environ: of this process. It gets what the dynamic loader reads, and nothing else: the rest may hold what it
            must not know.

    Returns:
        The process, and our end of its control socket. ``None`` where none can be begun: that is heard at the socket,
        and dealt with, as any other end.
    """
    ours, its = map(_not_standard, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    # A terminal sends them to all of us, and the child would be ended before it can ignore them: it begins with them
    # blocked.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGTERM})
    with its:
        try:
            process: subprocess.Popen[bytes] | None = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-I", "-m", "agent.server", str(its.fileno()), str(os.getpid())],
                pass_fds=(its.fileno(),),
                stdin=subprocess.DEVNULL,
                env={name: value for name, value in environ.items() if name.startswith("LD_")},
            )
        except OSError:
            process = None  # who may not execute the interpreter by its path, say
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    ours.setblocking(False)
    return process, ours


def _not_standard(one: socket.socket) -> socket.socket:
    """The same under a number above 2: started without a standard error, the first socket would be that."""
    if one.fileno() > 2:
        return one
    with one:
        return socket.socket(fileno=fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))
