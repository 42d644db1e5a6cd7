"""What one process leaves to the next, and whose clock it is evaluated by."""

from __future__ import annotations

import json
import random
from datetime import timedelta

import msgspec
import pytest

from agent.core.model import Cloud, GoogleToken, IdToken
from agent.core.secret import Secret
from agent.core.timekeeping import Witness
from agent.core.verdict import Accepted, Key, Memory, Policy
from agent.core.view import Live
from agent.daemon import kept
from agent.host.clock import SystemClock
from agent.identity import leftovers, standing
from agent.identity.events import IdTokenMinted
from tests.fakes.clock import START
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import HOUR, aws_credential, bundle, google_token, role

MINUTE = timedelta(minutes=1)


class Machine:
    """The clocks of a machine: true time goes on, CLOCK_BOOTTIME with it, and the wall clock is wrong as it likes."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.wall_error = 0.0
        self.synchronised = False

    def clock(self) -> SystemClock:
        """A process of this machine starts."""
        return SystemClock(
            boottime=lambda: 500.0 + self.elapsed,
            wall=lambda: START.timestamp() + self.elapsed + self.wall_error,
            synchronised=lambda: self.synchronised,
        )


def store(clock: SystemClock, *, instance: str = "i-1") -> Store:
    made = Store(Policy(), Memory(instance), clock.now(), random.Random(1))
    verdict = made.evaluate(bundle(role("r")), clock.now())
    assert isinstance(verdict, Accepted)
    made.accept(verdict, clock.now())
    return made


def fill(one: Store, clock: SystemClock, *, counted: bool) -> None:
    """Give every slot a credential of an hour, as far as a cloud with the right time would."""
    now = clock.now()
    for _ in range(2):
        for work in one.due(now):
            ends = now + HOUR if counted else None
            token = work.key.cloud is Cloud.GCP
            one.put(work, google_token(now) if token else aws_credential(START), now, ends=ends)


def restart(machine: Machine, data: bytes, *, instance: str = "i-1") -> tuple[Store, SystemClock, int]:
    clock = machine.clock()
    left = kept.decode(data, clock)
    assert left is not None
    left.sync_clock(clock)
    second = store(clock, instance=instance)
    return second, clock, sum(second.restore(h, clock.now()) for h in left.holdings(second.memory.instance_id, clock))


def test_what_was_held_is_served_on() -> None:
    """The next process serves the very credentials of the one before, and not a second longer than they live."""
    machine = Machine()
    clock = machine.clock()
    first = store(clock)
    fill(first, clock, counted=True)
    machine.elapsed = 30 * 60

    second, clock, count = restart(machine, kept.encode(first, clock))

    assert count == len(first.held()) == 3
    answer = second.answer(Cloud.AWS, clock.now())
    assert isinstance(answer, Live)
    assert answer.credential == next(h.credential for h in first.held() if h.key == Key(Cloud.AWS, "r"))
    assert not isinstance(second.answer(Cloud.AWS, START + HOUR), Live)


@pytest.mark.parametrize("hours", [1, 8])
def test_a_step_forward_between_the_two_ends_what_was_counted(hours: int) -> None:
    """As within one process: a pause that boot time did not count looks like that, and then it may have ended."""
    machine = Machine()
    clock = machine.clock()
    first = store(clock)
    fill(first, clock, counted=True)
    data = kept.encode(first, clock)
    machine.wall_error = hours * 3600.0

    second, clock, _ = restart(machine, data)

    assert not isinstance(second.answer(Cloud.AWS, clock.now()), Live)


@pytest.mark.parametrize("hours", [-8, -1])
def test_a_counted_life_needs_no_right_clock(hours: int) -> None:
    """With a wall clock that is off and set back between the two, the life left is what CLOCK_BOOTTIME says."""
    machine = Machine()
    machine.wall_error = -hours * 3600.0
    clock = machine.clock()
    first = store(clock)
    fill(first, clock, counted=True)
    data = kept.encode(first, clock)
    machine.elapsed = 59 * 60
    machine.wall_error = hours * 3600.0

    second, clock, count = restart(machine, data)

    assert count == 3
    assert isinstance(second.answer(Cloud.AWS, clock.now()), Live)
    assert not isinstance(second.answer(Cloud.AWS, clock.now() + MINUTE), Live)
    (token,) = [h.credential for h in second.held() if isinstance(h.credential, GoogleToken)]
    assert token.expires_at - clock.now() == MINUTE


@pytest.mark.parametrize("hours", [-8, 8])
def test_what_a_witness_said_of_the_time_outlives_the_process(hours: int) -> None:
    """A clock that was corrected by a witness is right after a restart, before anybody was asked again."""
    machine = Machine()
    machine.wall_error = hours * 3600.0
    clock = machine.clock()
    clock.hear(Witness.LINK, START)
    first = store(clock)
    fill(first, clock, counted=False)
    data = kept.encode(first, clock)
    machine.elapsed = 20 * 60

    second, clock, count = restart(machine, data)

    assert abs(clock.now() - START - 20 * MINUTE) < timedelta(seconds=2)
    assert clock.timekeeper.believed is Witness.LINK
    assert count == 3
    assert not isinstance(second.answer(Cloud.AWS, START + HOUR), Live)


def test_a_witness_that_was_just_heard_is_believed() -> None:
    """What the process before us knew does not overrule what the metadata service has just said."""
    machine = Machine()
    clock = machine.clock()
    clock.hear(Witness.LINK, START + 3 * HOUR)  # by a liar
    data = kept.encode(store(clock), clock)
    fresh = machine.clock()
    fresh.hear(Witness.LINK, START)
    left = kept.decode(data, fresh)
    assert left is not None
    left.sync_clock(fresh)

    assert abs(fresh.now() - START) < timedelta(seconds=2)


@pytest.mark.parametrize("believed", ["kernel", "metadata", "aws", "google", "wall", None])
@pytest.mark.parametrize(
    "now", ["1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-12-24T06:00:00Z"]
)
def test_what_was_left_moves_us_no_further_than_a_witness_may(now: str, believed: str | None) -> None:
    """A time that nobody could believe, in what the process before us left, neither moves us nor stops the start."""
    machine = Machine()
    clock = machine.clock()
    left = msgspec.json.decode(kept.encode(store(clock), clock))
    left |= {"now": now, "heard": True, "believed": believed, "wall_error": None}
    fresh = machine.clock()
    found = kept.decode(msgspec.json.encode(left), fresh)
    if found is not None:
        found.sync_clock(fresh)

    assert fresh.now() == START


def test_what_a_version_without_provenance_left_is_bounded_too() -> None:
    """An upgrade loses nothing, and believes what it is not told the origin of like one witness."""
    machine = Machine()
    machine.wall_error = 3600.0
    clock = machine.clock()
    clock.hear(Witness.LINK, START)
    left = msgspec.json.decode(kept.encode(store(clock), clock))
    del left["believed"], left["wall_error"]
    fresh = machine.clock()
    found = kept.decode(msgspec.json.encode(left), fresh)
    assert found is not None
    found.sync_clock(fresh)

    assert abs(fresh.now() - START) < timedelta(seconds=2)


def test_a_pause_between_two_processes_prolongs_nothing() -> None:
    """The machine was stopped for an hour while no process of ours ran: what the first held is over for the second."""
    machine = Machine()
    machine.synchronised = True
    clock = machine.clock()
    first = store(clock)
    fill(first, clock, counted=True)
    data = kept.encode(first, clock)
    machine.wall_error = 2 * 3600.0  # boot time is short by what the wall clock has caught up with

    second, clock, _ = restart(machine, data)

    assert not isinstance(second.answer(Cloud.AWS, clock.now()), Live)


def test_what_ended_meanwhile_is_left_out() -> None:
    """A credential that ended between the two processes is not taken back."""
    machine = Machine()
    clock = machine.clock()
    first = store(clock)
    fill(first, clock, counted=True)
    data = kept.encode(first, clock)
    machine.elapsed = 3600

    assert restart(machine, data)[2] == 0


def test_it_belongs_to_one_machine() -> None:
    """A copy of the machine gets nothing of what the original held."""
    machine = Machine()
    clock = machine.clock()
    first = store(clock)
    fill(first, clock, counted=True)

    assert restart(machine, kept.encode(first, clock), instance="i-2")[2] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"uptime": 1e9},  # of another boot: that clock never goes back
        {"uptime": -1.0},
        {"now": "2026-11-24T12:00:00"},
        {"now": "2026-11-24T12:00:00+05:00"},
        {"heard": 1},
        {"credentials": None},
        {"version": 2},
    ],
)
def test_what_makes_no_sense_is_dropped(change: dict[str, object]) -> None:
    """Garbage, a later version and the clock of another boot lead to a fresh mint, never to an error."""
    machine = Machine()
    clock = machine.clock()
    data = json.loads(kept.encode(store(clock), clock))

    assert kept.decode(json.dumps(data).encode(), clock) is not None
    assert kept.decode(json.dumps({**data, **change}).encode(), clock) is None
    assert kept.decode(b"\xff\x00", clock) is None
    assert kept.decode(b"[" * 100_000, clock) is None


def id_token(audience: str, ends: timedelta = HOUR) -> IdToken:
    return IdToken(Secret("jwt"), audience, START, START + ends)


def test_identity_tokens_are_minted_once() -> None:
    """A token that speaks for whoever is served still is served on; that of another bundle, or another's, is not."""
    machine = Machine()
    clock = machine.clock()
    first = store(clock)
    fill(first, clock, counted=True)
    served = standing.google_source(first.state, clock.now())
    assert served is not None
    for number in range(20):
        first.apply(IdTokenMinted(id_token(f"a{number}", HOUR + number * MINUTE), served[0]), clock.now())
    data = kept.encode(first, clock)
    left = kept.decode(data, machine.clock())
    assert left is not None
    assert len(left.id_tokens) == leftovers.MOST_ID_TOKENS
    for one, mine in ((left.id_tokens[0], True), (left.id_tokens[0]._replace(digest="x"), False),
                      (left.id_tokens[0]._replace(grant_id="other"), False)):  # fmt: skip
        second = store(clock)
        for holding in left.holdings("i-1", clock):
            second.restore(holding, clock.now())
        event = leftovers.minted(second.state, one, clock.now())
        assert (event is not None) is mine
        if event is not None:
            second.apply(event, clock.now())
            assert second.view_id_token("a19", clock.now()) == one.token
