"""How a forwarding ends: by Ctrl-C at any moment, by an error in the block; and that it is over then."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.core.errors import UsageError
from agent.core.model import Action
from agent.forward import Job, LateError, State
from tests.system.harness import until
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


@dataclass
class Silent(Processes):
    """Nothing is heard of some workers.

    Attributes:
        silent: their names.
        at_the_end: even at the end.
    """

    silent: set[str] = field(default_factory=set)
    at_the_end: bool = False

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        silent = self.silent if self.at_the_end or job.after != "withdrawn" else set()
        said = super().call(job, [one for one in workers if one not in silent])
        return {**said, **{one: LateError("no answer in time") for one in workers if one in silent}}


@pytest.mark.parametrize("at_the_end", [False, True])
def test_who_was_not_heard_of_for_long_is_told_of_the_end(
    world: World, capsys: pytest.CaptureFixture[str], *, at_the_end: bool
) -> None:
    """Of whom nothing was heard for long has it all the same: it is taken back there too, or it is said that it was not."""
    world.courier = courier = Silent({}, at_the_end=at_the_end)
    machine = world.machine("m")
    with world.forward(progress=True) as f:
        courier.silent.add("m-0")
        until(lambda: f.refresh().workers[0].state is State.UNREACHABLE)
    said = capsys.readouterr().err
    assert (machine.bundle is not None) is at_the_end
    assert (", which may have it until" in said) is at_the_end
    assert f"withdrawn from {0 if at_the_end else 1} machine" in said


def test_who_has_left_is_not_asked_at_the_end(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A cluster that has shrunk is not asked for its former machines, nor is anybody alarmed about them."""
    world.machine("stays")
    world.machine("leaves")
    with world.forward(progress=True) as f:
        del world.courier.sockets["leaves-0"]
        assert len(f.refresh().workers) == 1
    assert "withdrawn from 1 machine:" in (said := capsys.readouterr().err)
    assert "but not from" not in said


@dataclass
class Slow(Processes):
    """What is carried for one purpose takes long.

    Attributes:
        what: the purpose.
        begun: it is under way.
        go_on: it may end.
    """

    what: str = ""
    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        if job.after == self.what:
            self.begun.set()
            self.go_on.wait()
        return super().call(job, workers)


@pytest.mark.parametrize("moment", ["served", "withdrawn"])
def test_a_coroutine_that_is_cancelled_leaves_nothing_behind(world: World, moment: str) -> None:
    """Ctrl-C or a timeout while ``async with`` begins or ends: the coroutine ends when the identity is taken back."""
    world.courier = courier = Slow({}, what=moment)
    machine = world.machine("m")

    async def block() -> None:
        async with world.forward(lazy=lambda _: True):
            pass

    async def main() -> None:
        task = asyncio.create_task(block())
        assert await asyncio.to_thread(courier.begun.wait, 30)
        task.cancel()
        asyncio.get_running_loop().call_later(0.1, courier.go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [one.action for one in machine.accepted] == [Action.SET, Action.WITHDRAW]

    asyncio.run(main())


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


@dataclass
class Watching(Processes):
    """Counts how often its watch for newcomers was ended.

    Attributes:
        ended: so often.
        fails: the cluster is gone when it is.
    """

    ended: int = 0
    fails: bool = False

    def watch(self, joined: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        super().watch(joined)

        def end() -> None:
            self.ended += 1
            if self.fails:
                raise OSError("the cluster is gone")

        return end


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_is_the_end_of_the_watch_for_newcomers(world: World, *, fails: bool) -> None:
    """Once, and a cluster that cannot be told so costs nothing: what was given is taken back all the same."""
    world.courier = courier = Watching({}, fails=fails)
    machine = world.machine("m")
    with world.forward() as f:
        assert courier.ended == 0
    f.close()
    assert courier.ended == 1
    assert machine.bundle is None


def test_what_has_ended_is_held_by_nobody(world: World) -> None:
    """A program that forwards again and again does not grow by each: neither its end nor a thread holds on to one."""
    world.machine("m")
    with world.forward() as f:
        held = weakref.ref(f)
    del f
    world.courier.joined = None  # the test's own courier goes on to hold whom it told of newcomers
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("on_exit", ["withdraw", "keep"])
def test_after_the_end_it_says_how_things_stand(world: World, capsys: pytest.CaptureFixture[str], on_exit: str) -> None:
    """Whom it serves still, and of one that never began that there is nobody."""
    world.machine("m")
    with world.forward(on_exit=on_exit) as f:
        pass
    assert f.status().served == (1 if on_exit == "keep" else 0)
    never = world.forward(on_exit=on_exit, lazy=lambda _: True, progress=True)
    never.close()
    assert never.status().served == 0
    said = capsys.readouterr().err
    assert ("left: 0 workers are served" if on_exit == "keep" else "nobody was served") in said


def test_an_end_that_reaches_nobody_is_said(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """No network at the end: the program goes on, and hears that what was given was not taken back, and why."""
    world.machine("m")
    with world.forward(progress=True) as f:
        world.courier.broken = True
    assert "no network" in str(f.status().trouble)
    assert "withdrawn from" not in capsys.readouterr().err


PROGRAM = """
import os, sys
from agent import forward

class Here:
    name, private, named = "here", True, True
    def workers(self):
        return ["w"]
    def call(self, job, workers):
        return {one: eval(job.expression) for one in workers}
    def watch(self, joined):
        return lambda: None

f = forward.to(Here(), gcp=None, signer=sys.argv[1], on_exit=sys.argv[2], progress=True)
assert f.status().served == 1
if os.fork() == 0:
    sys.exit()
os.wait()
print(eval(forward.Job(steps=(("GET", "/v1/status", None),)).expression))
if sys.argv[3] == "fails":
    1 / 0
"""


@pytest.mark.parametrize(("on_exit", "ending"), [("withdraw", "ends"), ("withdraw", "fails"), ("keep", "ends")])
def test_a_program_that_ends_without_closing_it(world: World, on_exit: str, ending: str) -> None:
    """Neither ``with`` nor ``close()``: its end, not that of a process it forked, takes back what it gave."""
    machine = world.machine("m")
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, world.signer, on_exit, ending],
        env={**os.environ, "CREDENTIAL_AGENT_COURIER": str(world.courier.sockets["m-0"])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == (ending == "fails"), ran.stderr
    assert '\\"seq\\"' in ran.stdout, ran.stderr  # after the child's end it was there
    kept = on_exit == "keep"
    assert [one.action for one in machine.accepted] == ([Action.SET] if kept else [Action.SET, Action.WITHDRAW])
    assert ("left: 1 workers are served" if kept else "withdrawn from 1 machine:") in ran.stderr
