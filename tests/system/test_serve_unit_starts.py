"""A controller that begins slowly, or on a kernel that has no memory files: nobody waits for it who need not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.system.harness import World, until
from tests.system.serve_unit import KEY, Clients, ServeUnit, ask, credential, served_first
from tests.system.test_refusing_kernel import Kernel
from tests.system.test_two_processes import children, is_running

pytestmark = pytest.mark.slow

ROLES = "/latest/meta-data/iam/security-credentials/"


@pytest.mark.parametrize("when", ["it has connected", "it has asked for a server"])
def test_a_controller_that_stands_still_while_it_begins_costs_nobody_anything(when: str, tmp_path: Path) -> None:
    """On a disk that stalls, say: whatever answers ends meanwhile and has a successor; then a withdrawal is everywhere."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world) as agent:
            served_first(agent, world)
            agent.kill()
        with unit.agent(world) as agent, Clients(unit, 4, patience=20) as clients:
            agent.wait_for("server.connected" if when == "it has connected" else "agent.started")
            os.kill(agent.process.pid, signal.SIGSTOP)
            for whom in ("one", "both", "one", "both"):
                for pid in unit.both()[: 1 if whom == "one" else 2]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                clients.more(4)
                assert credential(unit.address) == KEY
            os.kill(agent.process.pid, signal.SIGCONT)
            agent.ready()
            clients.more(4)
        assert not clients.wrong


@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_without_memory_files_all_is_served_while_there_is_a_controller(error: str, tmp_path: Path) -> None:
    """A sandbox may refuse them: servers are told by their links, and one that is begun without a controller has nothing."""
    world, kernel = World(tmp_path), Kernel(tmp_path)
    kernel.refuse(("memfd_create", error, "/"))
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world, environ=kernel.environ) as agent:
            served_first(agent, world)
            for _ in range(2):
                first, _ = unit.both()
                os.kill(first, signal.SIGKILL)
                assert credential(unit.address) == KEY
            for pid in unit.both():
                os.kill(pid, signal.SIGKILL)
            assert credential(unit.address) == KEY
            agent.kill()
            assert credential(unit.address) == KEY
        with unit.agent(world, environ=kernel.environ) as agent:
            agent.ready()
            assert credential(unit.address) == KEY
            assert agent.push(world.withdrawal())["outcome"] == "accepted"
            assert ask(unit.address, "GET", ROLES, {})[0] != 200
            assert agent.stop() == 0


@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_without_memory_files_a_child_is_told_all_the_same(error: str, tmp_path: Path) -> None:
    """The agent in a container's sandbox: whichever process ends, the credential is there, and a withdrawal is final."""
    world, kernel = World(tmp_path), Kernel(tmp_path)
    kernel.refuse(("memfd_create", error, "/"))
    with world.agent(environ=kernel.environ) as agent:
        served_first(agent, world)
        (master,) = children(agent.process.pid)
        for _ in range(2):
            both = until(lambda: found if len(found := children(master)) == 2 else (), what="both")
            for pid in both:
                os.kill(pid, signal.SIGKILL)
            assert agent.credential()["AccessKeyId"] == KEY
        assert agent.push(world.withdrawal())["outcome"] == "accepted"
        assert agent.role() is None
        assert agent.stop() == 0


@pytest.mark.parametrize("moment", ["at once", "its master is begun", "its server is begun"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whoever_ends_a_start_ends_all_of_it(moment: str, number: signal.Signals, tmp_path: Path) -> None:
    """The agent that has its own servers, at any moment of its start: no process of it goes on."""
    world = World(tmp_path)
    with world.agent() as agent:
        pid = agent.process.pid
        seen: set[int] = set()

        def look() -> bool:
            found: list[int] = []
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found = children(pid)
                seen.update(found)
                for one in found:
                    found = children(one)
                    seen.update(found)
            return bool(found if moment == "its server is begun" else seen)

        if moment != "at once":
            until(look, what=moment)
        os.kill(pid, number)
        agent.process.wait(60)
        look()
        until(lambda: not any(map(is_running, seen)), what="their end")
        left = subprocess.run(
            ["pgrep", "-f", f"agent.server [0-9]+ {pid}$"], capture_output=True, text=True, check=False
        )
        until(lambda: not [one for one in left.stdout.split() if is_running(int(one))], what="its master's end")
