"""The conditions inside the rules of the controller, one a test: each was found by a change that no other test noticed."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from agent.core.counters import MAX_KEYS
from agent.core.errors import Denied, HostError, KeyUnavailableError, SealError
from agent.core.model import Action, Bundle, Cloud
from agent.core.source import STATE, Ack
from agent.core.verdict import CARDS, Mark, Memory, Policy
from agent.core.view import Ended, Facts, Live, Origin, Pending
from agent.identity.whose import Whose
from tests.fakes.clock import START, settle
from tests.unit.controller.support import Issued, World, events, looped
from tests.unit.identity.worlds import aws_credential, bundle, google, session

HERE: dict[str, Any] = {"boot_id": "b:1:1", "firmware": {}}


def accepted() -> tuple[Memory, Bundle]:
    """What an earlier process left: a memory, and the bundle that it names."""
    one = bundle(session())
    mark = Mark("cp", "team", 1, one.digest)
    return Memory("aws:i-1", (mark,), {Cloud.AWS: None}, mark), one


def view(world: World) -> object:
    return world.store.answer(Cloud.AWS, world.clock.now())


class TestAnothersMemory:
    """A machine that was made from another's image, and learns so late."""

    @looped
    async def test_what_was_resumed_does_not_come_back(self) -> None:
        """The first machine's bundle is not evaluated anew as if it had come to this one."""
        memory, one = accepted()
        world = World(memory=memory)
        world.knows(b"one", one)
        await world.controller.intake.resume(b"one")
        assert isinstance(view(world), Live)
        async with world.running():
            await world.controller.intake.identified(Whose.ANOTHERS, "aws:i-2", **HERE)
            await settle(40)

            assert world.store.bundle is None
            assert world.store.memory == Memory("aws:i-2", boot_id="b:1:1")
            assert world.controller.intake.waiting == frozenset()

    @looped
    async def test_what_waited_to_be_resumed_does_not_come_back(self) -> None:
        """A copy whose key was away does not come back, however often everything is looked at again."""
        memory, one = accepted()
        world = World(memory=memory)
        world.knows(b"one", KeyUnavailableError("away"))
        await world.controller.intake.resume(b"one")
        assert world.controller.intake.waiting == {STATE}
        async with world.running():
            await world.controller.intake.identified(Whose.ANOTHERS, "aws:i-2", **HERE)
            world.knows(b"one", one)
            world.controller.intake.reconsider()
            await world.clock.advance(300)

            assert world.store.bundle is None
            assert world.store.memory.marks == ()

    @looped
    async def test_what_came_to_this_one_is_evaluated_anew_at_once(self) -> None:
        """A bundle that a source brought while nobody knew whose the memory is, is in force without another submission."""
        memory, _ = accepted()
        world = World(memory=memory)
        async with world.running():
            await world.submit(world.knows(b"two", bundle(session(), seq=2, subject="this")))
            await world.controller.intake.identified(Whose.ANOTHERS, "aws:i-2", **HERE)
            await settle(60)

            assert isinstance(view(world), Live)
            assert [mark.subject for mark in world.store.memory.marks] == ["this"]


class TestCards:
    """The name is the memory's own, and every network card another one: a copy of the disk, or a machine with a new card."""

    @pytest.mark.parametrize(("name", "ends"), [("aws:i-1", True), ("aws:i-2", False)])
    @looped
    async def test_what_is_brought_ends_the_doubt_for_good(self, name: str, *, ends: bool) -> None:
        """The next start must not set aside what came to this machine. Where the name is another, only a name tells."""
        memory, _ = accepted()
        world = World(memory=memory)
        async with world.running():
            await world.controller.intake.identified(Whose.UNKNOWN, name, boot_id="c:1:1", firmware={CARDS: "d"})
            assert world.store.doubted
            taken = world.knows(b"less", bundle(seq=2, subject="other", action=Action.WITHDRAW))
            assert (await world.submit(taken)).outcome == "accepted"
            assert world.store.doubted
            await world.submit(world.knows(b"two", bundle(session(), seq=2)))
            assert isinstance(view(world), Live)
            assert [world.store.doubted, ends] in ([True, False], [False, True])
            await settle()
        written, _ = world.recorder.saved[-1]
        assert (written.boot_id, written.firmware) == (("c:1:1", {CARDS: "d"}) if ends else ("", {}))
        assert {mark.subject: mark.seq for mark in written.marks} == {"other": 2, "team": 2}


