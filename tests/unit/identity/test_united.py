"""Two memories of one machine, such as a disk that was put back and what was handed over: nothing known is taken back."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.model import Cloud, OnExpiry
from agent.core.verdict import Mark, Memory
from agent.identity import streams
from tests.fakes.clock import START

MINUTE = timedelta(minutes=1)


def mark(seq: int, subject: str = "x", issuer: str = "a") -> Mark:
    """A sender's numbers rise with its time."""
    return Mark(issuer, subject, seq, f"{issuer}{subject}{seq}", START + seq * MINUTE)


def memories() -> st.SearchStrategy[Memory]:
    marks = st.lists(
        st.builds(mark, st.integers(1, 5), st.sampled_from("xy"), st.sampled_from("ab")),
        max_size=4,
        unique_by=lambda one: one.stream,
    )
    floors = st.dictionaries(st.sampled_from(("a", "b", streams.EVERYBODY)), st.integers(0, 6), max_size=2)
    return st.builds(
        lambda marks, floors, active: Memory(
            "i-1",
            tuple(marks),
            floors={name: START + at * MINUTE for name, at in floors.items()},
            active=marks[0] if marks and active else None,
        ),
        marks,
        floors,
        st.booleans(),
    )


@settings(deadline=None, max_examples=400)
@given(memories(), memories())
def test_whatever_either_refuses_both_refuse(one: Memory, other: Memory) -> None:
    """No bundle can be played again after a disk was put back that could not be played again before."""
    both = streams.united(one, other)
    assert streams.covers(both, one)
    assert streams.covers(both, other)
    assert both.active in {None, one.active, other.active}
    assert both.active is None or both.active in both.marks


@settings(deadline=None, max_examples=400)
@given(memories(), memories())
def test_what_covers_knows_whatever_the_other_knows(one: Memory, other: Memory) -> None:
    """Also of a stream that the other has forgotten, of which it may have had a higher number than this has."""
    if streams.covers(one, other):
        for seq in range(1, 7):
            for name in ("xa", "xb", "ya", "yb"):
                assert not streams.knows(other, mark(seq, *name)) or streams.knows(one, mark(seq, *name))


def test_what_covers_refuses_all_of_the_other() -> None:
    """Each stream by its mark, or by the floor that it left; and every floor."""
    late, early = Memory(marks=(mark(2),)), Memory(marks=(mark(1),))
    assert streams.covers(late, early)
    assert not streams.covers(early, late)
    assert streams.covers(late, late)
    floored = Memory(floors={"a": START + 2 * MINUTE})
    assert streams.covers(floored, late)
    assert not streams.covers(late, floored)
    assert not streams.covers(Memory(marks=early.marks, floors=floored.floors), floored)
    assert not streams.covers(Memory(floors={"b": START + 2 * MINUTE}), late)
    assert not streams.covers(floored, Memory(marks=(mark(3),)))
    assert not streams.covers(Memory(marks=(mark(3),), floors=floored.floors), Memory(marks=(mark(3), mark(3, "y"))))


def test_what_is_in_force_is_what_nobody_knows_to_be_replaced() -> None:
    """The first word counts unless the other knows a later one of that stream; where neither is the latest, none is."""
    first, second = mark(1), mark(2)
    old, new = Memory(marks=(first,), active=first), Memory(marks=(second,), active=second)
    assert streams.united(old, new).active == second
    assert streams.united(new, old).active == second
    withdrawn = Memory(marks=(second,))
    assert streams.united(old, withdrawn).active is None
    assert streams.united(withdrawn, old).active is None
    elsewhere = mark(1, "y")
    both = streams.united(Memory(marks=(elsewhere,), active=elsewhere), new)
    assert both.active == elsewhere
    assert set(both.marks) == {elsewhere, second}


def test_a_cloud_that_either_knows_to_be_decided_is() -> None:
    """None comes back to the machine's own; what the first says of its end counts."""
    one = Memory(decided={Cloud.AWS: OnExpiry.FALLBACK})
    other = Memory(decided={Cloud.AWS: OnExpiry.DENY, Cloud.GCP: None})
    assert streams.united(one, other).decided == {Cloud.AWS: OnExpiry.FALLBACK, Cloud.GCP: None}
    assert streams.united(one, Memory()).decided == one.decided
