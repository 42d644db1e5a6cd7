"""Controllers, masters and servers end again and again under clients: nobody is refused, nobody is served wrongly."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.system.harness import Agent, World, until
from tests.system.serve_unit import KEY, Clients, ServeUnit, served_first


def begun(unit: ServeUnit, world: World) -> Agent:
    agent = unit.agent(world)
    agent.ready()
    return agent


@pytest.mark.slow
def test_restarts_of_the_controller_under_many_clients(tmp_path: Path) -> None:
    """Killed or stopped, twenty times: not one request of 32 clients is refused, cut off, or answered otherwise."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        agent = unit.agent(world)
        served_first(agent, world)
        with Clients(unit, 32) as clients:
            for number in range(20):
                before = unit.server()
                with agent:
                    if number % 2:
                        assert agent.stop() == 0
                    else:
                        agent.kill()
                clients.more(8)
                agent = begun(unit, world)
                until(lambda before=before: before not in unit.servers, what="the end of the one before")  # type: ignore[misc]
                clients.more(8)
        assert not clients.wrong
        with agent:
            assert agent.push(world.withdrawal())["outcome"] == "accepted"
            assert agent.role() is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random(seed: int, tmp_path: Path) -> None:
    """Whichever ends, in whatever order: whoever asks again has the credential; in the end a withdrawal is everywhere."""
    chance = random.Random(seed)
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        agent: Agent | None = unit.agent(world)
        assert agent is not None
        served_first(agent, world)
        until(lambda: any(KEY.encode() in one for one in unit.stored), what="the snapshot in the store")
        with Clients(unit, 8, patience=20) as clients:
            for _ in range(int(os.environ.get("CREDENTIAL_AGENT_KILLS", "25"))):
                match chance.choice(("server", "servers", "controller", "begin", "master", "nothing")):
                    case "server" | "servers" as which:
                        for pid in unit.servers[: None if which == "servers" else 1]:
                            os.kill(pid, signal.SIGKILL)
                    case "controller" if agent is not None:
                        with agent:
                            agent.kill()
                        agent = None
                    case "begin" if agent is None:
                        agent = begun(unit, world) if chance.random() < 0.5 else unit.agent(world)
                    case "master":
                        unit.kill()
                        unit.start(stored=True)
                    case _:
                        pass
                if chance.random() < 0.5:
                    clients.more(4)
        assert not clients.wrong
        with begun(unit, world) if agent is None else agent as agent:
            agent.ready()
            assert agent.push(world.withdrawal())["outcome"] == "accepted"
            assert agent.role() is None
            assert not any(KEY.encode() in one for one in unit.stored)