class TestResume:
    @looped
    async def test_a_copy_that_is_refused_keeps_nobody_waiting(self) -> None:
        """A cloud whose copy turned out to be another is closed with a reason, not pending for ever."""
        memory, _ = accepted()
        world = World(memory=memory)
        world.knows(b"one", bundle(session(), salt="x"))
        await world.controller.intake.resume(b"one")

        assert isinstance(view(world), Ended)

    @looped
    async def test_while_a_copy_is_opened_it_is_waited_for(self) -> None:
        """A key service takes its time: the cloud is pending until then, and neither closed nor the machine's."""
        memory, one = accepted()
        world = World(memory=memory)
        world.knows(b"one", one)
        world.opener.gate.clear()
        resuming = asyncio.create_task(world.controller.intake.resume(b"one"))
        await settle()
        answer = view(world)
        assert isinstance(answer, Pending)
        assert "is being opened" in answer.why
        world.opener.gate.set()
        await resuming
        assert isinstance(view(world), Live)

    @pytest.mark.parametrize("keys", [True, False])
    @looped
    async def test_nothing_to_resume_is_no_trouble(self, *, keys: bool) -> None:
        """No memory of a bundle, no copy of it, or no key: nothing is opened and nothing is pending."""
        memory, _ = accepted()
        for found, sealed in ((Memory("i-1"), b"one"), (memory, None)):
            world = World(memory=found, keys=keys)
            await world.controller.intake.resume(sealed)
            assert world.opener.opened == []
            assert not isinstance(view(world), Live)
        without = World(memory=memory, keys=False)
        await without.controller.intake.resume(b"one")
        assert without.store.origin(Cloud.AWS, without.clock.now()) is Origin.CLOSED

    @looped
    async def test_without_a_key_nothing_is_reviewed(self) -> None:
        """A review of what cannot be opened takes nothing away."""
        world = World(keys=False)
        async with world.running():
            world.controller.intake.review()
            await settle()
            assert world.controller.intake.last_refusal is None


class TestTime:
    @looped
    async def test_whoever_hears_of_a_step_moves_what_was_counted_at_once(self) -> None:
        """Before the loop goes round: no reader sees a new time beside old deadlines."""
        world = World(policy=Policy(grace=timedelta(minutes=10)))
        before = world.store.state.grace_until
        world.clock.set_utc(world.clock.now() + timedelta(hours=1))
        world.controller.time_moved()
        assert world.store.state.grace_until == before + timedelta(hours=1)


class TestCounters:
    @looped
    async def test_each_renewal_is_counted_by_its_cloud_and_outcome(self) -> None:
        """What alerts divide: issued, failed and denied, of each cloud."""
        world = World()
        outcome: dict[str, Issued | Exception] = {Cloud.AWS: Issued(aws_credential(START)), Cloud.GCP: Denied("no")}
        world.issuer.answer = lambda call: outcome[call.cloud]  # type: ignore[index]
        async with world.running():
            await settle(40)
        assert world.controller.counters.renewals == {"aws:issued": 1, "gcp:denied": 1}


