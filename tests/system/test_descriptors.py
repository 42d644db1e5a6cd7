"""Few file descriptors: the limit is shared out, and no worker's connections take the one that a renewal needs."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from pathlib import Path

import pytest

from tests.fakes.gce_metadata import GceMetadataServer
from tests.fakes.served import Fault
from tests.system.harness import Agent, World, background, until

LIMIT = 300


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the agent shows its descriptors to no user")
def test_a_limit_below_the_caps_is_told_and_stops_no_renewal(tmp_path: Path) -> None:
    """Many more connections than descriptors: others are answered, the machine's token is renewed, and status says why.

    Then no process of it can open anything, in the middle of its renewals: nothing ends, little is said, and it heals.
    """
    gce = GceMetadataServer(token_seconds=20)  # asked for anew every two seconds
    (tmp_path / "w").mkdir()
    world = World(tmp_path / "w")
    through = ["prlimit", f"--nofile={LIMIT}:{LIMIT}"]
    with contextlib.ExitStack() as kept:
        kept.enter_context(background(gce))
        changes = {"upstream": {"gce": gce.url}, "identity": {"fallback": ["aws", "gcp"]}}
        agent = kept.enter_context(world.agent(changes, through=through)).ready()
        lowered = agent.wait_for("connections.lowered", descriptors=LIMIT, configured=8192)
        most = lowered["max_connections"]
        assert 16 <= most < LIMIT
        assert agent.status()["without"]["listen.max_connections"].startswith(f"{most}: ")
        assert b'credential_agent_without{key="listen.max_connections"} 1.0' in agent.operate("/metrics").body
        for _ in range(2 * LIMIT):
            kept.enter_context(socket.create_connection(agent.address))
        before = sum("/token" in path for path in gce.paths())
        until(lambda: sum("/token" in path for path in gce.paths()) > before + 1, what="a renewal")
        assert agent.google_token().status == 200
        assert all(len(list(Path(f"/proc/{pid}/fd").iterdir())) < LIMIT for pid in agent.processes)
        _takes_them_all(agent, gce)


def _takes_them_all(agent: Agent, gce: GceMetadataServer) -> None:
    for pid in agent.processes:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, LIMIT))
    gce.faults.append(Fault(drop=True))  # a connection that is open would do
    with socket.create_connection(agent.address) as waiting:
        assert agent.wait_for("credential.failed")["code"] == "network"
        waiting.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        asked = len(gce.paths())
        for pid in agent.processes:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    until(lambda: len(gce.paths()) > asked, what="a renewal")
    until(lambda: agent.google_token().status == 200, what="an answer")
    assert not agent.events("work.crashed")
    assert not agent.events("raw")
    assert len(agent.lines) < LIMIT
