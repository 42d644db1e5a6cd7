"""What is known of machines: other keys, other workers' words, machines that come and go, two that are served at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from agent.enrol import Policy
from agent.forward import Job, LateError, State, enrolling
from agent.forward.agents import Admission
from agent.forward.engine import Engine
from agent.forward.enrolling import Roster
from agent.forward.local import Local, Options
from tests.fakes.crowded import crowded
from tests.unit.forward.agents import CourierAgent
from tests.unit.forward.support import ACCOUNT, ISSUER, Processes, World, verifier


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with World(tmp_path, monkeypatch) as made:
        yield made


def another_key(machine: CourierAgent) -> None:
    """As a reload does: the bundle that it had is served on."""
    machine.key = type(machine.key).generate()


def no_evidence(machine: CourierAgent) -> None:
    another_key(machine)
    machine.evidence = lambda *_: []


@pytest.mark.parametrize("change", [another_key, no_evidence])
@pytest.mark.parametrize("noticed", [False, True])
def test_a_machine_whose_key_was_changed_has_nothing_after_the_end(
    world: World, capsys: pytest.CaptureFixture[str], change: Callable[[CourierAgent], None], *, noticed: bool
) -> None:
    """A reload names another key, seen by us or not, proved or not: what the machine has is taken back all the same."""
    machine, other = world.machine("m"), world.machine("other")
    with world.forward(progress=True) as f:
        change(machine)
        if noticed:
            f.refresh()
            proved = change is another_key
            state = next(one.state for one in f.status().workers if one.name == "m-0")
            assert state is (State.SERVED if proved else State.EVIDENCE)
            assert len(machine.accepted) == (2 if proved else 1)
        assert machine.bundle is not None
    assert [one.bundle for one in (machine, other)] == [None, None]
    assert "withdrawn from 2 machines:" in capsys.readouterr().err


@dataclass
class Deaf(Processes):
    """Some workers do not answer.

    Attributes:
        deaf: their names.
        gone: the names of those that cannot be reached.
    """

    deaf: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        said = super().call(job, [one for one in workers if one not in self.deaf | self.gone])
        late = {one: LateError("no answer in time") for one in workers if one in self.deaf}
        return {**said, **late, **{one: OSError("no route") for one in workers if one in self.gone}}


def test_a_machine_is_reached_by_whichever_worker_is_left(world: World) -> None:
    """Of two workers one is silent for long, then the other leaves: at the end the silent one is asked."""
    world.courier = courier = Deaf({})
    machine = world.machine("m", workers=2)
    with world.forward() as f:
        courier.deaf.add("m-0")
        f.refresh()
        f.refresh()
        del courier.sockets["m-1"]
        f.refresh()
        courier.deaf.clear()
    assert machine.bundle is None


def test_a_worker_that_hangs_at_the_end_is_not_the_only_one(world: World) -> None:
    """The worker that is asked at the end hangs, and another one of its machine does not: that one is asked then."""
    world.courier = courier = Deaf({})
    machine = world.machine("m", workers=2)
    f = world.forward()
    courier.deaf.add(courier.calls[-1][0])
    f.close()
    assert machine.bundle is None


def test_what_another_forwarding_of_the_same_person_brought_is_not_ours(world: World) -> None:
    """Two programs of one person: as another role, who came first is told so; as the same one, its workers are served."""
    role = f"arn:aws:iam::{ACCOUNT}:role/reader"
    world.sts.role(role)
    machine = world.machine("m")
    with world.forward() as first:
        with world.forward() as same:
            assert same.status().served == 1
            assert first.refresh().served == 1
        with world.forward(role_arn=role) as another:
            assert another.status().served == 1
            (state,) = first.refresh().workers
            assert state.state is State.ANOTHER
            assert "another forwarding of yours" in str(state.reason)
        assert first.refresh().served == 1
        assert machine.bundle is not None
    assert machine.bundle is None


@dataclass
class Lying(Processes):
    """One worker says that it is of a machine that is not its own, shows that machine another's key, and confirms all.

    Attributes:
        liar: its name.
        key_of: whose key it shows.
    """

    liar: str = ""
    key_of: Path = Path()

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        said = dict(super().call(job, workers))
        if self.liar in said and job.steps[0][0] == "POST":
            true = json.loads(str(said[self.liar]))
            lie = json.loads(str(Processes({"x": self.key_of}).call(job, ["x"])["x"]))
            said[self.liar] = json.dumps({**true, "answers": lie["answers"]})
        if self.liar in said and job.after == "withdrawn":
            true = json.loads(str(said[self.liar]))
            said[self.liar] = json.dumps({**true, "answers": [(200, '{"outcome": "accepted"}')]})
        return said


def test_who_confirms_for_a_machine_whose_own_worker_refuses_is_not_believed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machine's own worker could not take the withdrawal, another says that it did: what is still there is told."""
    world.courier = courier = Lying({})
    machine, other = world.machine("m", workers=2), world.machine("other")
    courier.key_of = courier.sockets.pop("other-0")
    f = world.forward(progress=True)
    another_key(machine)
    courier.liar = courier.calls[1][0]  # it carried something the last time: the machine's own is asked before it
    f.close()
    assert machine.bundle is not None
    assert other.accepted == []
    assert "withdrawn from 1 machine" not in capsys.readouterr().err


def test_variables_that_another_forwarding_does_not_send_are_missing(world: World) -> None:
    """The same role from two programs, and variables from the first alone: its workers are not told to be served."""
    machine = world.machine("m")
    with world.forward(environ={"MYAPP_TOKEN": "secret"}) as first:
        with world.forward():
            (state,) = first.refresh().workers
            assert state.state is State.ANOTHER
        assert first.refresh().served == 1
        assert machine.bundle is not None