class TestDisk:
    @looped
    async def test_a_disk_that_hangs_is_told_though_nobody_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name that cannot be written down is an alarm: no acknowledgement would tell."""
        monkeypatch.setattr("agent.controller.durable.PATIENCE_SECONDS", 0.0)
        world = World()
        async with world.running() as logs:
            world.recorder.gate.clear()
            await world.controller.intake.identified(Whose.OURS, "aws:i-7", **HERE)
            await settle()
            assert world.controller.durable.unwritten
            assert len(events(logs, "memory.not_written")) == 1
            world.recorder.gate.set()
            await settle()
            assert not world.controller.durable.unwritten
            assert len(events(logs, "memory.written")) == 1

    @looped
    async def test_what_was_written_is_not_written_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A retry writes what the disk refused, once; and neither what it has nor what it is being given."""
        world = World()
        async with world.running():
            await world.submit(world.knows(b"one", bundle(session())))
            world.controller.durable.retry()
            await settle()
            assert len(world.recorder.saved) == 1
            world.recorder.trouble = HostError("full")
            world.controller.durable.write()
            await settle()
            assert world.controller.durable.unwritten
            world.recorder.trouble = None
            world.recorder.gate.clear()
            world.controller.durable.retry()
            await settle()
            world.controller.durable.retry()
            world.recorder.gate.set()
            await settle()
            assert world.recorder.saved == [(world.store.memory, b"one")] * 2
            assert not world.controller.durable.unwritten

    @looped
    async def test_no_word_of_a_disk_that_never_failed(self) -> None:
        """That it was written is news only after it could not be."""
        world = World()
        async with world.running() as logs:
            await world.submit(world.knows(b"one", bundle(session())))
            assert events(logs, "memory.written") == []


class TestLoop:
    @looped
    async def test_where_the_machine_stands_is_said_to_clients(self) -> None:
        """What the real metadata said is in the facts at once."""
        world = World()
        world.controller.observe(Facts(region="eu-west-1"))
        assert world.store.facts().region == "eu-west-1"

    @looped
    async def test_a_first_bundle_is_waited_for_anew(self) -> None:
        """Where what would bring it could not be asked, the wait begins when it can be: then the machine serves."""
        world = World()
        world.issuer.answer = lambda call: Issued(aws_credential(call.at)) if call.cloud is Cloud.AWS else None
        async with world.running():
            await settle()
            assert isinstance(view(world), Live)
            changes = world.changes
            world.controller.await_bundle(30)
            await settle()
            assert isinstance(view(world), Pending)
            assert world.changes > changes  # the listeners look again without waiting for anything else
            await world.clock.advance(29)
            assert isinstance(view(world), Pending)
            await world.clock.advance(1)
            assert isinstance(view(world), Live)

    @looped
    async def test_failures_are_counted_by_their_code(self) -> None:
        """By grant and code; each is one."""
        world = World()
        world.issuer.answer = lambda _: Denied("no", code="AccessDenied")
        async with world.running():
            await settle()
            counted = world.controller.counters.failures
            assert len(counted) == 2
            assert all(key.endswith(":AccessDenied") and count == 1 for key, count in counted.items())

    @looped
    async def test_the_latest_successes_are_remembered_and_no_more(self) -> None:
        """A grant of another name in each bundle makes no table that grows without end."""
        world = World()
        world.issuer.answer = lambda call: Issued(aws_credential(call.at))
        last = world.controller.counters.last_issued
        last.update({f"aws:old-{n}": START for n in range(MAX_KEYS)})
        async with world.running():
            await settle()
            assert len(last) == MAX_KEYS
            assert "aws:old-0" not in last
            assert "aws:instance" in last

    @looped
    async def test_what_was_refused_twice_is_counted_once(self) -> None:
        """Looked at again and refused again, the same bytes are no second refusal."""
        world = World()
        async with world.running():
            world.knows(b"bad", SealError("no", code="recipient"))
            await world.submit(b"bad")
            world.controller.intake.reconsider()
            await settle(40)
            assert world.controller.counters.refused == {"recipient": 1}
            assert isinstance(world.controller.intake.last_refusal, Ack)


class TestScoped:
    @looped
    async def test_a_finished_token_narrows_nothing(self) -> None:
        """Nobody is asked for what the ordinary token answers: of a bare token, or where Google is not served."""
        world = World()
        scoped = world.controller.issuing.scoped
        wish = ("https://www.googleapis.com/auth/devstorage.read_only",)
        async with world.running():
            await world.submit(world.knows(b"one", bundle(google())))
            assert await scoped.mint(wish) is None
            assert list(scoped.held(world.clock.now())) == []
