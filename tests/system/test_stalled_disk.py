"""A disk that stalls under a file that is not the point holds up no answer, no acknowledgement and no end."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.harness import REPOSITORY, Agent, World

USER = "ASIAUSER000000000000"


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    built = tmp_path / "stall.so"
    source = REPOSITORY / "tests" / "fakes" / "stall.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, source, "-ldl"], check=True)
    return built


class Stall:
    def __init__(self, world: World, shim: Path, under: Path) -> None:
        self.flag = world.root / "stalls"
        self.environ = {"LD_PRELOAD": str(shim), "STALL_UNDER": str(under), "STALL_WHILE": str(self.flag)}

    def begin(self) -> None:
        self.flag.touch()

    def end(self) -> None:
        self.flag.unlink()


def test_the_environment_files(world: World, shim: Path) -> None:
    """/run stalls: bundles are taken, acknowledged and served, and a stop ends with status 0; then the file is right."""
    stall = Stall(world, shim, world.root / "run")
    with world.agent(environ=stall.environ) as agent:
        agent.ready()
        stall.begin()
        for number in range(12):  # more than a usual pool has threads
            key = f"ASIAUSER0000000000{number:02}"
            sealed = world.seal(world.session(key), world.variables(WHO=key))
            assert agent.push(sealed)["outcome"] == "accepted"
            assert agent.access_key() == key
        stall.end()
        agent.push(world.seal(world.session(USER), world.variables(WHO="last")))
        agent.push(world.seal(world.session(USER), world.variables(WHO="last")))
        assert world.env()["WHO"] == "last"
        stall.begin()
        agent.push(world.seal(world.session(USER), world.variables(WHO="never")))
        assert agent.stop() == 0


def test_from_the_start(world: World, shim: Path) -> None:
    """/run stalls from the start on: it is ready all the same."""
    stall = Stall(world, shim, world.root / "run")
    stall.begin()
    world.drop(world.seal(world.session(USER)))
    with world.agent(environ=stall.environ) as agent:
        agent.ready()
        agent.wait_for("bundle.accepted")
        assert agent.access_key() == USER
        assert agent.stop() == 0


def test_a_published_key(world: World, shim: Path) -> None:
    """The directory of a published key stalls: nothing but that waits."""
    published = world.root / "pub"
    published.mkdir()
    stall = Stall(world, shim, published)
    stall.begin()
    keys = [*world.base["keys"], {"kind": "ephemeral", "publish_file": published / "key"}]
    world.drop(world.seal(world.session(USER)))
    with Agent(world.write_config({"keys": keys}), environ=stall.environ) as agent:
        agent.ready()
        agent.wait_for("bundle.accepted")
        assert agent.access_key() == USER
        assert agent.stop() == 0
