"""Few file descriptors: the limit is shared out, and no worker's connections take the one that a renewal needs."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from tests.fakes.gce_metadata import GceMetadataServer
from tests.system.harness import World, background, until

LIMIT = 300


def test_a_limit_below_the_caps_is_told_and_stops_no_renewal(tmp_path: Path) -> None:
    """Many more connections than descriptors: others are answered, the machine's token is renewed, and status says why."""
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
        assert not agent.events("raw")
