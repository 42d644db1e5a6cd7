"""How many streams are remembered, and that forgetting one opens no replay."""

from __future__ import annotations

import random
from datetime import timedelta

import msgspec

from agent.core import streams
from agent.core.model import Action, Cloud
from agent.core.verdict import Accepted, Memory, Policy, Refused
from agent.core.view import Live
from tests.fakes.clock import START
from tests.unit.core.driver import Store
from tests.unit.core.worlds import bundle, session

MINUTE = timedelta(minutes=1)


def store() -> Store:
    return Store(Policy(), Memory("i-1"), START, random.Random(1))


def take(one: Store, *, seq: int, subject: str, issuer: str = "cp", minute: int) -> bool:
    """Offer a bundle of that stream, issued in that minute; whether it was accepted."""
    made = bundle(session(hours=5000), seq=seq, subject=subject, now=START + minute * MINUTE)
    verdict = one.judge(msgspec.structs.replace(made, issuer=issuer), START + minute * MINUTE)
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
        verdict = one.judge(gone, START + (job + 2) * MINUTE)
        assert isinstance(verdict, Accepted)
        one.accept(verdict, START)

    assert one.memory.mark("cp", "team") is not None
    assert isinstance(one.view(Cloud.AWS, START), Live)


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
