"""The matrix of tests/matrix for the clients that this environment has: every state, as ``make matrix`` evaluates it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.matrix.__main__ import EARLY_END, MACHINE, STATES, Program
from tests.matrix.clients import AWS, PROGRAMS, Client
from tests.matrix.leap import Leap, build
from tests.matrix.store import ObjectStore
from tests.system.harness import REPOSITORY, World, background

pytest.importorskip("boto3")
pytest.importorskip("google.auth")
pytest.importorskip("requests", reason="google-auth's own transport needs it")


def test_the_readme_shows_every_state() -> None:
    """Each state has its row in the README's second table and its column in the third, in the order in which it is evaluated."""
    text = (REPOSITORY / "tests" / "matrix" / "README.md").read_text()
    described = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()]
    assert [name for name in described if name in STATES] == list(STATES)
    assert f"| client | engine | mode | {' | '.join(STATES)} |" in text


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "cells"), [("env", 20), ("imds", 20), ("imds6", 10)])
def test_every_state(mode: str, cells: int, tmp_path: Path) -> None:
    """boto3 and google-auth come as whom they should in all ten states, however they are led to the agent."""
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


def test_a_leap_is_what_brings_the_late(tmp_path: Path) -> None:
    """Under a late bundle botocore stays the machine a minute on, and is the user 20 minutes on, in one process."""
    user = "ASIAUSER000000000006"
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "hello.txt").write_text("hello matrix\n")
    (tmp_path / "w").mkdir()
    library = build(tmp_path)
    if library is None:
        pytest.skip("needs a C compiler (apt-get install gcc libc6-dev)")
    world, ec2 = World(tmp_path / "w"), Ec2MetadataService()
    ec2.attach("machine-role", Key(MACHINE[AWS], "s" * 40, "t" * 60, datetime.now(UTC) + timedelta(hours=6)))
    with (
        background(ec2),
        world.agent({"upstream": {"ec2": ec2.url}}) as agent,
        ObjectStore(tmp_path / "objects") as store,
    ):
        agent.ready()
        leap = Leap(library, tmp_path / "leap")
        program = Program(Client("boto3", AWS, "", BY_NAME["boto3"]), store, world.env(), tmp_path, leap)
        try:
            program.wait()
            assert program.read() == (True, "", {MACHINE[AWS]})
            assert agent.push(world.seal(world.session(user, hours=6)))["outcome"] == "accepted"
            leap.by(timedelta(minutes=1))
            assert program.read() == (True, "", {MACHINE[AWS]})
            leap.by(EARLY_END)
            assert program.read() == (True, "", {user})
        finally:
            program.close()


BUILT = REPOSITORY / "build" / "matrix"
BY_NAME = {
    "boto3": (sys.executable, str(PROGRAMS / "python_clients.py"), "boto3"),
    "Go v2": (str(BUILT / "go" / "s3"),),
    "JS v3": ("node", str(BUILT / "node" / "s3.mjs")),
}


# Those that `make clients` builds come with the slow tests, when it has.
@pytest.mark.parametrize("name", ["boto3", *(pytest.param(n, marks=pytest.mark.slow) for n in BY_NAME if n != "boto3")])
def test_an_address_in_brackets_is_reached(name: str, tmp_path: Path) -> None:
    """A client that is told of the listener by its IPv6 address, in brackets, gets the user's credential."""
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
