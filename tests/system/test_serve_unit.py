"""The server as a unit of its own: neither its controller's end nor its own costs a worker anything."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from tests.system.harness import World, until
from tests.system.serve_unit import ServeUnit, credential

KEY = "ASIAUSER000000000001"


def serving(unit: ServeUnit, agent_pid: int) -> None:
    """Wait until one server is there."""
    until(lambda: len(unit.servers) == 1, what=f"one server beside {agent_pid}")


def test_it_answers_on_the_units_sockets(tmp_path: Path) -> None:
    """The agent has no socket of the workers': it is told where they ask, and says so."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit, unit.agent(world) as agent:
        agent.ready()
        assert agent.address == unit.address
        world.drop(world.seal(world.session(KEY)))
        agent.wait_for("bundle.accepted", seq=1)
        assert credential(unit.address) == agent.credential()["AccessKeyId"] == KEY
        (told,) = agent.status()["servers"]
        assert told["pid"] == unit.server()
        assert f":{unit.address[1]}" in world.env()["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
        assert agent.stop() == 0
        assert credential(unit.address) == KEY
        assert unit.stop() == 0


def test_a_killed_controller_costs_nobody_anything(tmp_path: Path) -> None:
    """What it told last is served while it is gone; the next one's server takes over, and then there is one again."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world) as agent:
            agent.ready()
            world.drop(world.seal(world.session(KEY)))
            agent.wait_for("bundle.accepted", seq=1)
            first = unit.server()
            agent.kill()
            assert credential(unit.address) == KEY
            assert unit.servers == [first]
        with unit.agent(world) as agent:
            agent.ready()
            assert credential(unit.address) == KEY
            assert unit.server(other_than=first) != first
            assert agent.push(world.withdrawal())["outcome"] == "accepted"
            assert agent.role() is None


def test_no_request_is_refused_over_restarts_of_the_controller(tmp_path: Path) -> None:
    """Clients that ask all the while get the one credential, whatever the controllers do."""
    world = World(tmp_path)
    wrong: list[object] = []
    answered: list[str] = []
    stop = threading.Event()

    with ServeUnit(tmp_path) as unit:
        with unit.agent(world) as agent:
            agent.ready()
            world.drop(world.seal(world.session(KEY)))
            agent.wait_for("bundle.accepted", seq=1)
            agent.kill()

        def asking() -> None:
            while not stop.is_set():
                try:
                    found = credential(unit.address)
                except (OSError, AssertionError) as error:
                    wrong.append(error)
                    return
                answered.append(found)
                if found != KEY:
                    wrong.append(found)

        askers = [threading.Thread(target=asking) for _ in range(8)]
        for one in askers:
            one.start()
        for number in range(4):
            before = unit.servers
            with unit.agent(world) as agent:
                agent.ready()
                until(lambda before=before: before[0] not in unit.servers, what="a new server alone")  # type: ignore[misc]
                count = len(answered)
                until(lambda count=count: len(answered) > count + 8 or wrong, what="answers")  # type: ignore[misc]
                if number % 2:
                    assert agent.stop() == 0
                else:
                    agent.kill()
        stop.set()
        for one in askers:
            one.join()
    assert not wrong


def test_a_server_that_dies_without_a_controller_has_a_successor(tmp_path: Path) -> None:
    """It begins with the newest snapshot, which the master has and does not read."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world) as agent:
            agent.ready()
            world.drop(world.seal(world.session(KEY)))
            agent.wait_for("bundle.accepted", seq=1)
            agent.kill()
        before = unit.server()
        for _ in range(3):
            os.kill(before, signal.SIGKILL)
            assert credential(unit.address) == KEY
            before = unit.server(other_than=before)
