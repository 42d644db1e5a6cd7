"""Whoever asks and never reads the answer costs what an answer costs, and holds up nobody: neither others nor the end."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path

import pytest

from tests.system.harness import Agent, World

PEERS = 24
PIPELINED = 20_000
MOST_KB = 64 * 1024
"""For all of them; each could have it write 400 MB."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


def resident_kb(agent: Agent) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{agent.process.pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def ask_without_end(agent: Agent, endpoint: str) -> socket.socket:
    """A connection on which requests are sent until it takes no more, and nothing is read."""
    if endpoint == "control":
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(agent.control))
        head = b"GET /metrics HTTP/1.1\r\nHost: agent\r\n\r\n"
    else:
        peer = socket.create_connection(agent.address)
        head = b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.settimeout(0.2)
    with contextlib.suppress(OSError):
        for _ in range(PIPELINED // 100):
            peer.sendall(head * 100)
    return peer


@pytest.mark.parametrize("endpoint", ["control", "worker"])
def test_peers_that_never_read(world: World, endpoint: str) -> None:
    """A scraper or a program that pipelines requests and reads nothing: others are answered, memory is bounded."""
    with world.agent() as agent:
        agent.ready()
        before = resident_kb(agent)
        with contextlib.ExitStack() as stack:
            for _ in range(PEERS):
                stack.enter_context(contextlib.closing(ask_without_end(agent, endpoint)))
            key = "ASIAUSER000000000000"
            assert agent.push(world.seal(world.session(key)))["outcome"] == "accepted"
            assert agent.access_key() == key
            assert agent.operate("/metrics").status == 200
            assert resident_kb(agent) - before < MOST_KB
            assert agent.stop() == 0
