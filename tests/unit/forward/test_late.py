"""Workers that hang: neither another's renewal nor a newcomer's first task waits for them, and they are not forgotten."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from agent.core.model import Action
from agent.enrol import Enrolment, Machine, Policy
from agent.forward import State, session
from agent.forward.agents import Verify
from agent.forward.courier import PROMPT_SECONDS, Job, LateError
from agent.forward.late import AT_ONCE, Stragglers
from tests.system.harness import until
from tests.unit.forward.support import Processes, World, verifier


@dataclass
class Hanging(Processes):
    """A courier to some workers that hang: who asks them promptly is told so; who is patient waits until they go on.

    Attributes:
        hanging: their names.
        kept: what was sent to them and not answered; they do it when they go on.
    """

    hanging: set[str] = field(default_factory=set)
    kept: list[tuple[Job, str]] = field(default_factory=list)
    moved: threading.Condition = field(default_factory=threading.Condition)

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        with self.moved:
            late = [one for one in workers if one in self.hanging]
            self.kept += [(job, one) for one in late]
            if late and job.seconds > PROMPT_SECONDS:
                self.moved.wait_for(lambda: not self.hanging & set(late))
                late = []
        said = super().call(job, [one for one in workers if one not in late])
        return {**said, **dict.fromkeys(late, LateError("no answer in time"))}

    def go_on(self) -> None:
        """They do what they were asked meanwhile, in any order, and answer from now on."""
        with self.moved:
            for job, one in reversed(self.kept):
                super().call(job, [one])
            self.kept.clear()
            self.hanging.clear()
            self.moved.notify_all()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(session, "GLANCE_SECONDS", 0.02)
    monkeypatch.setattr(session, "PRESENT_SECONDS", 0.02)
    with World(tmp_path, monkeypatch) as made:
        made.courier = Hanging({})
        yield made


def courier_of(world: World) -> Hanging:
    assert isinstance(world.courier, Hanging)
    return world.courier


def test_nobody_waits_for_workers_that_hang(world: World) -> None:
    """Five of a hundred hang: the others are renewed and a newcomer is served meanwhile; then the five are renewed too."""
    machines = [world.machine(f"m{index:02}") for index in range(100)]
    hanging = machines[::20]
    with world.forward(lease=timedelta(hours=2)) as f:
        assert f.status().served == 100
        courier = courier_of(world)
        courier.hanging |= {f"m{index:02}-0" for index in range(0, 100, 20)}
        world.sign_on()
        until(lambda: all(len(one.accepted) == 2 for one in machines if one not in hanging))
        late = world.machine("late")
        assert courier.joined is not None
        courier.joined(["late-0"])
        with late.changed:
            assert late.changed.wait_for(lambda: bool(late.accepted), 30)
        assert {len(one.accepted) for one in hanging} == {1}
        courier.go_on()
        until(lambda: f.status().served == 101)
        assert min(len(one.accepted) for one in hanging) >= 2


def test_who_hangs_at_the_end_has_nothing_afterwards(world: World) -> None:
    """What a worker was sent while it hung is taken back with the rest, in whatever order it hears of it."""
    machine = world.machine("m")
    courier = courier_of(world)
    with world.forward() as f:
        world.sign_on()
        courier.hanging.add("m-0")
        until(lambda: f.status().workers[0].state is State.UNREACHABLE)
        assert len(machine.accepted) == 1
    courier.go_on()
    assert machine.bundle is None
    assert machine.accepted[-1].action is Action.WITHDRAW


def test_a_newcomer_that_hangs_is_waited_for(world: World) -> None:
    """Who joins and does not answer at once is served as soon as it does."""
    with world.forward() as f:
        courier = courier_of(world)
        machine = world.machine("m")
        courier.hanging.add("m-0")
        until(lambda: [one.state for one in f.status().workers] == [State.WAITING])
        assert f.status().not_served()[0].reason == "it has not answered yet"
        courier.go_on()
        with machine.changed:
            assert machine.changed.wait_for(lambda: machine.bundle is not None, 30)
        until(lambda: f.status().served == 1)


def test_who_was_admitted_to_another_identity_is_asked_anew(world: World) -> None:
    """Somebody signs on to another account while a late machine is vouched for: that account's identity it does not get."""
    asked, go_on = threading.Event(), threading.Event()

    def slow(policy: Policy, now: Callable[[], datetime]) -> Verify:
        verify = verifier(policy, now)

        def waiting(enrolment: Enrolment) -> Machine:
            machine = verify(enrolment)
            if not asked.is_set():
                asked.set()
                go_on.wait()
            return machine

        return waiting

    with world.forward(verify=slow) as f:
        courier = courier_of(world)
        courier.hanging.add("m-0")
        machine = world.machine("m")
        until(lambda: len(f.status().workers) == 1)
        courier.go_on()
        try:
            assert asked.wait(30)
            world.sign_on(account="999999999999")
            until(lambda: f.status().renewals == 1)
        finally:
            go_on.set()
        assert f.refresh().workers[0].state is State.EVIDENCE
        assert machine.accepted == []


