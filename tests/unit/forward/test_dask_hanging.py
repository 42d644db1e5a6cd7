"""A real Dask cluster of which some workers hang: stopped in the middle, as by a machine that swaps or a network that drops."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.core.model import Action
from agent.forward import session
from tests.unit.forward import test_dask
from tests.unit.forward.support import World
from tests.unit.forward.test_dask import PROBE, Cluster, forward

pytest.importorskip("distributed")

cluster = test_dask.cluster


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(session, "GLANCE_SECONDS", 0.1)
    with World(tmp_path, monkeypatch) as made:
        yield made


def accepts(world: World, name: str, count: int) -> None:
    machine = world.agents[name]
    with machine.changed:
        assert machine.changed.wait_for(lambda: len(machine.accepted) >= count, 60), name


@pytest.mark.slow
def test_workers_that_hang_hold_up_nobody(world: World, cluster: Cluster) -> None:
    """A renewal reaches the others, a newcomer has the identity before its first task; who hung gets it when it goes on.

    What it was sent while it hung again, at the end, is taken back.
    """
    stuck = cluster.worker("stuck")
    for name in ("one", "two"):
        cluster.worker(name)
    with cluster.connect() as client:
        client.wait_for_workers(3, timeout=60)
        f: Any
        with forward(world, client) as f:
            assert f.status().served == 3
            stuck.send_signal(signal.SIGSTOP)
            world.sign_on()
            for name in ("one", "two"):
                accepts(world, name, 2)
            # The task is there before the worker is.
            waiting = client.submit(eval, PROBE, resources={"late": 1}, pure=False)
            cluster.worker("late", "--no-nanny", "--resources", "late=1")
            assert waiting.result(timeout=60) is not None
            assert len(world.agents["stuck"].accepted) == 1
            stuck.send_signal(signal.SIGCONT)
            accepts(world, "stuck", 2)
            assert f.refresh().served == 4
            stuck.send_signal(signal.SIGSTOP)
            world.sign_on()
            accepts(world, "late", 2)
        assert {world.agents[name].bundle for name in ("one", "two", "late")} == {None}
        stuck.send_signal(signal.SIGCONT)
        machine = world.agents["stuck"]
        with machine.changed:
            assert machine.changed.wait_for(lambda: machine.accepted[-1].action is Action.WITHDRAW, 60)
        client.run(int)  # and by now it has done all that it was asked
        assert machine.bundle is None
