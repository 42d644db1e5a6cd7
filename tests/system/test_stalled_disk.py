"""A disk that stalls under a file that is not the point holds up no answer, no acknowledgement and no end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import bundle
from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.https_store import private_ca
from tests.fakes.notify_socket import NotifySocket
from tests.system.harness import AUDIENCE, REPOSITORY, Agent, World, background, until

USER = "ASIAUSER000000000000"
MORE_THAN_THREADS = min(32, (os.cpu_count() or 1) + 4) + 1
"""More than the pool has that asyncio gives what blocks to."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (apt-get install gcc libc6-dev)")
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
        for number in range(MORE_THAN_THREADS):
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


@pytest.mark.parametrize("how", ["written", "opened"])
def test_what_is_told_in_files(world: World, shim: Path, how: str) -> None:
    """The directory of the metrics' file and of the audit's stalls: bundles are taken and served, a stop ends with 0."""
    told = world.root / "told"
    told.mkdir()
    stall = Stall(world, shim, told)
    changes = {
        "metrics": {"textfile": told / "metrics.prom", "seconds": 1.0},
        "audit": {"file": told / "audit.log", "seconds": 1.0},
    }
    with world.agent(changes, environ={**stall.environ, **({"STALL_OPEN": "1"} if how == "opened" else {})}) as agent:
        agent.ready()
        until((told / "metrics.prom").exists, what="the first metrics")
        stall.begin()
        if how == "written":
            until(
                lambda: {path.name for path in told.iterdir()} - {"metrics.prom", "audit.log"},
                what="metrics that are not written to the end",
            )
        for number in range(MORE_THAN_THREADS):
            key = f"ASIAUSER0000000000{number:02}"
            assert agent.push(world.seal(world.session(key)))["outcome"] == "accepted"
            assert agent.access_key() == key
        agent.wait_for("credential.served", access_key_id=f"...{key[-4:]}")
        assert agent.access_key() == key
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


def written(world: World) -> dict[str, Any]:
    memory = json.loads((world.state / "memory.json").read_bytes())["memory"]
    assert isinstance(memory, dict)
    return memory


def test_a_withdrawal_between_two_restarts(world: World, shim: Path, manager: NotifySocket) -> None:
    """A withdrawal that no disk has taken holds over the next restart, on a disk that hangs still, and after it."""
    stall = Stall(world, shim, world.state)
    with start(world, manager, stall) as agent:
        agent.ready()
        assert agent.push(world.seal(world.session(USER)))["durable"]
        manager.wait_content("handover", lambda data: json.loads(data).get("signed") is not None)
        agent.kill()
    stall.begin()
    with start(world, manager, stall) as agent:
        agent.started()
        assert agent.access_key() == USER
        ack = agent.push(world.withdrawal())
        assert (ack["outcome"], ack["durable"]) == ("accepted", False)
        assert agent.role() is None
        manager.wait_content("handover", lambda data: json.loads(data)["memory"]["active"] is None)
        agent.kill()
    with start(world, manager, stall) as agent:
        agent.started()
        assert agent.role() is None
        stall.end()
        until(lambda: written(world)["active"] is None, what="the withdrawal on the disk")
        agent.kill()
    manager.drop()
    with start(world, manager, stall) as agent:
        agent.ready()
        assert agent.role() is None
        assert agent.status()["bundle"] is None


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


def far(world: World, name: str) -> Path:
    """Where a file of the configuration lies on another host's disk."""
    (world.root / "far").mkdir(exist_ok=True)
    return world.root / "far" / name


def far_files(world: World) -> dict[str, Any]:
    """Everything that a configuration can name, on that disk."""
    key = far(world, "worker.jwk")
    shutil.copy2(world.key_file, key)
    signer = far(world, "sender.jwk")
    shutil.copy2(world.signer_file, signer)
    authority, _ = private_ca(far(world, "ca").parent)
    token = far(world, "token")
    token.write_text("t" * 32)
    https = {"kind": "https", "url": "https://127.0.0.1:9/b", "ca_file": authority, "token_file": token}
    return {
        "keys": [{"kind": "file", "path": key}],
        "signers": [{**world.base["signers"][0], "key": signer}],
        "sources": [*world.base["sources"], https],
        "upstream": {"ca_file": authority},
    }


def test_the_files_of_the_configuration_at_a_restart(world: World, shim: Path, manager: NotifySocket) -> None:
    """Files that hang at a restart hold up nothing that was handed over, and are used as soon as they answer."""
    stall, changes = Stall(world, shim, world.root / "far"), far_files(world)
    other = "ASIAUSER000000000001"
    with start(world, manager, stall, changes) as agent:
        agent.ready()
        agent.push(world.seal(world.session(USER)))
        manager.wait_content("credentials", lambda data: USER.encode() in data)
        manager.wait_content("handover", lambda data: json.loads(data).get("signed") is not None)
        agent.kill()
    stall.begin()
    with start(world, manager, stall, changes) as agent:
        agent.started()
        assert agent.access_key() == USER
        assert {"keys[0]", "signers[0].key", "upstream.ca_file"} <= set(agent.status()["without"])
        stall.end()
        agent.wait_for("reload.applied")
        assert agent.push(world.seal(world.session(other)))["outcome"] == "accepted"
        assert agent.access_key() == other
        assert "keys[0]" not in agent.status()["without"]


