"""Up to 36 simulated hours, 100 times: the real daemon code against clouds and clocks that misbehave.

The same 100 plans each time. ``SIMULATION_EXAMPLES=5000 python -m pytest -n auto tests/simulation`` draws others, and
more of them.
"""

from __future__ import annotations

import os
import random
import zlib
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.identity.events import ClockMoved, CredentialIssued
from agent.identity.slots import Failing, Holding, SlotState
from agent.identity.state import slots_of, with_slot
from agent.identity.store import Store
from tests.simulation.plan import OUTAGES, Aws, Fault, Google, Kind, Plan
from tests.simulation.world import Broken, simulate

EXAMPLES = int(os.environ.get("SIMULATION_EXAMPLES", "100"))
"""Over all groups together."""

minutes = st.floats(0.2, 20.0).map(lambda m: round(m, 1))
gaps = st.sampled_from([1.0, 5.0, 10.0, 30.0, 60.0, 180.0])
hours = st.sampled_from([-8.0, -3.0, -0.2, 0.2, 3.0, 8.0])
whom = st.sampled_from(["aws", "gcp", "both"])
outages = st.builds(Fault, st.sampled_from(sorted(OUTAGES)), gaps, minutes, st.just(0.0), whom)
flaky = st.builds(Fault, st.just(Kind.FLAKY), gaps, st.sampled_from([10.0, 120.0]), st.just(0.0), whom)
sleeps = st.builds(Fault, st.sampled_from([Kind.SUSPEND, Kind.PAUSE]), gaps, st.sampled_from([1.0, 20.0, 300.0, 600.0]))
steps = st.builds(Fault, st.just(Kind.STEP), gaps, st.just(0.0), hours)
lies = st.builds(Fault, st.just(Kind.LIE), gaps, st.sampled_from([10.0, 90.0]), hours, whom)
seeds = st.integers(0, 2**32)
wrong_at_boot = st.sampled_from([0.0, -5.0, -0.05, 0.05, 5.0, -227_000.0])


def plans(lifetimes: list[int], **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Plan]:
    """Plans with any identities, of these lifetimes."""
    return st.builds(
        Plan,
        seed=seeds,
        aws=st.sampled_from(Aws),
        google=st.sampled_from(Google),
        lifetime_seconds=st.sampled_from(lifetimes),
        **more,
    )


