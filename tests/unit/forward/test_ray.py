"""A real Ray cluster, each node with an agent of its own: who is there, who comes, who leaves. Run by ``make ray``."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.core.errors import UsageError
from agent.forward import State, on_ray, ray_hook, session
from agent.forward.on_ray import Ray
from agent.forward.wanted import begin
from tests.unit.forward.support import World, verifier

PYTHON = os.environ.get("FORWARD_RAY_PYTHON", "")
"""The interpreter of the cluster: it has ray and nothing of ours. This program imports ray from there too."""

SECONDS = 90

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="FORWARD_RAY_PYTHON names no python with ray: `make ray` does"),
    # What ray itself leaves open, and what of older ones newer Pythons warn of.
    pytest.mark.filterwarnings("ignore"),
]


class Cluster:
    """Nodes, each a raylet that was started as ``ray start`` does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.started: list[subprocess.Popen[bytes]] = []
        # Not below the test's own directory: ray keeps sockets in it, and their names may have 107 characters.
        self.directory = tempfile.TemporaryDirectory(prefix="ray")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.proxy = f"127.0.0.1:{free.getsockname()[1]}"  # of Ray's client, for who is outside of the cluster
        self.ray: Any = None

    def node(self, name: str, *more: str, courier: Path | None = None) -> None:
        if courier is None:
            self.world.machine(name)
            courier = self.world.courier.sockets[f"{name}-0"]
        head = [
            "--head",
            "--include-dashboard=false",
            "--disable-usage-stats",
            f"--port={self.address.split(':')[1]}",
            f"--ray-client-server-port={self.proxy.split(':')[1]}",
            f"--temp-dir={self.directory.name}",
        ]
        arguments = [*(head if not self.started else [f"--address={self.address}"]), *more]
        path = self.world.home / f"ray-{len(self.started)}.log"
        log = path.open("wb")
        self.started.append(
            subprocess.Popen(
                [
                    Path(PYTHON).with_name("ray"),
                    "start",
                    "--block",
                    "--node-ip-address=127.0.0.1",
                    "--num-cpus=1",
                    "--object-store-memory=80000000",
                    *arguments,
                ],
                cwd=self.world.home,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self.world.home),
                    "CREDENTIAL_AGENT_COURIER": str(courier),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
        log.close()
        # One after the other: two that start in one moment take the same names for their sockets.
        until(lambda: b"runtime started" in path.read_bytes())

    def connect(self, **more: Any) -> Any:
        """The package, connected. What was connected before is not."""
        if self.ray is None:
            self.ray = _package()
        self.ray.shutdown()
        self.ray.init(self.address, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="ERROR", **more)
        return self.ray

    def connect_from_outside(self) -> Any:
        """The package, connected as a laptop is: by one port of the head node."""
        if self.ray is None:
            self.ray = _package()
        self.ray.shutdown()
        self.ray.init(f"ray://{self.proxy}", log_to_driver=False, logging_level="ERROR")
        return self.ray

    def alive(self, count: int) -> None:
        until(lambda: sum(node["Alive"] for node in self.ray.nodes()) == count)

    def close(self) -> None:
        if self.ray is not None:
            self.ray.shutdown()
        for process in reversed(self.started):
            process.terminate()
        for process in self.started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.directory.cleanup()


def _package() -> Any:
    where = subprocess.run(
        [PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if where not in sys.path:
        sys.path.append(where)
    return importlib.import_module("ray")


def until(true: Callable[[], bool]) -> None:
    """Wait for what others do; each look is a question to them."""
    done = threading.Event()
    for _ in range(SECONDS * 10):
        if true():
            return
        done.wait(0.1)
    raise AssertionError("it did not come about")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with World(tmp_path, monkeypatch) as made:
        # Ray gives the folder of its program to the workers, to import from.
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(tmp_path / "program.py")])
        yield made


@pytest.fixture
def cluster(world: World) -> Iterator[Cluster]:
    made = Cluster(world)
    try:
        made.node("head")
        yield made
    finally:
        made.close()


def forward(world: World, **wanted: Any) -> Any:
    given = {"gcp": None, "signer": world.signer, "progress": False, **wanted}
    return begin(lambda _session, _issuer: Ray(), given, verify=verifier)


def probe() -> Any:
    """A task: it asks its node's agent whose bundle it serves, and whether anything of ours can be imported."""
    text = """
def probe():
    import http.client, importlib.util, json, os, socket
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(os.environ["CREDENTIAL_AGENT_COURIER"])
    connection.request("GET", "/v1/status")
    return json.loads(connection.getresponse().read())["bundle"], importlib.util.find_spec("agent") is not None
"""
    names: dict[str, Any] = {"__name__": "elsewhere"}
    exec(text, names)
    return names["probe"]


def test_present_and_future_nodes_are_served(world: World, cluster: Cluster) -> None:
    """Nodes that are there, one that comes, one without an agent; nothing of ours is on them. All of it ends."""
    cluster.node("two")
    cluster.node("bare", courier=world.home / "no.sock")
    ray = cluster.connect()
    cluster.alive(3)
    with forward(world) as f:
        states = [one.state for one in f.status().workers]
        assert sorted(states) == [State.NO_AGENT, State.SERVED, State.SERVED]
        cluster.node("late", '--resources={"late": 1}')
        cluster.alive(4)
        late = world.agents["late"]
        with late.changed:
            assert late.changed.wait_for(lambda: bool(late.accepted), 30)
        found, importable = ray.get(ray.remote(resources={"late": 1})(probe()).remote())
        assert found is not None
        assert not importable
        until(lambda: f.status().served == 3)
        # A node that goes is forgotten.
        cluster.started.pop().terminate()
        until(lambda: len(f.status().workers) == 3)
    assert all(world.agents[name].bundle is None for name in ("head", "two"))


def test_a_task_waits_for_the_identity_of_a_node_that_has_just_come(world: World, cluster: Cluster) -> None:
    """With the hook a newcomer's first task finds it there, however early the task was; what brings it does not wait."""
    ray = cluster.connect(runtime_env={"worker_process_setup_hook": ray_hook()})
    with forward(world) as f:
        assert f.status().served == 1
        waiting = ray.remote(resources={"late": 1})(probe()).remote()
        cluster.node("late", '--resources={"late": 1}')
        found, importable = ray.get(waiting, timeout=SECONDS)
        assert found is not None
        assert not importable


def test_a_node_that_hangs_holds_up_nobody(world: World, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a node's first process may take: while it is waited for another one is renewed, and it has its turn."""
    for patience in ("START_SECONDS", "AGAIN_SECONDS"):
        monkeypatch.setattr(on_ray, patience, 3600.0)
    monkeypatch.setattr(session, "GLANCE_SECONDS", 0.1)
    cluster.node("stuck")
    cluster.connect()
    cluster.alive(2)
    head, stuck = world.agents["head"], world.agents["stuck"]
    with forward(world) as f:
        assert f.status().served == 2
        group = os.getpgid(cluster.started[-1].pid)
        os.killpg(group, signal.SIGSTOP)
        try:
            for _ in range(2):  # the second is there only when nobody waits for the first any more
                before = len(head.accepted)
                world.sign_on()
                until(lambda: len(head.accepted) > before)  # noqa: B023 - called at once
            assert len(stuck.accepted) == 1
        finally:
            os.killpg(group, signal.SIGCONT)
        with stuck.changed:
            assert stuck.changed.wait_for(lambda: len(stuck.accepted) >= 2, SECONDS)


def test_a_laptop_outside_of_the_cluster(world: World, cluster: Cluster) -> None:
    """By ``ray://``, as people reach clusters in a cloud: present and future nodes are served, and lose it at the end."""
    ray = cluster.connect_from_outside()
    with forward(world) as f:
        assert f.status().served == 1
        cluster.node("late", '--resources={"late": 1}')
        late = world.agents["late"]
        with late.changed:
            assert late.changed.wait_for(lambda: bool(late.accepted), SECONDS)
        found, importable = ray.get(ray.remote(resources={"late": 1})(probe()).remote(), timeout=SECONDS)
        assert found is not None
        assert not importable
        until(lambda: f.status().served == 2)
        ray.shutdown()
        until(lambda: "no longer connected" in str(f.status().trouble))
        ray = cluster.connect_from_outside()
        with forward(world) as again:
            assert again.status().served == 2
    assert {machine.bundle for machine in world.agents.values()} == {None}


def test_a_cluster_that_was_connected_anew_gets_nothing(world: World, cluster: Cluster) -> None:
    """Another connection is another cluster, as far as we know: the status says so, and nobody starts one of his own."""
    cluster.connect()
    f = forward(world)
    try:
        assert f.status().served == 1
        cluster.ray.shutdown()
        until(lambda: "no longer connected" in str(f.status().trouble))
        assert not cluster.ray.is_initialized()
        cluster.connect()
        with pytest.raises(Exception, match="no longer connected"):
            f.refresh()
    finally:
        f.close()
    cluster.ray.shutdown()
    with pytest.raises(UsageError, match="connected to"):
        forward(world)
