"""Two histories of one machine, what its disk says and what the process before left: neither's numbers are taken back.

A disk is full for a while, a backup is put back, a descriptor could not be handed over: either may know what the other
does not, in some streams and not in others, and may have forgotten a stream that the other remembers.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import NamedTuple
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.model import Action, Bundle, Cloud
from agent.core.verdict import Accepted, Memory, Policy
from agent.daemon import handover
from agent.daemon.disk import is_later
from agent.identity import streams
from tests.fakes.clock import START
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import bundle, session

MINUTE = timedelta(minutes=1)
LATER = START + 1000 * MINUTE


class Sent(NamedTuple):
    """A bundle that was sent, and which of the two took it: the process before, the disk."""

    sealed: Bundle
    left: bool
    disk: bool


@st.composite
def sent(draw: st.DrawFn) -> list[Sent]:
    found = []
    for at in range(draw(st.integers(0, 14))):
        withdraws = draw(st.integers(0, 3)) == 0
        made = bundle(
            *(() if withdraws else (session(hours=5000),)),
            seq=at + 1,
            action=Action.WITHDRAW if withdraws else Action.SET,
            issuer=draw(st.sampled_from(("cp", "laptop"))),
            subject=draw(st.sampled_from("abcde")),
            now=START + at * MINUTE,
        )
        found.append(Sent(made, draw(st.booleans()), draw(st.booleans())))
    return found


def after(bundles: list[Bundle]) -> Memory:
    store = Store(Policy(), Memory("i-1"), START, random.Random(1))
    for one in bundles:
        verdict = store.evaluate(one, one.issued_at)
        assert isinstance(verdict, Accepted)
        store.accept(verdict, one.issued_at)
    return store.memory


@settings(deadline=None)
@given(sent())
def test_nothing_that_either_took_is_taken_back(all_sent: list[Sent]) -> None:
    """No bundle that either took is taken again but the one in force, which neither knows to be replaced or withdrawn."""
    with mock.patch.multiple(streams, MAX_STREAMS=3, MAX_FLOORS=1):
        left = after([one.sealed for one in all_sent if one.left])
        disk = after([one.sealed for one in all_sent if one.disk])
        given_ = handover.Handover(uptime=1.0, now=START, began=0.0, memory=left, sealed=handover.encoded(b"left"))
        memory, sealed = handover.reconcile(given_, disk, b"disk" if disk.active is not None else None)
        taken = [one.sealed for one in all_sent if one.left or one.disk]

        active = memory.active
        assert active in (None, left.active, disk.active)
        assert (sealed is None) == (active is None)
        assert sealed != b"left" or active == left.active
        assert sealed != b"disk" or active == disk.active
        assert not any(one.seq > active.seq and (one.issuer, one.subject) == active.stream for one in taken if active)
        assert not is_later(left, memory)
        assert not is_later(disk, memory)
        assert memory.decided.keys() >= left.decided.keys() | disk.decided.keys()
        for one in taken:
            verdict = Store(Policy(), memory, START, random.Random(1)).evaluate(one, LATER)
            assert not isinstance(verdict, Accepted) or (active is not None and one.digest == active.digest), one


@settings(deadline=None)
@given(sent())
def test_what_one_of_them_knows_whole_is_what_it_says(all_sent: list[Sent]) -> None:
    """A disk that was behind, or whose backup was put back, brings nothing back; nor does a handover that was."""
    with mock.patch.multiple(streams, MAX_STREAMS=3, MAX_FLOORS=1):
        whole = after([one.sealed for one in all_sent])
        for behind in range(len(all_sent)):
            part = after([one.sealed for one in all_sent[:behind]])
            for left, disk in ((whole, part), (part, whole)):
                given_ = handover.Handover(uptime=1.0, now=START, began=0.0, memory=left)
                memory, _ = handover.reconcile(given_, disk, b"disk")
                assert memory.active == whole.active
                assert {mark.stream: mark.seq for mark in memory.marks}.items() >= {
                    mark.stream: mark.seq for mark in whole.marks
                }.items()
                assert dict(memory.decided) == dict(whole.decided) or memory.decided.keys() == set(Cloud)
