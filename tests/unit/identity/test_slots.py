"""One slot: nothing leads where the table of its module does not say, and nothing takes a live credential away."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.core.model import Cloud, Grant
from agent.core.verdict import Failure, Key
from agent.identity import slots
from agent.identity.slots import Absent, Blocked, Failing, Finished, Holding, New, Slot, hold
from tests.fakes.clock import START
from tests.unit.identity.worlds import HOUR, aws_credential, google_token, role, session

ANY = (New, Holding, Finished, Absent, Failing, Blocked)
TABLE: dict[str, dict[type, tuple[type, ...]]] = {
    "issued": dict.fromkeys(ANY, (Holding, Finished)),
    "found_none": dict.fromkeys(ANY, (Absent,)),
    "failed": dict.fromkeys(ANY, (Failing,)),
    "blocked": {state: (Blocked, state) for state in ANY} | {Finished: (Finished,)},
    "source_came": {state: (state,) for state in ANY},
    "hurried": {state: (state,) for state in ANY},
    "moved": {state: (state,) for state in ANY},
    "retried": dict.fromkeys(ANY, (Failing,)),
}
"""What each transition may lead to, from each state: the table of :mod:`agent.identity.slots`, to be held against it."""

MACHINE = Key(Cloud.AWS, "instance")
names = st.sampled_from(sorted(TABLE))
spans = st.integers(-7200, 7200).map(lambda seconds: timedelta(seconds=seconds))


def happens(slot: Slot, name: str, now: datetime, by: timedelta, *, source: Slot, rng: random.Random) -> Slot:
    match name:
        case "issued":
            minutes = 1 + abs(by.total_seconds()) / 60
            return slots.issued(slot, hold(aws_credential(now, minutes=minutes), None, now), now, rng)
        case "found_none":
            return slots.found_none(slot, now, rng) if slot.key.is_instance else slot
        case "failed":
            return slots.failed(slot, Failure("x", "no", by < timedelta(), now), now, rng)
        case "blocked":
            return slots.blocked(slot, source, now)
        case "source_came":
            return slots.source_came(slot, now)
        case "hurried":
            return slots.hurried(slot, now + abs(by))
        case "moved":
            return slots.moved(slot, by, now + by, rng)
        case _:
            return slots.retried(slot, Failure("x", "no", False, now), 3, now + by, now)


@given(
    key=st.sampled_from([MACHINE, Key(Cloud.AWS, "r"), Key(Cloud.AWS, "user")]),
    story=st.lists(st.tuples(names, spans, st.integers(0, 4000)), max_size=30),
    source=st.sampled_from(["new", "failing", "absent", "finished", "holding"]),
    seed=st.integers(0, 1000),
)
def test_the_table_says_where_it_leads(
    key: Key, story: list[tuple[str, timedelta, int]], source: str, seed: int
) -> None:
    """Whatever happens, the next state is one that the table names, a live credential stays, only failures count."""
    rng, now = random.Random(seed), START
    grant: Grant | None = {"instance": None, "r": role("r"), "user": session()}[key.grant_id]
    slot = slots.new_slot(key, 1, grant, now)
    below = slots.new_slot(MACHINE, 2, None, now)
    below = {
        "new": below,
        "failing": slots.failed(below, Failure("x", "no", True, now), now, rng),
        "absent": slots.found_none(below, now, rng),
        "finished": slots.finished_slot(MACHINE, 2, session(), aws_credential(now)),
        "holding": slots.issued(below, hold(aws_credential(now), None, now), now, rng),
    }[source]
    for name, by, wait in story:
        now += timedelta(seconds=wait)
        after = happens(slot, name, now, by, source=below, rng=rng)
        if name == "moved":
            now += by
        elif slot.live(now):
            assert after.live(now), f"{name} took a live credential away"
        if after is not slot:
            assert type(after.state) in TABLE[name][type(slot.state)], (name, slot.state, after.state)
            assert name != "failed" or after.state.attempts == slot.state.attempts + 1
            assert name in ("failed", "retried") or after.state.attempts <= slot.state.attempts
        assert isinstance(after.state, Failing | Blocked) == (after.state.failure is not None)
        slot = after


def test_the_states_are_values() -> None:
    """No transition changes the slot it was given: whoever held the old one still holds it."""
    rng = random.Random(1)
    slot = slots.issued(slots.new_slot(MACHINE, 1, None, START), hold(aws_credential(START), None, START), START, rng)
    before = repr(slot)
    for name in TABLE:
        happens(slot, name, START, timedelta(minutes=5), source=slot, rng=rng)

    assert repr(slot) == before


def test_a_credential_that_names_a_far_end_is_held_to_the_end_that_was_counted() -> None:
    """An end that a service names may be as far away as years go: what was counted is nearer, and holds."""
    far = replace(aws_credential(START, minutes=60), expires_at=datetime(8999, 12, 31, tzinfo=UTC))
    for held in (hold(far, START + HOUR, START), slots.hold_again(far, START + HOUR, START)):
        assert held.ends == START + HOUR
        assert held.began <= START
        assert held.half_gone < held.ends


def test_a_token_that_names_a_far_end_is_held_to_the_end_that_was_counted_too() -> None:
    """The way from the end that it names is longer than any from the beginning of time to its issue."""
    token = replace(google_token(START), expires_at=datetime(8999, 12, 31, tzinfo=UTC))
    held = hold(token, START + HOUR, START)
    assert (held.ends, held.began) == (START + HOUR, START)
    assert held.credential.expires_at == START + HOUR
