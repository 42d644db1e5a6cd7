"""A Dask scheduler that goes away: killed and started anew at its address, or silent since the network drops all."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.forward import session
from tests.system.harness import until
from tests.unit.forward import test_dask
from tests.unit.forward.support import World
from tests.unit.forward.test_dask import PROBE, Cluster, forward

pytest.importorskip("distributed")

cluster = test_dask.cluster


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(session, "GLANCE_SECONDS", 0.1)
    monkeypatch.setattr(session, "PRESENT_SECONDS", 0.1)
    with World(tmp_path, monkeypatch) as made:
        yield made


@pytest.mark.slow
def test_a_scheduler_that_was_started_anew_is_told_of_newcomers_again(world: World, cluster: Cluster) -> None:
    """It knows nothing of us; a worker of the new one has the identity before its first task all the same."""
    cluster.worker("one")
    with cluster.connect() as client:
        client.wait_for_workers(1, timeout=60)
        port = client.scheduler.address.rpartition(":")[2]
        with forward(world, client) as f:
            assert f.status().served == 1
            cluster.started[0].kill()
            cluster.started[0].wait()
            until(lambda: f.status().trouble is not None or f.status().served == 0, seconds=60)
            cluster.run(
                "distributed.cli.dask_scheduler",
                *("--port", port, "--no-dashboard", "--no-jupyter", "--scheduler-file", cluster.file),
            )
            until(lambda: f.status().trouble is None, seconds=60)
            waiting = client.submit(eval, PROBE, resources={"late": 1}, pure=False)
            cluster.worker("late", "--no-nanny", "--resources", "late=1")
            assert waiting.result(timeout=60) is not None
            until(lambda: f.status().served >= 1, seconds=60)
        assert world.agents["late"].bundle is None


@pytest.mark.slow
def test_a_scheduler_that_is_silent_changes_nothing_that_is_served(world: World, cluster: Cluster) -> None:
    """No answer and no end of the connection: the status says so, what is served stays, and it goes on when it is back."""
    cluster.worker("one")
    with cluster.connect() as client:
        client.wait_for_workers(1, timeout=60)
        with forward(world, client) as f:
            assert f.status().served == 1
            cluster.started[0].send_signal(signal.SIGSTOP)
            until(lambda: "no answer in time" in str(f.status().trouble), seconds=60)
            machine = world.agents["one"]
            assert machine.bundle is not None
            assert len(machine.accepted) == 1
            world.sign_on()
            cluster.started[0].send_signal(signal.SIGCONT)
            with machine.changed:
                assert machine.changed.wait_for(lambda: len(machine.accepted) == 2, 60)
            until(lambda: f.status().trouble is None and f.status().served == 1, seconds=60)
        assert machine.bundle is None
