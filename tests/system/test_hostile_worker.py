"""One hostile worker at full effort takes nothing from another: a real daemon, real users, unmodified botocore."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.gce_metadata import GceMetadataServer
from tests.system.attacks import KINDS
from tests.system.harness import NICE, NOBODY, Agent, World, background

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users"),
]

ATTACKS = Path(__file__).with_name("attacks.py")
ASKED = 12
POLITE = f"""
import json, os, time
import botocore.session
from botocore.credentials import InstanceMetadataProvider
from botocore.utils import InstanceMetadataFetcher
got, slowest = 0, 0.0
for _ in range({ASKED}):
    began = time.monotonic()
    fetcher = InstanceMetadataFetcher(timeout=1, num_attempts=1, base_url=os.environ["IMDS"])
    got += InstanceMetadataProvider(iam_role_fetcher=fetcher).load() is not None
    slowest = max(slowest, time.monotonic() - began)
print(json.dumps([got, slowest]))
"""
MOST_RESIDENT_KB = 200_000
"""At rest it is some 60 MB; 8192 connections of 10 kB, and 16 MB of what is buffered, several times over."""


@contextlib.contextmanager
def hostile(kind: str, port: int, sockets: int) -> Iterator[None]:
    command = [sys.executable, str(ATTACKS), kind, str(port), str(NOBODY), str(sockets)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"on\n"
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """A program that computes, as there is one on every worker."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def polite(agent: Agent) -> tuple[int, float]:
    """How many of :data:`ASKED` credentials unmodified botocore got, each with one attempt of a second a request."""
    env = {"PATH": os.environ["PATH"], "IMDS": agent.url + "/", "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", POLITE], env=env, stdout=subprocess.PIPE, check=True, timeout=120)
    got, slowest = json.loads(done.stdout)
    return got, slowest


def resident_kb(agent: Agent) -> int:
    """The most that it ever had in memory."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{agent.process.pid}/status").read_text())
    assert found is not None
    return int(found.group(1))


@pytest.mark.parametrize("kind", KINDS)
def test_takes_nothing_from_another(tmp_path: Path, kind: str) -> None:
    """While one user does its worst on hundreds of sockets, each first credential of another comes in botocore's time."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    root = tmp_path / "w"
    root.mkdir()
    world = World(root)
    gce = GceMetadataServer()
    gce.attributes["large"] = json.dumps([{"number": n, "text": "x" * 60} for n in range(8000)])
    ec2 = Ec2MetadataService()
    ec2.attach("worker-role", Key("ASIAMACHINE000000000", "machine-secret", "machine-token"))
    with background(gce), background(ec2):
        changes = {
            "upstream": {"gce": gce.url, "ec2": ec2.url},
            "identity": {"fallback": ["aws", "gcp"]},
            "listen": {"max_connections": 4000 if kind == "our-polls" else 1000},
        }
        with world.agent(changes, through=["nice", "-n", str(NICE)]) as agent:
            agent.ready()
            # Of the order that the rules allow one user (redirect.max_connections_per_worker), and where a connection
            # alone is the attack, as many as anybody may have.
            sockets = 3000 if kind in {"idle", "half-heads", "half-bodies", "expecting"} else 400
            sockets = 600 if kind == "our-polls" else sockets
            port = agent.address[1]
            with busy(), hostile(kind, port, sockets), hostile(kind, port, max(5, sockets // 5)):
                got, slowest = polite(agent)
            print(f"{kind}: {got} of {ASKED}, slowest {slowest:.2f} s, most resident {resident_kb(agent) // 1024} MB")
            assert got == ASKED
            assert resident_kb(agent) < MOST_RESIDENT_KB
            assert agent.process.poll() is None
            assert not agent.events("request.crashed")