@dataclass
class Liar(Processes):
    """A worker that says it reaches the agent of another machine, and that everything was accepted there.

    Attributes:
        liar: its name.
        of: a worker of the machine that it speaks for.
    """

    liar: str = ""
    of: str = ""

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        said = dict(super().call(job, workers))
        if self.liar in workers:
            about = json.loads(str(super().call(Job(steps=(("GET", "/v1/status", None),)), [self.of])[self.of]))
            mine = json.loads(str(said[self.liar]))
            mine["agent"] = about["agent"]
            if job.after == "served":
                mine["answers"] = [(200, '{"outcome": "accepted"}')]
            said[self.liar] = json.dumps(mine)
        return said


def test_who_speaks_for_another_machine_keeps_it_from_nothing(world: World) -> None:
    """A worker claims the agent of another and lies about it: that machine is asked itself, and is served on."""
    world.courier = Liar({}, liar="a-0", of="m-0")
    world.machine("a")  # the first by name, as the liar would like
    machine = world.machine("m")
    with world.forward() as f:
        for count in (1, 2, 3):
            for _ in range(3):
                f.refresh()
            assert len(machine.accepted) >= count
            before = machine.accepted[-1].seq
            world.sign_on()
            for _ in range(3):
                f.refresh()
            assert machine.accepted[-1].seq > before
    assert machine.bundle is None


def test_how_short_a_lease_one_machine_wants_is_nothing_to_the_others(world: World) -> None:
    """One asks for a minute, again and again: only that one is brought it anew."""
    wide, narrow = world.machine("wide"), world.machine("narrow", trust=world.trusting(max_lease_seconds=60))
    with world.forward(lease=timedelta(minutes=30)) as f:
        for minute in range(1, 5):
            world.time_gone = timedelta(minutes=minute)
            f.refresh()
        assert (len(wide.accepted), len(narrow.accepted)) == (1, 5)
        world.time_gone = timedelta(minutes=11)
        f.refresh()
        assert len(wide.accepted) == 2
        until, ends = f.status().until, narrow.accepted[-1].lease_until
        assert until is not None
        assert ends is not None
        assert abs(until - ends) < timedelta(seconds=1)


def engine_of(world: World, courier: Processes, *, lease: timedelta | None = None) -> Engine:
    admission = Admission(thumbprints=(), trust_channel=True, verify=verifier(Policy(), world.now))
    return Engine(
        courier,
        Local(Options(gcp=None)),
        lambda _: admission,
        signer=world.key,
        issuer=ISSUER,
        subject="s",
        lease=lease,
        now=world.now,
    )


def test_a_lease_whose_renewal_fails_is_renewed_once_more_before_its_end(world: World) -> None:
    """A worker that could not be reached just then has a second time, and a third: a look at all workers may come too late."""
    world.courier = courier = Deaf({})
    machine = world.machine("m")
    engine = engine_of(world, courier, lease=timedelta(minutes=30))
    engine.collect()
    engine.serve(["m-0"])
    for minute in (11, 21):
        world.time_gone = timedelta(minutes=minute)
        courier.gone = {"m-0"} if minute == 11 else set()
        assert engine.collect()
        list(engine.renew())
        assert not engine.collect()
    assert len(machine.accepted) == 2
    (ends,) = {one.lease_until for one in machine.accepted[1:]}
    assert ends is not None
    assert abs(ends - world.now() - timedelta(minutes=30)) < timedelta(minutes=1)


@dataclass
class AtOnce(Processes):
    """Another thread serves the other worker of a machine, just before the first one is.

    Attributes:
        meanwhile: what it does.
    """

    meanwhile: Callable[[], None] | None = None

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        if job.after == "served" and self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return super().call(job, workers)


def test_two_workers_of_a_machine_that_are_served_at_once(world: World) -> None:
    """The later bundle arrives first and the earlier one is refused as old: the machine is served, and is told to be."""
    world.courier = courier = AtOnce({})
    machine = world.machine("m", workers=2)
    engine = engine_of(world, courier)
    engine.collect()
    courier.meanwhile = lambda: engine.serve(["m-1"])
    engine.serve(["m-0"])
    assert [one.state for one in engine.status().workers] == [State.SERVED, State.SERVED]
    assert len(machine.accepted) == 1
    assert engine.withdraw() == (1, 0)
    assert machine.bundle is None


def test_machines_that_came_and_went_are_not_remembered_for_ever() -> None:
    """A cluster that grows and shrinks for weeks: so many absent machines are remembered, the last ones, and no more."""

    @dataclass
    class Passing(Processes):
        day: int = 0

        def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
            del job
            answers = [(200, "{}")]
            return {one: json.dumps({"host": one, "agent": f"agent of {one}", "answers": answers}) for one in workers}

    roster = Roster(Passing({}), session="s", kid="k")
    for day in range(enrolling.ABSENT // 8 + 16):
        names = [f"{day}-{index}" for index in range(8)]
        roster.keep(names)
        roster.look(names)
    known = {agent.id for agent in roster.known()}
    assert len(known) == enrolling.ABSENT + 8
    assert "agent of 0-0" not in known


def test_a_worker_whose_agent_has_no_place_in_its_queue_is_asked_again_soon(tmp_path: Path) -> None:
    """A flood at the courier's socket lasts longer than a prompt question: that is not told as an agent that is broken."""
    path = tmp_path / "full.sock"
    with crowded(path):
        roster = Roster(Processes({"m": path}), session="s", kid="k")
        roster.look(["m"], 0.1)
    assert roster.late == {"m"}