@pytest.mark.parametrize("lies_far", ["keys", "signers", "sources", "upstream"])
def test_the_files_of_the_configuration_at_a_first_start(
    world: World, shim: Path, manager: NotifySocket, lies_far: str
) -> None:
    """While what would bring or vouch for a bundle hangs, nobody is the machine for want of one; and it is told."""
    ec2 = Ec2MetadataService()
    ec2.attach("worker-role", Key("ASIAMACHINE000000001", "machine-secret", "machine-token"))
    stall = Stall(world, shim, world.root / "far")
    with background(ec2):
        changes = {"identity": {"grace_seconds": 0.2}, lies_far: far_files(world)[lies_far]}
        changes["upstream"] = {**changes.get("upstream", {}), "ec2": ec2.url}
        stall.begin()
        with start(world, manager, stall, changes) as agent:
            agent.started()
            agent.wait_for("start.without")
            manager.wait_content("handover", lambda data: json.loads(data)["holding"])
            assert agent.imds("/latest/meta-data/iam/security-credentials/").status == 503
            agent.kill()
        with start(world, manager, stall, changes) as agent:  # nor after a restart, with what was handed over
            agent.started()
            assert agent.imds("/latest/meta-data/iam/security-credentials/").status == 503
            stall.end()
            agent.wait_for("reload.applied")
            agent.ready()
            assert agent.access_key() == "ASIAMACHINE000000001"  # the grace has counted from there


def test_the_files_of_the_configuration_while_it_runs(world: World, shim: Path, manager: NotifySocket) -> None:
    """A hanging file holds up no answer and no bundle; a reload ends, refused; what answers again is used again."""
    stall, changes = Stall(world, shim, world.root / "far"), far_files(world)
    with start(world, manager, stall, changes) as agent:
        agent.ready()
        stall.begin()
        agent.wait_for("file.stalled", key="signers[0].key")
        mark, told = agent.mark, manager.mark
        agent.signal(signal.SIGHUP)
        for number in range(MORE_THAN_THREADS):
            key = f"ASIAUSER0000000000{number:02}"
            assert agent.push(world.seal(world.session(key)))["outcome"] == "accepted"
            assert agent.access_key() == key
        agent.wait_for("reload.refused", after=mark)
        manager.wait_for("READY=1", after=told)
        stall.end()
        agent.wait_for("file.answers", key="signers[0].key")
        agent.signal(signal.SIGHUP)
        agent.wait_for("reload.applied", after=mark)
        stall.begin()
        assert agent.stop() == 0


def test_the_configuration_at_a_restart(world: World, shim: Path, manager: NotifySocket) -> None:
    """A restart with the configuration on a mount that hangs goes by the one before, and takes the file's when it can."""
    other = bundle.audience_cluster("other")
    stall = Stall(world, shim, world.root / "etc" / "config.toml")
    with start(world, manager, stall) as agent:
        agent.ready()
        agent.push(world.seal(world.session(USER)))
        manager.wait_content("handover", lambda data: json.loads(data).get("signed") is not None)
        manager.wait_content("configuration", bool)
        agent.kill()
    stall.begin()
    with start(world, manager, stall, {"identity": {"audience": [AUDIENCE, other]}}) as agent:
        assert agent.wait_for("config.stalled")["instead"] == "the one before"
        assert agent.ready().access_key() == USER
        assert other not in agent.status()["audiences"]
        stall.end()
        agent.wait_for("reload.applied")
        assert other in agent.status()["audiences"]
        assert agent.access_key() == USER
        assert agent.stop() == 0


def test_the_configuration_at_a_first_start(world: World, shim: Path, manager: NotifySocket) -> None:
    """Where nobody knows what is configured nothing is served, which is said; it starts as soon as the file answers.

    A reload that is asked for meanwhile ends nothing, and is done after the start; nor does what means nothing here.
    """
    stall = Stall(world, shim, world.root / "etc" / "config.toml")
    stall.begin()
    with start(world, manager, stall) as agent:
        assert agent.wait_for("config.stalled")["instead"] is None
        assert agent.events("agent.started") == []
        agent.signal(signal.SIGHUP)
        agent.signal(signal.SIGUSR1)
        stall.end()
        agent.ready().wait_for("reload.applied")
        before = agent.every_process()
        for pid in before:
            os.kill(pid, signal.SIGUSR2)
        assert agent.push(world.seal(world.session(USER)))["outcome"] == "accepted"
        assert agent.access_key() == USER
        assert agent.processes == before
        assert agent.stop() == 0


def test_a_configuration_with_a_mistake_is_told_once_it_answers(
    world: World, shim: Path, manager: NotifySocket
) -> None:
    """What hangs and then is wrong leaves the one before in force, as any reload does."""
    stall = Stall(world, shim, world.root / "etc" / "config.toml")
    with start(world, manager, stall) as agent:
        agent.ready()
        manager.wait_content("configuration", bool)
        agent.kill()
    stall.begin()
    with start(world, manager, stall, {"identity": {"on_expire": "fallback"}}) as agent:
        agent.ready()
        stall.end()
        assert "identity.on_expire" in agent.wait_for("reload.refused")["reason"]
        assert agent.push(world.seal(world.session(USER)))["outcome"] == "accepted"
