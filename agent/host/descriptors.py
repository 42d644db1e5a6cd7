"""How many file descriptors this process may have, and how they are shared out."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

import msgspec

RESERVE: Final = 256
"""For what keeps a worker's identity alive: the way out, sources, sockets, files, the event loop."""
LEAST: Final = 16


class Shares(msgspec.Struct, frozen=True):
    """How many each use may have.

    Attributes:
        limit: of the process.
        connections: of workers.
        passed: of requests out that workers cause.
    """

    limit: int
    connections: int
    passed: int


def raised() -> int:
    """The limit, raised as far as an unprivileged process may (getrlimit(2)): some shells give 1024 of 2**20."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def shares(limit: int, *, connections: int, passed: int) -> Shares:
    """Make what is wanted fit under ``limit``, with a reserve: renewal must never find none left.

    Args:
        limit: descriptors in all.
        connections: as configured.
        passed: as many as are of use; 0: another process makes them.
    """
    left = limit - min(RESERVE, limit // 2)
    if not passed:
        return Shares(limit, max(LEAST, min(connections, left)), 0)
    if connections + passed <= left:
        return Shares(limit, connections, passed)
    passed = max(LEAST, min(passed, left // 4))
    return Shares(limit, max(LEAST, min(connections, left - passed)), passed)