@dataclass
class Starting(Processes):
    """The agents are about to start: who is in a hurry is told to ask again.

    Attributes:
        told: what workers were told in the end, in order.
    """

    told: list[str] = field(default_factory=list)

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        self.told.append(job.after)
        if job.seconds <= PROMPT_SECONDS and job.steps and job.steps[0][1] == "/v1/enrol":
            answers = [(503, '{"error": "the agent is starting"}')]
            return dict.fromkeys(workers, json.dumps({"host": "w", "agent": "a", "answers": answers}))
        return super().call(job, workers)


def test_a_newcomer_whose_agent_is_about_to_start_keeps_waiting(world: World) -> None:
    """A machine that has just booted may have its agent a few seconds later: its worker is not let go without it."""
    courier = world.courier = Starting({})
    with world.forward() as f:
        machine = world.machine("m")
        assert courier.joined is not None
        courier.joined(["m-0"])
        with machine.changed:
            assert machine.changed.wait_for(lambda: machine.bundle is not None, 30)
        until(lambda: f.status().served == 1)
        assert "refused" not in courier.told[: courier.told.index("served")]


def test_as_many_as_are_waited_for_keep_nobody_out() -> None:
    """However many never answer, one that is late among them has its turn: none is asked twice before."""
    asked: list[str] = []
    go_on = threading.Semaphore(0)

    def serve(name: str) -> None:
        asked.append(name)
        go_on.acquire()

    some = Stragglers(serve, lambda: None)
    late = {f"w{index:02}" for index in range(AT_ONCE + 8)}
    some.attend(late)
    go_on.release(AT_ONCE)
    some.wait()
    some.attend(late)
    go_on.release(AT_ONCE)
    some.wait()
    assert set(asked) == late


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), MemoryError()], ids=["no number", "no memory"]
)
def test_a_computer_without_a_further_thread_forgets_nobody(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Where no thread can begin nothing ends, and who is late has its turn when one can."""
    asked: list[str] = []

    def refused(_: threading.Thread) -> None:
        raise error

    some = Stragglers(asked.append, lambda: None)
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refused)
        some.attend({"a"})
    some.attend({"a"})
    some.wait()
    assert asked == ["a"]


def test_who_waits_for_the_late_does_not_wait_for_ever() -> None:
    """Each of two that never answer is asked again while the other is: who waited for both goes on all the same."""
    begun = {name: threading.Semaphore(0) for name in "ab"}
    go_on = {name: threading.Semaphore(0) for name in "ab"}

    def serve(name: str) -> None:
        begun[name].release()
        go_on[name].acquire()

    some = Stragglers(serve, lambda: None)

    def asked_again(name: str) -> bool:
        some.attend(begun)
        return begun[name].acquire(blocking=False)

    def turn_of_each() -> bool:
        for name, gone_on in go_on.items():
            gone_on.release()
            until(functools.partial(asked_again, name))
        return not waiting.is_alive()

    some.attend(begun)
    for one in begun.values():
        one.acquire()
    waiting = threading.Thread(target=some.wait)
    waiting.start()
    try:
        until(turn_of_each)
    finally:
        for one in go_on.values():
            one.release()
        waiting.join()
