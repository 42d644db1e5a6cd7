"""Somebody takes away the names of the agent's sockets while it runs: they are made again, or it is told."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.system.harness import Agent, World, until

USER: Final = "ASIAUSER000000000000"
HASTY: Final = (
    "import agent.daemon.late, agent.daemon.couriers\n"
    "agent.daemon.late.LOOK_SECONDS = agent.daemon.couriers.LOOK_SECONDS = 0.2\n"
    "agent.daemon.late.ASK_AGAIN_SECONDS = agent.daemon.couriers.AGAIN_SECONDS = 0.2\n"
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


def answers(path: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        try:
            client.connect(str(path))
        except OSError:
            return False
        client.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        return client.recv(15).startswith(b"HTTP/1.1 ")


def with_courier(world: World) -> dict[str, Any]:
    return {"listen": {"courier": str(world.root / "run" / "courier")}}


def test_what_was_made_by_us_is_made_again(world: World) -> None:
    """Removed, or with another file in its place for a while: once there is room the socket answers by its name again."""
    courier = world.root / "run" / "courier"
    with world.agent(with_courier(world), prelude=HASTY) as agent:
        agent.ready()
        for path in (agent.control, courier):
            assert answers(path)
            for _ in range(2):
                mark = agent.mark
                path.unlink()
                agent.wait_for("socket.made", after=mark)
                assert answers(path)
            mark = agent.mark
            path.unlink()
            path.write_text("another's")
            agent.wait_for("start.without", after=mark)
            assert path.read_text() == "another's"
            path.unlink()
            until(lambda path=path: answers(path), what="the socket")  # type: ignore[misc]
        until(lambda: agent.status()["without"] == {}, what="the end of the alarms")
        assert agent.push(world.seal(world.session(USER)))["outcome"] == "accepted"
        assert agent.stop() == 0
    assert not agent.control.exists()
    assert not courier.exists()


def test_what_programs_are_told_by_is_written_again(world: World) -> None:
    """A directory that somebody has emptied has everything again by which programs, and the next process, find us."""
    run = world.root / "run"
    with world.agent(with_courier(world), prelude=HASTY) as agent:
        agent.ready()
        assert agent.push(world.seal(world.session(USER), world.variables(WHO=USER)))["outcome"] == "accepted"
        until((run / "grace.json").exists, what="the note")
        found = {path.name for path in run.iterdir()}
        assert {"control", "courier", "env", "env.sh", "token", "listeners.json"} <= found
        for path in run.iterdir():
            path.unlink()
        until(lambda: {path.name for path in run.iterdir()} == found, what="all of it")
        assert world.env()["WHO"] == USER
        assert agent.stop() == 0


def test_what_was_remembered_is_written_again(world: World) -> None:
    """A state directory that somebody has emptied has the memory and the bundle again, so that a boot serves the same."""
    with world.agent(prelude=HASTY) as agent:
        agent.ready()
        assert agent.push(world.seal(world.session(USER)))["durable"]
        for names in ("*", "memory.*", "bundle-*"):
            mark = agent.mark
            before = {path.name for path in world.state.glob(names) if path.name.startswith(("memory.json", "bundle-"))}
            for path in world.state.glob(names):
                path.unlink()
            agent.wait_for("memory.lost", after=mark)
            until(lambda before=before: before <= {path.name for path in world.state.iterdir()}, what="them")  # type: ignore[misc]
        assert agent.push(world.seal(world.session(USER), seq=1))["outcome"] in {"same", "refused"}
        agent.kill()
    with world.agent(environ={"CREDENTIAL_AGENT_BOOT_ID": "b" * 32}) as agent:
        agent.ready()
        assert agent.access_key() == USER
        assert agent.stop() == 0


def test_what_has_become_anothers_is_left_alone(world: World) -> None:
    """Another agent that has taken the name is the one that is found: we say so, and do not remove its socket."""
    with world.agent(prelude=HASTY) as agent:
        agent.ready()
        agent.control.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(agent.control))
            other.listen()
            agent.wait_for("start.without", key="listen.control")
            assert agent.stop() == 0
            assert agent.control.exists()


@contextmanager
def passed_one(world: World) -> Iterator[tuple[Agent, Path, Path]]:
    """An agent whose control socket the service manager has made; its name, and one for it to be put aside."""
    path = world.root / "run" / "given"
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))
        given.listen()
        with world.agent(passed=[("control", given.fileno())], prelude=HASTY) as agent:
            agent.started()
            yield agent, path, path.with_name("aside")


def test_one_of_the_service_manager_s_is_told_with_the_command(world: World) -> None:
    """We may make none in its place, and it would not be systemd's: the alarm names what to type, and ends with the cause."""
    with passed_one(world) as (agent, path, aside):
        path.rename(aside)
        said = agent.wait_for("start.without", key="listen.control")
        assert "systemctl restart credential-agent-control.socket" in said["hint"]
        aside.rename(path)
        until(lambda: not told(path), what="the end of the alarm")
        assert agent.stop() == 0
        assert path.exists()


def test_an_alarm_ends_with_its_cause_after_a_reload_too(world: World) -> None:
    """A reload takes note anew of what the machine lacks: what was told since ends there, and not where it was told before."""
    with passed_one(world) as (agent, path, aside):
        agent.signal(signal.SIGHUP)
        agent.wait_for("reload.applied")
        path.rename(aside)
        agent.wait_for("start.without", key="listen.control")
        aside.rename(path)
        until(lambda: not told(path), what="the end of the alarm")
        assert agent.stop() == 0


def told(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        client.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    return b'"listen.control"' in answer
