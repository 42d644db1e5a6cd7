"""How many streams are remembered, and that forgetting one opens no replay."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

import msgspec

from agent.core.model import Action, Cloud
from agent.core.verdict import Accepted, Mark, Memory, Policy, Refused
from agent.core.view import Live
from agent.identity import streams
from tests.fakes.clock import START
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import bundle, session

MINUTE = timedelta(minutes=1)


def store() -> Store:
    return Store(Policy(), Memory("i-1"), START, random.Random(1))


def take(one: Store, *, seq: int, subject: str, issuer: str = "cp", minute: int) -> bool:
    """Submit a bundle of that stream, issued in that minute; whether it was accepted."""
    made = bundle(session(hours=5000), seq=seq, subject=subject, now=START + minute * MINUTE)
    verdict = one.evaluate(msgspec.structs.replace(made, issuer=issuer), START + minute * MINUTE)
    if isinstance(verdict, Accepted):
        one.accept(verdict, START + minute * MINUTE)
        return True
    assert isinstance(verdict, Refused)
    assert verdict.code == "rollback"
    return False


def test_a_stream_a_job_grows_nothing_without_end() -> None:
    """Three thousand streams leave a memory of a bounded size, and each new one is accepted."""
    one = store()
    for job in range(3000):
        assert take(one, seq=1, subject=f"job-{job}", minute=job + 1)

    assert len(one.memory.marks) == streams.MAX_STREAMS
    assert len(one.memory.floors) <= streams.MAX_FLOORS
    assert len(msgspec.json.encode(one.memory)) < 128 * 1024


def test_what_is_forgotten_cannot_be_played_again() -> None:
    """An older bundle of a stream that was forgotten is refused, as one that is remembered would be."""
    one = store()
    assert take(one, seq=2, subject="victim", minute=10)
    for job in range(streams.MAX_STREAMS + 5):
        assert take(one, seq=1, subject=f"job-{job}", minute=20 + job)
    assert one.memory.mark("cp", "victim") is None

    assert not take(one, seq=1, subject="victim", minute=9)
    assert not take(one, seq=2, subject="victim", minute=10)
    assert take(one, seq=3, subject="victim", minute=900)


def test_the_bundle_in_force_is_never_forgotten() -> None:
    """However many withdrawals of other streams come, the mark of the one in force stays."""
    one = store()
    assert take(one, seq=7, subject="team", minute=1)
    for job in range(streams.MAX_STREAMS * 2):
        gone = bundle(seq=1, action=Action.WITHDRAW, subject=f"job-{job}", now=START + (job + 2) * MINUTE)
        verdict = one.evaluate(gone, START + (job + 2) * MINUTE)
        assert isinstance(verdict, Accepted)
        one.accept(verdict, START)

    assert one.memory.mark("cp", "team") is not None
    assert isinstance(one.answer(Cloud.AWS, START), Live)


def test_an_issuer_that_floods_forgets_its_own() -> None:
    """Thousands of streams of one issuer cost another issuer none of its marks, and raise no floor for it."""
    one = store()
    assert take(one, seq=5, subject="team", issuer="quiet", minute=1)
    for job in range(1000):
        assert take(one, seq=1, subject=f"job-{job}", issuer="loud", minute=job + 2)

    assert one.memory.mark("quiet", "team") is not None
    assert set(one.memory.floors) == {"loud"}
    assert take(one, seq=1, subject="another", issuer="quiet", minute=1)


def test_a_thousand_issuers_are_bounded_too() -> None:
    """An issuer a laptop: floors are gathered, and what is gathered still refuses what is old."""
    one = store()
    for number in range(1000):
        assert take(one, seq=2, subject="s", issuer=f"laptop:{number}", minute=number + 10)

    assert len(one.memory.marks) == streams.MAX_STREAMS
    assert len(one.memory.floors) <= streams.MAX_FLOORS
    assert not take(one, seq=1, subject="s", issuer="laptop:0", minute=9)
    assert not take(one, seq=1, subject="s", issuer="laptop:700", minute=709)


def marks(*issued: datetime | None, issuer: str = "cp") -> tuple[Mark, ...]:
    return tuple(Mark(issuer, f"s-{at}", 1, "0" * 64, when) for at, when in enumerate(issued))


def test_as_many_as_may_be_remembered_are() -> None:
    """Nothing is forgotten before the bound is passed, and one of them when it is passed by one."""
    full = marks(*[START] * streams.MAX_STREAMS)

    assert streams.bounded(Memory("i-1", full), START) == Memory("i-1", full)
    more = streams.bounded(Memory("i-1", (*full, Mark("cp", "late", 1, "0" * 64, START))), START)
    assert [mark.subject for mark in more.marks] == [mark.subject for mark in full[1:]] + ["late"]


def test_a_floor_is_the_latest_of_all_that_was_forgotten() -> None:
    """A stream that is forgotten after another, but was issued before it, lowers no floor."""
    issued = [START + 9 * MINUTE, START + 3 * MINUTE, *[START + 20 * MINUTE] * streams.MAX_STREAMS]

    kept = streams.bounded(Memory("i-1", marks(*issued)), START + 50 * MINUTE)

    assert streams.floor(kept, "cp") == START + 9 * MINUTE
    assert streams.floor(kept, "another") < START


def test_a_mark_without_a_time_leaves_the_floor_of_now() -> None:
    """An earlier version wrote down no time: whatever was sealed until now could be a replay."""
    kept = streams.bounded(Memory("i-1", marks(None, *[START] * streams.MAX_STREAMS)), START + 50 * MINUTE)

    assert streams.floor(kept, "cp") == START + 50 * MINUTE


def test_the_lowest_floors_are_gathered_into_one_for_everybody() -> None:
    """What many issuers share is the highest of the lowest floors, and is never lowered: it refuses what they did."""
    floors = {f"cp-{n}": START + n * MINUTE for n in range(streams.MAX_FLOORS)}
    assert streams.bounded(Memory("i-1", floors=floors), START).floors == floors

    kept = streams.bounded(Memory("i-1", floors=floors | {streams.EVERYBODY: START}), START)

    assert len(kept.floors) == streams.MAX_FLOORS
    assert streams.floor(kept, "a stranger") == START
    assert streams.floor(kept, "cp-63") == START + 63 * MINUTE

    more = {f"cp-{n}": START + n * MINUTE for n in range(streams.MAX_FLOORS + 3)}
    assert streams.floor(streams.bounded(Memory("i-1", floors=more), START), "a stranger") == START + 3 * MINUTE
    high = more | {streams.EVERYBODY: START + 99 * MINUTE}
    assert streams.floor(streams.bounded(Memory("i-1", floors=high), START), "cp-1") == START + 99 * MINUTE


def test_the_one_in_force_is_not_forgotten_though_it_is_the_oldest() -> None:
    """The mark of the bundle in force stays when all others have to go before it."""
    full = marks(*[START] * (streams.MAX_STREAMS + 2))

    kept = streams.bounded(Memory("i-1", full, active=full[0]), START)

    assert kept.marks == (full[0], *full[3:])
