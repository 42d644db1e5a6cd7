"""What may be the first bundle is waited for, by what each source has said so far."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from agent.controller import Awaited
from agent.core.errors import KeyUnavailableError, SealError, SourceError, UnansweredError, UnreadableError
from agent.core.model import Cloud
from agent.core.source import COURIER, PUSH, Ack, Source
from agent.core.verdict import Policy
from agent.core.view import Live, Pending
from agent.sources.file import FileSettings, FileSource
from tests.fakes.clock import START, FakeClock, settle
from tests.unit.controller.support import FakeSource, Issued, World, looped
from tests.unit.identity.worlds import aws_credential, bundle, session


class Metadata(FakeSource):
    awaited_in = (Cloud.AWS,)


def sources(*kinds: type[FakeSource]) -> list[Source]:
    return [kind(f"s{number}") for number, kind in enumerate(kinds)]


def why(awaited: Awaited, cloud: Cloud = Cloud.AWS) -> str | None:
    return awaited.why.get(cloud)


def ack(code: str | None) -> Ack:
    return Ack(origin="s0", outcome="refused" if code else "accepted", at=START, code=code, reason="so")


class TestSources:
    def test_only_the_machine_s_own_are_waited_for(self) -> None:
        """A web server that is down may be down for a week."""
        assert Awaited(sources(FakeSource)).why == {}
        said = "s1 is being looked at: it may hold the first bundle"
        assert Awaited(sources(FakeSource, Metadata)).why == {Cloud.AWS: said}  # a cloud's, in that cloud

    def test_until_they_have_said_something(self) -> None:
        """Silence is none; an answer, an error of the server's and something unreadable are."""
        for said in (SourceError("403"), UnreadableError("twice encoded")):
            awaited = Awaited(sources(Metadata))
            awaited.failed("s0", UnansweredError("no route"))
            assert why(awaited) == "s0 does not answer, and may hold the first bundle: no route"
            awaited.failed("s0", said)
            assert why(awaited) is None
            awaited.failed("s0", UnansweredError("no route"))
            assert why(awaited) is None
        awaited = Awaited(sources(Metadata))
        awaited.answered("s0")
        assert why(awaited) is None

    def test_a_file_is_waited_for_until_it_has_answered(self) -> None:
        """In all clouds: a mount that hangs may hold a bundle for any."""
        file: Source = FileSource(FileSettings(path=Path("/x"), name="s0"), clock=FakeClock())
        awaited = Awaited([file])
        assert set(awaited.why) == set(Cloud)
        awaited.failed("s0", UnansweredError("it does not answer"))
        assert set(awaited.why) == set(Cloud)
        awaited.failed("s0", SourceError("cannot be read"))
        assert awaited.why == {}

    def test_after_one_that_waited_each_is_read_first(self) -> None:
        """The next process has what a source had brought only once it has read that source."""
        awaited = Awaited(sources(FakeSource))
        awaited.go_on([Cloud.GCP])
        assert set(awaited.why) == {Cloud.GCP}
        awaited.answered("s0")
        assert awaited.why == {}

    def test_what_another_waited_for_takes_no_source_its_own_clouds(self) -> None:
        """The configuration has another source now, which is silent, in a cloud in which nobody waited before."""
        awaited = Awaited(sources(Metadata))
        awaited.go_on([Cloud.GCP])
        assert set(awaited.why) == {Cloud.AWS, Cloud.GCP}
        awaited.failed("s0", UnansweredError("no route"))
        assert set(awaited.why) == {Cloud.AWS, Cloud.GCP}


class TestBundles:
    def test_one_that_a_key_service_does_not_open(self) -> None:
        """It is waited for from the beginning, while nobody opens it, and until another verdict on its source's newest."""
        awaited = Awaited(sources(FakeSource))
        awaited.opens("s0")
        assert why(awaited) == "a bundle of s0 is being opened"
        awaited.opened("s0", ack(KeyUnavailableError.code))
        assert awaited.why == dict.fromkeys(Cloud, "a bundle of s0 cannot be opened yet: so")
        awaited.opens("s0")
        awaited.opens("s0")
        awaited.opened("s0", ack(SealError.code))
        assert why(awaited) is not None
        awaited.opened("s0", ack(None))
        assert why(awaited) is None

    def test_one_of_which_nothing_came(self) -> None:
        """A look that ended by a defect of ours keeps nobody waiting."""
        awaited = Awaited(sources(FakeSource))
        awaited.opens("s0")
        awaited.opened("s0", None)
        assert why(awaited) is None

    def test_none_that_anybody_may_hand_in(self) -> None:
        """Whoever may push, or runs a job, must not be able to keep a worker waiting."""
        awaited = Awaited([*sources(FakeSource), FakeSource(PUSH)])
        for origin in (PUSH, COURIER):
            awaited.opens(origin)
            assert why(awaited) is None
            awaited.opened(origin, ack(KeyUnavailableError.code))
            assert why(awaited) is None


