"""The matrix of tests/matrix for the clients that this environment has: every state, as ``make matrix`` judges it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix.__main__ import Program
from tests.matrix.clients import PROGRAMS, Client
from tests.matrix.store import ObjectStore
from tests.system.harness import REPOSITORY, World

pytest.importorskip("boto3")
pytest.importorskip("google.auth")
pytest.importorskip("requests", reason="google-auth's own transport needs it")


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "cells"), [("env", 16), ("imds", 16), ("imds6", 8)])
def test_every_state(mode: str, cells: int, tmp_path: Path) -> None:
    """boto3 and google-auth come as whom they should in all eight states, however they are led to the agent."""
    argv = [sys.executable, "-m", "tests.matrix", "--mode", mode, "--build", str(tmp_path / "build")]
    done = subprocess.run(
        [*argv, "--only", "boto3", "--only", "google-auth"], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=400, check=False, env={**os.environ, "MATRIX_PYTHON": sys.executable},
    )  # fmt: skip
    said = done.stdout + done.stderr
    if f"skipped mode {mode}" in said:
        pytest.skip(said[said.index("skipped mode") :].splitlines()[0])
    assert f"{cells} of {cells} cells as said" in said, said
    assert done.returncode == 0, said


BUILT = REPOSITORY / "build" / "matrix"
BY_NAME = {
    "boto3": (sys.executable, str(PROGRAMS / "python_clients.py"), "boto3"),
    "Go v2": (str(BUILT / "go" / "s3"),),
    "JS v3": ("node", str(BUILT / "node" / "s3.mjs")),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_ipv6_loopback(name: str, tmp_path: Path) -> None:
    """A client that is told of the door by its IPv6 address, in brackets, gets the user's credential."""
    argv = BY_NAME[name]
    if not Path(argv[-1]).exists() and name != "boto3":
        pytest.skip("make matrix builds it")
    user = "ASIAUSER000000000006"
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "hello.txt").write_text("hello matrix\n")
    (tmp_path / "w").mkdir()
    world = World(tmp_path / "w")
    with world.agent({"listen": {"http": ["[::1]:0"]}}) as agent, ObjectStore(tmp_path / "objects") as store:
        agent.ready()
        assert agent.push(world.seal(world.session(user)))["outcome"] == "accepted"
        host, port = agent.address
        assert host == "::1"
        told = {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://[::1]:{port}",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv6",
        }
        program = Program(Client(name, "aws", "", argv), store, told, tmp_path)
        try:
            program.wait()
            assert program.read() == (True, "", {user})
        finally:
            program.close()
