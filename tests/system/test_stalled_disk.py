"""A disk that stalls under a file that is not the point holds up no answer, no acknowledgement and no end."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.notify_socket import NotifySocket
from tests.system.harness import REPOSITORY, Agent, World, background, until

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
        until(lambda: world.env().get("WHO") == key, what="the file of the last bundle that was taken meanwhile")
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


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path / "n") as manager:
        yield manager


def start(world: World, manager: NotifySocket, stall: Stall, changes: dict[str, Any] | None = None) -> Agent:
    environ = {"NOTIFY_SOCKET": str(manager.path), "STALL_OPEN": "1", **stall.environ}
    return world.agent(changes, environ=environ, passed=manager.stored())


def test_the_state_at_a_restart(world: World, shim: Path, manager: NotifySocket) -> None:
    """A state directory that hangs at a restart holds up nothing that was handed over; then it is written again."""
    stall = Stall(world, shim, world.state)
    with start(world, manager, stall) as agent:
        agent.ready()
        assert agent.push(world.seal(world.session(USER)))["durable"]
        manager.wait_content("credentials", lambda data: USER.encode() in data)
        manager.wait_content("handover", lambda data: json.loads(data).get("signed") is not None)
        agent.kill()
    stall.begin()
    other = "ASIAUSER000000000001"
    with start(world, manager, stall) as agent:
        agent.started()
        assert agent.access_key() == USER
        assert agent.push(world.seal(world.session(other)))["durable"] is False
        assert agent.access_key() == other
        stall.end()
        agent.wait_for("memory.written")
        assert agent.access_key() == other
        agent.kill()
    manager.drop()
    with start(world, manager, stall) as agent:
        agent.ready()
        assert agent.access_key() == other


def test_a_disk_that_moved_on(world: World, shim: Path, manager: NotifySocket) -> None:
    """Where the disk turns out later than the handover, nothing is written over it: the next start goes by the disk."""
    stall = Stall(world, shim, world.state)
    other = "ASIAUSER000000000001"
    with start(world, manager, stall) as agent:
        agent.ready()
        agent.push(world.seal(world.session(USER)))
        manager.wait_content("handover", lambda data: json.loads(data).get("signed") is not None)
        (old,) = manager.content("handover")
        agent.push(world.seal(world.session(other)))
        agent.kill()
    manager.drop()
    manager.put("handover", old)
    stall.begin()
    with start(world, manager, stall) as agent:
        agent.started()
        stall.end()
        assert agent.wait() != 0
    with start(world, manager, stall) as agent:
        agent.ready()
        assert agent.status()["bundle"]["seq"] == 2


def test_the_state_at_a_first_start(world: World, shim: Path, manager: NotifySocket) -> None:
    """While nobody knows what was decided here every request gets 503, the machine's identity is served to none."""
    ec2 = Ec2MetadataService()
    ec2.attach("worker-role", Key("ASIAMACHINE000000001", "machine-secret", "machine-token"))
    stall = Stall(world, shim, world.state)
    with background(ec2):
        changes = {"upstream": {"ec2": ec2.url}}
        stall.begin()
        with start(world, manager, stall, changes) as agent:
            host, port = agent.wait_for("state.stalled")["http"][0].rsplit(":", 1)
            manager.wait_until(lambda told: "does not answer" in (told.value("STATUS") or ""))
            for path in ("/latest/api/token", "/latest/meta-data/iam/security-credentials/", "/v1/credentials"):
                connection = http.client.HTTPConnection(host, int(port), timeout=10)
                with contextlib.closing(connection):
                    connection.request("GET", path)
                    assert connection.getresponse().status == 503
            stall.end()
            agent.ready()
            assert agent.access_key() == "ASIAMACHINE000000001"
        stall.begin()
        manager.drop()
        with start(world, manager, stall, changes) as agent:
            agent.wait_for("state.stalled")
            assert agent.stop() == 0