groups = {
    "an upstream that comes and goes": plans(
        [3600, 10800, 43200],
        faults=st.lists(outages | flaky, min_size=2, max_size=30).map(tuple),
    ),
    "short lives": plans(
        [900, 1800],
        faults=st.lists(outages | flaky, min_size=2, max_size=10).map(tuple),
        hours=st.just(12.0),
    ),
    "clocks": plans(
        [3600, 10800],
        wall_error_hours=wrong_at_boot,
        synchronised=st.booleans(),
        faults=st.lists(steps | sleeps | outages, min_size=2, max_size=16).map(tuple),
        hours=st.just(18.0),
    ),
    "a server that lies about the time": plans(
        [3600, 10800],
        wall_error_hours=wrong_at_boot,
        synchronised=st.booleans(),
        faults=st.lists(lies | steps | outages, min_size=2, max_size=12).map(tuple),
        hours=st.just(18.0),
    ),
    "everything at once": plans(
        [900, 1800, 3600, 10800, 43200],
        wall_error_hours=wrong_at_boot,
        synchronised=st.booleans(),
        faults=st.lists(steps | sleeps | outages | flaky | lies, min_size=2, max_size=14).map(tuple),
        hours=st.just(18.0),
    ),
}
SHARES = 2
"""Each group is two tests, so that two processes are busy to the end."""


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("group", groups)
def test_no_job_sees_an_expired_token(group: str, share: int) -> None:
    """Whatever upstream and clocks do, nothing expired is served, the promise is kept and nobody is stormed."""

    @settings(
        max_examples=max(EXAMPLES // len(groups) // SHARES, 1),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        database=None,
    )
    @given(groups[group])
    def every(plan: Plan) -> None:
        simulate(plan)

    if "SIMULATION_EXAMPLES" not in os.environ:
        seed(zlib.crc32(f"{group} {share}".encode()))(every)
    every()


def test_a_pause_soon_after_a_step_is_noticed() -> None:
    """A doubt about the clock that comes right after another is followed up: else what ended in a pause is served."""
    faults = (Fault(Kind.STEP, 1, 0, -8), Fault(Kind.STEP, 1, 0, -8), Fault(Kind.PAUSE, 1, 55))
    world = simulate(Plan(1, aws=Aws.KEYS, faults=faults, hours=3))

    assert min(world.least_left.values()) >= timedelta()


@pytest.mark.parametrize("who", ["aws", "gcp"])
@pytest.mark.parametrize("hours", [-8.0, -0.5, 0.5, 8.0])
@pytest.mark.parametrize("aws", [Aws.ROLE_ON_KEYS, Aws.BROKER])
def test_one_cloud_that_lies_changes_nothing(who: str, hours: float, aws: Aws) -> None:
    """A token service or a broker whose Date is off, beside a right end, costs no credential, no life and no storm."""
    lie = Fault(Kind.LIE, 60, 90, hours, who)
    world = simulate(Plan(3, aws=aws, faults=(lie, lie), hours=8))

    assert world.clock.timekeeper.moves == 0
    assert min(world.least_left.values()) > timedelta(minutes=30)


def test_a_synchronised_kernel_outranks_all_who_lie() -> None:
    """Both clouds agree on a lie for hours: nothing is refused, nothing is late."""
    lie = Fault(Kind.LIE, 60, 180, 3.0, "both")
    world = simulate(Plan(3, synchronised=True, faults=(lie,), hours=8))

    assert world.clock.timekeeper.moves == 0
    assert min(world.least_left.values()) > timedelta(minutes=30)


def test_the_same_plan_runs_the_same_way() -> None:
    """A plan is all that decides a run: what failed once fails again."""
    plan = Plan(7, faults=(Fault(Kind.HANG, 30, 20), Fault(Kind.FLAKY, 10, 120)), hours=8)

    assert simulate(plan).attempts == simulate(plan).attempts


def test_twenty_minutes_without_upstream_leave_no_hole() -> None:
    """An outage of 20 minutes, begun at any minute of an hour's life, never ends the service of either cloud."""
    for start in range(1, 60, 4):
        world = simulate(Plan(start, faults=(Fault(Kind.DOWN, start, 20),), hours=3))

        assert min(world.least_left.values()) > timedelta(minutes=9)


class Other(Store):
    """Does to every slot what no transition would."""

    def apply(self, event: Any, now: datetime) -> tuple[Any, ...]:
        effects = super().apply(event, now)
        for slot in list(slots_of(self.state)):
            state = self.other(slot.state, now)
            if state is not slot.state:
                self.state = with_slot(self.state, replace(slot, state=state))
        return effects

    def other(self, state: SlotState, now: datetime) -> SlotState:
        raise NotImplementedError


class AtTheLastMinute(Other):
    """Renews five minutes before the end, as many a program does."""

    def other(self, state: SlotState, now: datetime) -> SlotState:
        if not isinstance(state, Holding):
            return state
        return replace(state, due_at=max(state.held.ends - timedelta(minutes=5), now + timedelta(seconds=5)))


class NeverAgain(Other):
    """Stops asking after the third failure."""

    def other(self, state: SlotState, now: datetime) -> SlotState:
        if isinstance(state, Failing) and state.attempts >= 3:
            return replace(state, due_at=now + timedelta(days=365))
        return state


class Hammer(Other):
    """Tries again at once."""

    def other(self, state: SlotState, now: datetime) -> SlotState:
        if isinstance(state, Failing):
            return replace(state, due_at=min(state.due_at, now + timedelta(seconds=0.2)))
        return state


class Deaf(Store):
    """Does not hear that the clock was moved."""

    def apply(self, event: Any, now: datetime) -> tuple[Any, ...]:
        return () if isinstance(event, ClockMoved) else super().apply(event, now)


class Generous(Store):
    """Shows what has ended for a minute more."""

    def apply(self, event: Any, now: datetime) -> tuple[Any, ...]:
        if isinstance(event, CredentialIssued) and event.credential is not None:
            event = replace(event, ends=(event.ends or event.credential.expires_at) + timedelta(minutes=1))
        return super().apply(event, now)


FIRST = (Fault(Kind.DOWN, 0, 5),)
OUTAGE = (Fault(Kind.DOWN, 14, 20),)
LONG = (Fault(Kind.DOWN, 14, 90),)


@pytest.mark.parametrize(
    ("broken", "plan", "says"),
    [
        (AtTheLastMinute, Plan(1, hours=3), "left, got"),
        (AtTheLastMinute, Plan(1, faults=OUTAGE, hours=3), "left, got"),
        (NeverAgain, Plan(1, faults=OUTAGE, hours=3), "left, got"),
        (Hammer, Plan(1, faults=OUTAGE, hours=3), "in the minute before"),
        (Deaf, Plan(1, wall_error_hours=5, faults=FIRST, hours=3), "a hole|told of"),
        (Generous, Plan(1, faults=LONG, hours=3), "after its end|told of"),
    ],
)
def test_the_checks_bite(broken: type[Store], plan: Plan, says: str) -> None:
    """A rule that is broken on purpose is found, and the report tells the plan as a timeline."""
    with pytest.raises(Broken, match=says) as caught:
        simulate(plan, store=broken)

    assert plan.timeline() in str(caught.value)


@pytest.mark.parametrize("hours", [-5.0, 5.0])
def test_a_machine_that_nobody_tells_the_time_is_served_all_the_same(hours: float) -> None:
    """No witness in reach and a clock hours off: requests are dated by the server that refused ours, ends are counted."""
    world = simulate(Plan(1, wall_error_hours=hours, hours=3), ignore_dates=True)

    assert world.clock.timekeeper.moves == 0
    assert min(world.least_left.values()) > timedelta(minutes=30)


def test_an_unlucky_seed_is_written_down_for_a_person() -> None:
    """A plan reads as a timeline: when, for how long, who, and what."""
    rng = random.Random(3)
    plan = Plan(3, faults=(Fault(Kind.HANG, 61, 20, who="aws"), Fault(Kind.STEP, rng.randint(5, 5), 0, -3.0)))

    assert "  01:01:00 - 01:21:00  aws: hangs" in plan.timeline()
    assert "  01:26:00 - 01:26:00  the wall clock is stepped by -3 h" in plan.timeline()
