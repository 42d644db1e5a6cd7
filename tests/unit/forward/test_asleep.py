"""A laptop that is closed and opened again: what is due then is renewed at once, and a person is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from agent.core.model import Action
from agent.forward import session
from tests.system.harness import until
from tests.unit.forward.support import World

HOUR = timedelta(hours=1)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # A glance is soon; everything else only for a reason.
    monkeypatch.setattr(session, "GLANCE_SECONDS", 0.02)
    with World(tmp_path, monkeypatch) as made:
        made.sign_on(seconds=43200)
        yield made


def test_what_is_due_after_waking_is_renewed_at_once_and_said(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A lease that was due an hour ago is renewed at the first glance; a newcomer and one that forgot are served."""
    one = world.machine("one")
    with world.forward(lease=2 * HOUR, progress=True) as f:
        world.machine("late")
        one.bundle = None  # its memory was lost meanwhile
        world.time_gone += HOUR
        with one.changed:
            assert one.changed.wait_for(lambda: len(one.accepted) == 2 and one.bundle is not None, 30)
        late = world.agents["late"]
        with late.changed:
            assert late.changed.wait_for(lambda: late.bundle is not None, 30)
        until(lambda: f.status().served == 2)
        said = capsys.readouterr().err
        assert "slept for" in said
        assert "2 of 2 workers are served" in said.partition("slept")[2]


def test_a_network_that_comes_back_later_than_the_laptop(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody can be reached at first: that is said, nothing is taken away, and all are looked at once it is there."""
    monkeypatch.setattr(session, "PRESENT_SECONDS", 0.02)
    machines = [world.machine(f"m{index}") for index in range(2)]
    with world.forward(lease=2 * HOUR, progress=True) as f:
        world.courier.broken = True
        world.time_gone += HOUR
        until(lambda: f.status().trouble is not None)
        assert [one.action for machine in machines for one in machine.accepted] == [Action.SET, Action.SET]
        world.courier.broken = False
        until(lambda: all(len(machine.accepted) == 2 for machine in machines))
        until(lambda: f.status().trouble is None and f.status().served == 2)
    said = capsys.readouterr().err
    assert said.index("slept for") < said.index("cannot be reached")


def test_a_session_that_ended_while_the_laptop_slept(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """What ended meanwhile cannot be renewed: the status says so, and what to do; a new sign-on is there at once."""
    machine = world.machine("one")
    with world.forward(progress=True) as f:
        world.time_gone += timedelta(hours=13)
        until(lambda: any(cloud.trouble for cloud in f.status().clouds))
        assert len(machine.accepted) == 1
        world.time_gone = timedelta(0)
        world.sign_on(seconds=43200)
        until(lambda: len(machine.accepted) == 2)
        until(lambda: not any(cloud.trouble for cloud in f.status().clouds))
    assert "cannot be renewed here" in capsys.readouterr().err


def test_a_clock_that_is_set_a_little_is_no_sleep(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds of a clock that is kept right are not told to anybody."""
    world.machine("one")
    with world.forward(progress=True) as f:
        for step in (timedelta(seconds=20), timedelta(seconds=-20)):
            world.time_gone += step
            f.refresh()
    assert "slept" not in capsys.readouterr().err
