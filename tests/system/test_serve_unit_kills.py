"""Controllers, masters and servers end again and again under clients: nobody is refused, nobody is served wrongly."""

from __future__ import annotations

import http.client
import os
import random
import signal
import threading
from pathlib import Path
from typing import Self

import pytest

from tests.system.harness import Agent, World, until
from tests.system.serve_unit import ServeUnit, credential

KEY = "ASIAUSER000000000001"


class Clients:
    """Programs that ask for the credential all the while, each request on a connection of its own.

    Args:
        unit: is asked.
        count: how many.
        patience: how often one asks again after its connection was cut: by the end of the server that had it.

    Attributes:
        answered: how many credentials came.
        wrong: whatever else.
    """

    def __init__(self, unit: ServeUnit, count: int, *, patience: int = 0) -> None:
        self.answered = 0
        self.wrong: list[object] = []
        self._unit = unit
        self._patience = patience
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def _ask(self) -> None:
        cut = 0
        while not self._stop.is_set():
            try:
                found = credential(self._unit.address)
            except (OSError, http.client.HTTPException) as error:
                cut += 1
                if cut > self._patience:
                    self.wrong.append(error)
                    return
                continue
            except AssertionError as error:
                self.wrong.append(error)
                return
            cut = 0
            self.answered += 1
            if found != KEY:
                self.wrong.append(found)

    def more(self, count: int) -> None:
        """Wait for so many more answers."""
        least = self.answered + count
        until(lambda: self.answered >= least or self.wrong, what="answers")

    def __enter__(self) -> Self:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for one in self._threads:
            one.join()


def begun(unit: ServeUnit, world: World) -> Agent:
    agent = unit.agent(world)
    agent.ready()
    return agent


@pytest.mark.slow
def test_restarts_of_the_controller_under_many_clients(tmp_path: Path) -> None:
    """Killed or stopped, twenty times: not one request of 32 clients is refused, cut off, or answered otherwise."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        agent = begun(unit, world)
        world.drop(world.seal(world.session(KEY)))
        agent.wait_for("bundle.accepted", seq=1)
        with Clients(unit, 32) as clients:
            for number in range(20):
                (before,) = unit.servers
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
        agent: Agent | None = begun(unit, world)
        assert agent is not None
        world.drop(world.seal(world.session(KEY)))
        agent.wait_for("bundle.accepted", seq=1)
        until(lambda: any(KEY.encode() in one for one in unit.stored), what="the snapshot in the store")
        with Clients(unit, 8, patience=20) as clients:
            for _ in range(int(os.environ.get("CREDENTIAL_AGENT_KILLS", "25"))):
                match chance.choice(("server", "controller", "begin", "master", "nothing")):
                    case "server":
                        for pid in unit.servers:
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
