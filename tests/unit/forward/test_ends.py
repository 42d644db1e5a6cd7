"""How a forwarding ends: by Ctrl-C at any moment, by an error in the block; and that it is over then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.core.errors import UsageError
from agent.core.model import Action
from agent.forward import Job
from tests.unit.forward.support import Processes, World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with World(tmp_path, monkeypatch) as made:
        yield made


@dataclass
class Interrupted(Processes):
    """Somebody presses Ctrl-C when the identity has just been brought to the workers."""

    pressed: bool = False

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        said = super().call(job, workers)
        if job.after == "served" and not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt
        return said


def test_who_gives_up_while_it_begins_leaves_nothing_behind(world: World) -> None:
    """Ctrl-C before the block has begun takes back what had been given by then, though nobody had heard of it."""
    world.courier = Interrupted({})
    machine = world.machine("m")
    with pytest.raises(KeyboardInterrupt):
        world.forward()
    assert [one.action for one in machine.accepted] == [Action.SET, Action.WITHDRAW]


def test_an_error_in_the_block_takes_it_back_and_goes_on(world: World) -> None:
    """The program's own error is what its caller sees, and the workers have nothing."""
    machine = world.machine("m")
    with pytest.raises(ZeroDivisionError), world.forward():
        raise ZeroDivisionError
    assert machine.bundle is None


def test_what_has_ended_says_so(world: World) -> None:
    """Nobody works on in a block that forwards nothing: entering twice, or after the end, is an error."""
    machine = world.machine("m")
    f = world.forward()
    with f:
        with pytest.raises(UsageError, match="entered already"), f:
            pass
        assert machine.bundle is not None
    f.close()
    for again in (f.refresh, f.__enter__):
        with pytest.raises(UsageError, match="has ended"):
            again()
    assert machine.bundle is None
