"""Which processes are there, and what does each use? For status and metrics."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta

from agent import report
from agent.daemon.servers import Servers
from agent.daemon.unit import ServerProcess
from agent.host.clock import SystemClock
from agent.host.process import Usage, usage


def answering(servers: Servers, clock: SystemClock) -> tuple[report.ServerVitals, ...]:
    """The processes that answer workers, the oldest first."""
    now, newest = clock.now(), servers.version()
    return tuple(
        report.ServerVitals(
            pid=one.pid,
            since=now - timedelta(seconds=max(0.0, servers.clock() - one.began)),
            version=max(0, one.taken),
            newest=one.taken >= newest,
            apart=one.pid != os.getpid(),
            stands_by=one.stands_by(),
        )
        for one in servers.connected
    )


def used(servers: Servers, child: ServerProcess | None) -> Mapping[str, Usage]:
    """What each process uses, by its name: this one, what answers workers by its own word, and what begins it."""
    found = {"agent": usage()}
    said = [one.uses for one in servers.connected if one.uses is not None]
    if said:
        found["server"] = Usage(
            sum(one.resident_bytes for one in said),
            sum(one.cpu_seconds for one in said),
            sum(one.descriptors for one in said),
        )
    master = None if child is None else child.usage()
    if master is not None:
        found["master"] = master
    return found