MINUTE = timedelta(minutes=1)


@looped
async def test_the_grace_goes_on_for_a_bundle_that_is_here() -> None:
    """Held over the end of the grace nobody is the machine; once it is opened, or refused, the rule is what it was."""
    for outcome in (bundle(session()), SealError("not ours", code="recipient")):
        world = World(policy=Policy(grace=MINUTE))
        world.issuer.answer = lambda call: Issued(aws_credential(call.at, role_name="worker"))
        async with world.running():
            sealed = world.knows(b"one", KeyUnavailableError("away"))
            assert (await world.submit(sealed)).code == KeyUnavailableError.code
            await world.clock.advance(600)
            answer = world.store.answer(Cloud.AWS, world.clock.now())
            assert isinstance(answer, Pending)
            assert "cannot be opened yet" in answer.why
            world.knows(b"one", outcome)
            world.controller.intake.reconsider()
            await settle(60)
            answer = world.store.answer(Cloud.AWS, world.clock.now())
            assert isinstance(answer, Live)
            assert (answer.origin == "bundle") is not isinstance(outcome, SealError)


@looped
async def test_the_grace_goes_on_while_a_bundle_is_being_opened() -> None:
    """A key service is slow: from the moment at which a bundle has come nobody is the machine, whatever else happens."""
    world = World(policy=Policy(grace=MINUTE))
    world.issuer.answer = lambda call: Issued(aws_credential(call.at, role_name="worker"))
    async with world.running():
        world.source.act(lambda _submit, _trouble, fine: fine())  # it was looked at, and had nothing yet
        await world.clock.advance(30)
        world.opener.gate.clear()
        world.source.bring(world.knows(b"one", bundle(session())))
        await world.clock.advance(600)
        answer = world.store.answer(Cloud.AWS, world.clock.now())
        assert isinstance(answer, Pending)
        assert "is being opened" in answer.why
        world.opener.gate.set()
        await settle(60)
        answer = world.store.answer(Cloud.AWS, world.clock.now())
        assert isinstance(answer, Live)
        assert answer.origin == "bundle"


@looped
async def test_of_two_of_one_source_the_newest_is_waited_for() -> None:
    """The verdict on what it brought before, when it comes, neither ends nor begins the wait."""
    for newest, other in (
        (KeyUnavailableError("away"), SealError("not ours", code="recipient")),
        (SealError("not ours", code="recipient"), KeyUnavailableError("away")),
    ):
        world = World(policy=Policy(grace=MINUTE))
        world.issuer.answer = lambda call: Issued(aws_credential(call.at, role_name="worker"))
        slow = world.opener.gates[b"other"] = asyncio.Event()
        async with world.running():
            first = asyncio.create_task(world.submit(world.knows(b"other", other)))
            await settle()
            await world.submit(world.knows(b"newest", newest))
            await world.clock.advance(90)
            slow.set()
            await first
            await world.clock.advance(600)
            answer = world.store.answer(Cloud.AWS, world.clock.now())
            assert isinstance(answer, Pending) is isinstance(newest, KeyUnavailableError)


@looped
@pytest.mark.parametrize("last", ["instance", "project"])
async def test_what_one_part_of_a_source_holds_takes_no_others_place(last: str) -> None:
    """An instance and its project have one each: while one waits for a key, the other's refusal loses it not."""
    world = World(policy=Policy(grace=MINUTE))
    world.issuer.answer = lambda call: Issued(aws_credential(call.at, role_name="worker"))
    world.knows(b"instance", KeyUnavailableError("away"))
    world.knows(b"project", SealError("not ours", code="recipient"))
    async with world.running():
        for part in sorted(("instance", "project"), key=lambda part: part == last):
            await world.submit(part.encode(), part=part)
        await world.clock.advance(600)
        assert isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Pending)
        world.knows(b"instance", bundle(session()))
        await world.clock.advance(600)
        answer = world.store.answer(Cloud.AWS, world.clock.now())
        assert isinstance(answer, Live)
        assert answer.origin == "bundle"


@looped
async def test_what_comes_after_the_grace_takes_nothing_away() -> None:
    """The machine's identity that is served is served on while a first bundle is waited for."""
    world = World(policy=Policy(grace=MINUTE))
    world.issuer.answer = lambda call: Issued(aws_credential(call.at, role_name="worker"))
    async with world.running():
        await world.clock.advance(120)
        await world.submit(world.knows(b"one", KeyUnavailableError("away")))
        await world.clock.advance(600)
        assert isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Live)
