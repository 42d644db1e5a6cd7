"""Who got which credential: real clients as real users against the real daemon, and what is written down of it."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import NOBODY, Agent, World

KEY = "ASIAUSER0000000WXYZ"
BOTO3 = """
import boto3
print(boto3.Session().get_credentials().get_frozen_credentials().access_key)
"""
MANY = """
import encodings.idna, os, socket, sys
os.setgid(65534), os.setuid(65534)
host, port, token, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
data = (f"GET /v1/credentials HTTP/1.1\\r\\nHost: localhost\\r\\nAuthorization: {token}\\r\\n"
        "User-Agent: evil\\t{\\"uid\\": 0}\\r\\n\\r\\n").encode()
good = 0
for _ in range(count):
    with socket.create_connection((host, port)) as sock:
        sock.sendall(data)
        good += sock.makefile("rb").read().startswith(b"HTTP/1.1 200")
print(good)
"""

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: two users")]


def by_boto3(agent: Agent, world: World) -> str:
    environ = {
        "PATH": os.environ["PATH"],
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{agent.url}/v1/credentials",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": world.token,
    }
    done = subprocess.run([sys.executable, "-c", BOTO3], env=environ, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def series(agent: Agent, name: str) -> dict[str, float]:
    """The rows of a metric by their labels."""
    text = agent.operate("/metrics").body.decode()
    return {
        labels: float(value)
        for labels, value in re.findall(rf"^credential_agent_{name}\{{([^}}]*)\}} (\S+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("mode", ["summary", "full"])
def test_who_got_what_is_written_down_and_nothing_else(tmp_path: Path, mode: str) -> None:
    """Two users, three hundred requests: two lines, by uid, program and key, in the log and in a file, without a secret."""
    root = tmp_path / "w"
    root.mkdir()
    world = World(root)
    file = root / "state" / "audit.jsonl"
    with world.agent({"audit": {"mode": mode, "seconds": 3600.0, "file": file}}) as agent:
        agent.ready()
        world.drop(world.seal(world.session(KEY)))
        agent.wait_for("bundle.accepted", seq=1)
        assert by_boto3(agent, world) == KEY
        host, port = agent.address
        done = subprocess.run(
            [sys.executable, "-c", MANY, host, str(port), world.token, "300"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "300\n"
        assert agent.ask("/v1/credentials").status == 401
        given = series(agent, "credentials_served_total")
        assert sum(given.values()) == 301
        assert given['caller="root",cloud="aws",dialect="container"'] == 1
        assert series(agent, "requests_refused_total")['reason="token"'] == 1
        assert not file.exists()
        assert agent.stop() == 0
        token = world.token
    told = [line for line in agent.lines if line["event"] == "credential.served"]
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def without(line: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in line.items() if key not in {"level", "timestamp"}}

    assert [without(line) for line in told] == written
    found = {line["uid"]: line for line in written}
    assert sum(line["count"] for line in written) == 301
    assert {line["access_key_id"] for line in written} == {"...WXYZ"}
    assert found[0]["user_agents"][0].startswith(("python-urllib3/", "Boto3/"))
    assert found[NOBODY]["user_agents"] == ['evil\\x09{"uid": 0}']
    if mode == "full":
        assert {uid: line["count"] for uid, line in found.items()} == {0: 1, NOBODY: 300}
    else:
        # In a flood the kernel is not asked each time: those are nobody's, and counted.
        assert set(found) - {None} == {0, NOBODY}
        assert found[NOBODY]["count"] >= 99
    text = agent.stderr + file.read_text()
    for secret in (KEY, "s" * 40, "t" * 40, token):
        assert secret not in text
