"""The ways in: opening, evaluating, remembering and telling, one submission at a time."""

from __future__ import annotations

import asyncio
import errno
from datetime import datetime, timedelta

import pytest

from agent.core.errors import (
    BundleError,
    HostError,
    KeyUnavailableError,
    PayloadError,
    SealError,
    SourceError,
)
from agent.core.model import Action, Bundle, Cloud, Env, SealedBundle
from agent.core.secret import Secret
from agent.core.verdict import Mark, Memory, Policy
from agent.core.view import Ended, Live, Origin
from tests.fakes.clock import START, settle
from tests.unit.controller.support import FakeSource, World, events, looped
from tests.unit.identity.worlds import HOUR, bundle, google, session

MINUTE = timedelta(minutes=1)


def key_of(world: World, cloud: Cloud = Cloud.AWS) -> str | None:
    """The access key id that is served now."""
    answer = world.store.answer(cloud, world.clock.now())
    return getattr(answer.credential, "access_key_id", None) if isinstance(answer, Live) else None


class TestVerdicts:
    @looped
    async def test_an_accepted_bundle_is_in_force_and_acknowledged(self) -> None:
        """What is accepted serves at once, and its source hears who, what and which number."""
        world = World()
        async with world.running() as logs:
            ack = await world.submit(world.knows(b"one", bundle(session(), seq=7)))

            assert (ack.outcome, ack.seq, ack.issuer, ack.subject, ack.bundle_id) == ("accepted", 7, "cp", "team", "b7")
            assert world.source.acks == [ack]
            assert key_of(world) == "ASIAUSER000000000000"
            assert events(logs, "bundle.accepted")[0]["seq"] == 7
            assert world.controller.counters.accepted == 1

    @looped
    async def test_what_is_not_confirmed_is_told_so_and_to_a_source_once_it_is_true(self) -> None:
        """A process that answers workers hangs, say: nobody hears "accepted" before it serves so, or has ended."""
        world = World()
        async with world.running():
            world.unconfirmed = [False]
            ack = await world.submit(world.knows(b"one", bundle(session(), seq=7)))
            assert (ack.outcome, ack.confirmed) == ("accepted", False)
            assert world.source.acks == []
            await world.clock.advance(300.0)
            assert [(one.outcome, one.confirmed) for one in world.source.acks] == [("accepted", True)]

    @looped
    async def test_of_what_is_not_confirmed_a_source_hears_of_the_newest(self) -> None:
        """While a process hangs nothing piles up by what comes meanwhile, and no verdict overtakes a later one.

        A verdict on what is in another place of that source (the project's attribute, say) is no later one, and is not
        to be taken for it.
        """
        world = World()
        async with world.running():
            world.unconfirmed = [False] * 8
            for seq in (7, 8, 9):
                await world.submit(world.knows(b"%d" % seq, bundle(session(), seq=seq)))
            assert world.source.acks == []
            theirs = world.knows(b"theirs", SealError("no key of ours opens it", code="recipient"))
            await world.submit(theirs, part="project")
            for _ in range(8):
                await world.clock.advance(300.0)
            told = [(one.part, one.outcome, one.seq) for one in world.source.acks]
            assert told == [("project", "refused", None), ("", "accepted", 9)]

    @looped
    async def test_a_refusal_needs_nobody_to_confirm_it(self) -> None:
        """Nothing is served otherwise by it."""
        world = World()
        async with world.running():
            world.unconfirmed = [False]
            ack = await world.submit(world.knows(b"two", SealError("no key of ours opens it", code="recipient")))
            assert (ack.outcome, ack.confirmed) == ("refused", True)
            assert world.source.acks == [ack]

    @looped
    async def test_a_refusal_changes_nothing_and_names_its_code(self) -> None:
        """A bundle that does not open leaves what is served, is counted by its code, and is told back."""
        world = World()
        async with world.running() as logs:
            await world.submit(world.knows(b"one", bundle(session())))
            ack = await world.submit(world.knows(b"two", SealError("no key of ours opens it", code="recipient")))

            assert (ack.outcome, ack.code, ack.seq) == ("refused", "recipient", None)
            assert key_of(world) == "ASIAUSER000000000000"
            assert world.controller.counters.refused == {"recipient": 1}
            assert world.controller.intake.last_refusal == ack
            assert [line["code"] for line in events(logs, "bundle.refused")] == ["recipient"]
            assert len(world.recorder.saved) == 1

    @looped
    async def test_a_conflict_is_an_error_in_the_log(self) -> None:
        """Two contents with one number are an alarm: someone must look, so it is logged as an error."""
        world = World()
        async with world.running() as logs:
            await world.submit(world.knows(b"one", bundle(session())))
            ack = await world.submit(world.knows(b"two", bundle(session(key="ASIAEVIL000000000000"), salt="x")))

            assert ack.code == "conflict"
            assert [line["log_level"] for line in events(logs, "bundle.refused")] == ["error"]
            assert key_of(world) == "ASIAUSER000000000000"

    @looped
    async def test_the_same_again_is_nothing_new(self) -> None:
        """The same content again is neither written down nor put in force a second time."""
        world = World()
        async with world.running():
            await world.submit(world.knows(b"one", bundle(session())))
            version = world.store.version
            ack = await world.submit(world.knows(b"other seal of one", bundle(session())))

            assert ack.outcome == "same"
            assert len(world.recorder.saved) == 1
            assert world.store.version == version
            assert world.controller.counters.same == 1

    @looped
    async def test_without_a_key_every_submission_is_refused(self) -> None:
        """An agent without a key says so, rather than that the bundle is bad."""
        world = World(keys=False)
        async with world.running():
            ack = await world.submit(b"one")

            assert (ack.outcome, ack.code) == ("refused", "recipient")
            assert "no key" in str(ack.reason)

    @looped
    async def test_submissions_are_evaluated_one_at_a_time(self) -> None:
        """Two acceptances at once never overlap: the memory is written between a verdict and the act."""
        world = World()
        for number in range(1, 21):
            world.knows(b"%d" % number, bundle(session(), seq=number))
        async with world.running():
            acks = await asyncio.gather(
                *(world.controller.intake.submit(SealedBundle(b"%d" % number, "file")) for number in range(1, 21))
            )

            assert [ack.outcome for ack in acks] == ["accepted"] * 20
            assert [memory.marks[0].seq for memory, _ in world.recorder.saved] == list(range(1, 21))

    @looped
    async def test_concurrent_submissions_in_any_order_end_at_the_highest(self) -> None:
        """Whatever the order in which channels deliver, the highest number is in force at the end."""
        world = World()
        for number in (5, 3, 9, 1):
            world.knows(b"%d" % number, bundle(session(key=f"ASIAUSER00000000000{number}"), seq=number))
        async with world.running():
            acks = await asyncio.gather(
                *(world.controller.intake.submit(SealedBundle(b"%d" % number, "file")) for number in (5, 3, 9, 1))
            )

            assert [ack.outcome for ack in acks] == ["accepted", "refused", "accepted", "refused"]
            assert key_of(world) == "ASIAUSER000000000009"

    @looped
    async def test_a_source_that_cannot_acknowledge_stops_nothing(self) -> None:
        """A way back that is broken costs the acknowledgement and nothing else."""

        class Deaf(FakeSource):
            async def acknowledge(self, ack: object) -> None:
                raise OSError("no way back")

        world = World(sources=[Deaf()])
        async with world.running():
            ack = await world.submit(world.knows(b"one", bundle(session())))
            again = await world.submit(world.knows(b"two", bundle(session(), seq=2)))

            assert (ack.outcome, again.outcome) == ("accepted", "accepted")

    @looped
    async def test_a_source_that_is_never_done_with_it_stops_nothing(self) -> None:
        """An acknowledgement that hangs for ever holds up no bundle, no withdrawal and no end."""
        begun = 0

        class Hanging(FakeSource):
            async def acknowledge(self, ack: object) -> None:
                nonlocal begun
                begun += 1
                await asyncio.Event().wait()

        world = World(sources=[Hanging()])
        async with world.running():
            for number in range(1, 40):
                ack = await world.submit(world.knows(b"%d" % number, bundle(session(), seq=number)))
                assert ack.outcome == "accepted"
            ack = await world.submit(world.knows(b"end", bundle(seq=40, action=Action.WITHDRAW)))
            assert ack.outcome == "accepted"
            await settle()
        assert begun == 40

    @looped
    async def test_grants_of_unknown_types_are_told(self) -> None:
        """A grant that this version does not know is in nobody's way, and logged by id and type."""
        from agent.core.model import SetAside

        world = World()
        known = bundle(session())
        strange = type(known)(
            **{
                **{name: getattr(known, name) for name in known.__struct_fields__},
                "set_aside": (SetAside("x", "azure-token"),),
            }
        )
        async with world.running() as logs:
            await world.submit(world.knows(b"one", strange))

            told = events(logs, "grant.set_aside")
            assert [(line["grant"], line["type"]) for line in told] == [("x", "azure-token")]


class TestMemory:
    @looped
    async def test_it_is_written_before_the_bundle_is_in_force(self) -> None:
        """The memory is on the disk before the first answer changes: a crash between the two forgets nothing."""
        world = World()
        seen: list[object] = []
        world.recorder.before = lambda: seen.append(key_of(world))
        async with world.running():
            await world.submit(world.knows(b"one", bundle(session())))

            assert seen == [None]
            memory, sealed = world.recorder.saved[0]
            assert memory.marks == (Mark("cp", "team", 1, memory.marks[0].digest, memory.marks[0].issued_at),)
            assert sealed == b"one"
            assert key_of(world) is not None

    @looped
    async def test_nothing_is_acknowledged_before_it_is_written(self) -> None:
        """While the disk is slow the submission waits; an acknowledged number is always on the disk."""
        world = World()
        world.recorder.gate.clear()
        async with world.running():
            submission = asyncio.create_task(
                world.controller.intake.submit(SealedBundle(world.knows(b"one", bundle(session())), "file"))
            )
            await settle()

            assert not submission.done()
            assert key_of(world) is None
            world.recorder.gate.set()
            assert (await submission).outcome == "accepted"

    @looped
    async def test_a_slow_disk_holds_up_nobody_else(self) -> None:
        """What is served goes on, and credentials go on being issued, while a memory is being written."""
        world = World()
        async with world.running():
            await world.submit(world.knows(b"one", bundle(session())))
            world.recorder.gate.clear()
            submission = asyncio.create_task(
                world.controller.intake.submit(SealedBundle(world.knows(b"two", bundle(session(), seq=2)), "file"))
            )
            await settle()
            calls = len(world.issuer.calls)
            await world.clock.advance(600)

            assert key_of(world) == "ASIAUSER000000000000"
            assert len(world.issuer.calls) > calls
            world.recorder.gate.set()
            await submission

    @looped
    async def test_a_full_disk_does_not_keep_a_worker_from_its_identity(self) -> None:
        """When the memory cannot be written the bundle serves all the same, and somebody is told."""
        world = World()
        world.recorder.trouble = HostError("/var/lib: cannot be written: no space left on device")
        async with world.running() as logs:
            ack = await world.submit(world.knows(b"one", bundle(session())))

            assert ack.outcome == "accepted"
            assert key_of(world) == "ASIAUSER000000000000"
            assert world.controller.durable.unwritten
            assert "no space left" in events(logs, "memory.not_written")[0]["reason"]

            world.recorder.trouble = None
            await world.submit(world.knows(b"two", bundle(session(), seq=2)))
            assert not world.controller.durable.unwritten

    @looped
    async def test_a_memory_that_could_not_be_written_is_written_later(self) -> None:
        """A disk that was full for a while costs nothing lasting: the memory is written when there is room again."""
        world = World()
        world.recorder.trouble = HostError("no space left on device")
        async with world.running():
            await world.submit(world.knows(b"one", bundle(session())))
            world.recorder.trouble = None
            await world.clock.advance(120)

            assert not world.controller.durable.unwritten
            memory, sealed = world.recorder.saved[-1]
            assert memory == world.store.memory
            assert sealed == b"one"

    @looped
    async def test_a_submission_whose_asker_leaves_is_finished(self) -> None:
        """A push whose client hangs up in the middle is evaluated to its end: never written and yet not in force."""
        world = World()
        world.recorder.gate.clear()
        async with world.running():
            submission = asyncio.create_task(
                world.controller.intake.submit(SealedBundle(world.knows(b"one", bundle(session())), "file"))
            )
            await settle()
            submission.cancel()
            await settle()
            world.recorder.gate.set()
            await settle()

            assert len(world.recorder.saved) == 1
            assert key_of(world) == "ASIAUSER000000000000"
            assert (await world.submit(b"one")).outcome == "same"


class TestWithdrawal:
    @looped
    async def test_it_purges_and_sticks(self) -> None:
        """A withdrawal takes the credential and the variables at once, drops the sealed copy, and stays."""
        world = World()
        async with world.running() as logs:
            await world.submit(world.knows(b"one", bundle(session(), Env(id="e", variables={"A": Secret("1")}))))
            ack = await world.submit(world.knows(b"end", bundle(seq=2, action=Action.WITHDRAW)))

            assert (ack.outcome, ack.reason) == ("accepted", None)
            assert isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Ended)
            assert world.store.variables(world.clock.now()) == {}
            memory, sealed = world.recorder.saved[-1]
            assert sealed is None
            assert memory.active is None
            assert Cloud.AWS in memory.decided
            assert events(logs, "bundle.withdrawn")
            assert events(logs, "identity.ended")

            await world.clock.advance(24 * 3600)
            assert isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Ended)
            assert (await world.submit(b"one")).code == "rollback"

    @looped
    async def test_one_of_another_stream_keeps_the_bundle_in_force_on_disk(self) -> None:
        """A withdrawal by a stream that is not in force is remembered, and the sealed copy of the other is kept."""
        world = World()
        async with world.running():
            await world.submit(world.knows(b"one", bundle(session())))
            ack = await world.submit(world.knows(b"end", bundle(seq=9, action=Action.WITHDRAW, subject="other")))
            again = await world.submit(b"end")

            # Whoever withdraws in an incident must not take "accepted" for "gone".
            assert (ack.outcome, again.outcome) == ("accepted", "same")
            assert "stays in force" in (ack.reason or "")
            assert again.reason == ack.reason
            memory, sealed = world.recorder.saved[-1]
            assert sealed == b"one"
            assert memory.active is not None
            assert memory.active.subject == "team"
            assert key_of(world) is not None

    @looped
    async def test_a_late_result_does_not_bring_it_back(self) -> None:
        """A credential that was under way when the withdrawal came is dropped on arrival."""
        from tests.unit.controller.support import Issued
        from tests.unit.identity.worlds import aws_credential, role

        world = World(policy=Policy(fallback=frozenset()))
        world.issuer.answer = lambda call: Issued(aws_credential(call.at))
        async with world.running():
            await world.submit(
                world.knows(b"one", bundle(session("base"), role("r", base="base"), routes={Cloud.AWS: "r"}))
            )
            world.issuer.gate.clear()
            await world.clock.advance(3600)
            assert world.issuer.asked("r") >= 2
            await world.submit(world.knows(b"end", bundle(seq=2, action=Action.WITHDRAW)))
            world.issuer.gate.set()
            await settle()

            assert isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Ended)
            assert world.store.held() == []


class TestAnotherTry:
    @looped
    async def test_a_key_that_is_away_is_asked_again(self) -> None:
        """A bundle whose key service is unreachable is held, tried again with backoff, and accepted when it returns."""
        world = World()
        world.knows(b"one", KeyUnavailableError("the KMS did not answer"))
        async with world.running() as logs:
            ack = await world.submit(b"one")
            assert ack.code == "key-unavailable"
            await world.clock.advance(60)
            tries = len(world.opener.opened)
            assert 3 <= tries <= 61
            assert len(events(logs, "bundle.held")) == 1

            world.knows(b"one", bundle(session()))
            await world.clock.advance(70)

            assert key_of(world) == "ASIAUSER000000000000"
            assert world.source.acks[-1].outcome == "accepted"

    @looped
    async def test_the_newest_of_a_source_takes_the_place_of_the_held(self) -> None:
        """Each source has one place: what it brought later is not overtaken by what was held."""
        world = World()
        world.knows(b"one", KeyUnavailableError("away"))
        async with world.running():
            await world.submit(b"one")
            await world.submit(world.knows(b"two", bundle(session(), seq=2)))
            opened = len(world.opener.opened)
            await world.clock.advance(600)

            assert len(world.opener.opened) == opened

    @looped
    async def test_what_is_too_early_is_tried_again(self) -> None:
        """A bundle that is not yet valid is looked at again each minute, counted once, and accepted in its time."""
        world = World()

        def early(now: datetime, _: str | None) -> Bundle:
            if now < START + 10 * MINUTE:
                raise PayloadError("it is not valid yet", code="not-yet-valid")
            return bundle(session())

        world.knows(b"one", early)
        async with world.running() as logs:
            assert (await world.submit(b"one")).code == "not-yet-valid"
            await world.clock.advance(9 * 60)
            assert key_of(world) is None
            assert world.controller.counters.refused == {"not-yet-valid": 1}
            await world.clock.advance(2 * 60 + 1)

            assert key_of(world) == "ASIAUSER000000000000"
            assert len(events(logs, "bundle.refused")) == 1

    @looped
    async def test_what_a_service_alone_refused_is_tried_again_now_and_then(self) -> None:
        """A bundle that only a key service's word refuses is looked at again each five minutes, and told once."""
        world = World()

        def erring(now: datetime, _: str | None) -> Bundle:
            if now < START + 8 * MINUTE:
                error = SealError("made for another key, or altered", code="unwrap")
                error.doubtful = True
                raise error
            return bundle(session())

        world.knows(b"one", erring)
        async with world.running() as logs:
            assert (await world.submit(b"one")).code == "unwrap"
            await world.clock.advance(7 * 60)
            assert key_of(world) is None
            assert len(world.opener.opened) == 2
            await world.clock.advance(4 * 60)

            assert key_of(world) == "ASIAUSER000000000000"
            assert world.controller.counters.refused == {"unwrap": 1}
            assert len(events(logs, "bundle.refused")) == 1

    @looped
    async def test_what_a_key_of_our_own_refused_is_not_tried_again(self) -> None:
        """Bytes that a key in memory does not open cost nothing more until something here changes."""
        world = World()
        world.knows(b"one", SealError("made for another key, or altered", code="unwrap"))
        async with world.running():
            await world.submit(b"one")
            await world.clock.advance(3600)
            assert len(world.opener.opened) == 1

    @looped
    async def test_reconsider_looks_again_at_what_was_refused(self) -> None:
        """When the keys or the trust changed, what each source brought last is evaluated anew without being brought."""
        world = World()
        world.knows(b"one", SealError("no key of ours opens it", code="recipient"))
        async with world.running():
            await world.submit(b"one")
            await world.clock.advance(3600)
            assert len(world.opener.opened) == 1
            world.knows(b"one", bundle(session()))
            world.controller.intake.reconsider()
            await settle()

            assert key_of(world) == "ASIAUSER000000000000"

    @looped
    async def test_a_corrected_clock_reconsiders(self) -> None:
        """A bundle refused by a wrong clock is evaluated anew once a cloud's Date has mended the clock."""
        world = World()

        def by_time(now: datetime, _: str | None) -> Bundle:
            if now > START + HOUR:
                raise PayloadError("its last acceptance has passed", code="expired")
            return bundle(google())

        world.knows(b"one", by_time)
        world.clock.set_utc(START + 5 * HOUR)
        world.issuer.gate.clear()
        async with world.running() as logs:
            assert (await world.submit(b"one")).code == "expired"
            world.issuer.gate.set()
            world.clock.set_utc(START)
            world.controller.time_moved()
            await world.clock.advance(1)

            assert events(logs, "clock.corrected")[-1]["seconds"] == -18000.0
            assert isinstance(world.store.answer(Cloud.GCP, world.clock.now()), Live)

    @looped
    async def test_strangers_cannot_pile_up(self) -> None:
        """What comes from no configured source is not held: nobody can fill the memory with it."""
        world = World()
        async with world.running():
            for number in range(100):
                data = world.knows(b"x%d" % number, KeyUnavailableError("away"))
                await world.submit(data, origin=f"stranger-{number}")

            assert world.controller.intake.waiting == frozenset()


class TestResume:
    def memory(self, world: World | None = None) -> tuple[Memory, Bundle]:
        one = bundle(session())
        mark = Mark("cp", "team", 1, one.digest)
        return Memory("i-1", (mark,), {Cloud.AWS: None}, mark), one

    @looped
    async def test_what_was_in_force_is_in_force_again(self) -> None:
        """The sealed copy serves after a restart, opened as what was accepted before, without a source."""
        memory, one = self.memory()
        world = World(memory=memory)
        world.knows(b"one", one)
        await world.controller.intake.resume(b"one")

        assert world.opener.opened == [(b"one", one.digest)]
        assert key_of(world) == "ASIAUSER000000000000"
        assert world.recorder.saved == []

    @pytest.mark.parametrize("refusal", [SealError("tampered", code="content"), PayloadError("x", code="changed")])
    @looped
    async def test_a_copy_that_does_not_open_leaves_the_cloud_closed(self, refusal: BundleError) -> None:
        """When the copy was touched or the key is gone, the sticky rule answers: closed, never the machine's."""
        memory, _ = self.memory()
        world = World(memory=memory)
        world.knows(b"one", refusal)
        await world.controller.intake.resume(b"one")

        assert world.store.origin(Cloud.AWS, world.clock.now()) is Origin.CLOSED

    @looped
    async def test_a_copy_of_something_else_is_not_taken(self) -> None:
        """A copy that opens to other content than the mark says is refused."""
        memory, _ = self.memory()
        world = World(memory=memory)
        world.knows(b"one", bundle(session(key="ASIAEVIL000000000000"), salt="x"))
        await world.controller.intake.resume(b"one")

        assert key_of(world) is None

    @looped
    async def test_a_key_service_that_is_away_at_the_start(self) -> None:
        """When the key service does not answer at the start the copy is tried again until it does."""
        memory, one = self.memory()
        world = World(memory=memory)
        world.knows(b"one", KeyUnavailableError("away"))
        await world.controller.intake.resume(b"one")
        async with world.running():
            await world.clock.advance(30)
            assert key_of(world) is None
            world.knows(b"one", one)
            await world.clock.advance(70)

            assert key_of(world) == "ASIAUSER000000000000"
            assert world.opener.opened[-1] == (b"one", one.digest)

    @looped
    async def test_the_same_is_taken_after_its_last_acceptance(self) -> None:
        """When the copy was lost, the very bundle that was accepted is taken again from its source, however old."""
        memory, one = self.memory()
        world = World(memory=memory)

        def late(_: datetime, accepted_digest: str | None) -> Bundle:
            if accepted_digest != one.digest:
                raise PayloadError("its last acceptance has passed", code="expired")
            return one

        world.knows(b"one", late)
        async with world.running():
            assert (await world.submit(b"one")).outcome == "accepted"
            assert key_of(world) == "ASIAUSER000000000000"

    @looped
    async def test_the_lease_bounds_a_resumed_bundle(self) -> None:
        """A bundle whose lease ended while the worker was down is resumed as ended, not served."""
        one = bundle(session(), lease=START + HOUR)
        mark = Mark("cp", "team", 1, one.digest)
        world = World(memory=Memory("i-1", (mark,), {Cloud.AWS: None}, mark))
        world.knows(b"one", one)
        world.clock.set_utc(START + 2 * HOUR)
        await world.controller.intake.resume(b"one")

        answer = world.store.answer(Cloud.AWS, world.clock.now())
        assert isinstance(answer, Ended)
        assert "lease" in answer.why


class OnTheMachine(FakeSource):
    awaited_in = tuple(Cloud)


class TestSources:
    @looped
    async def test_trouble_is_logged_once_a_change_and_counted_each_time(self) -> None:
        """A source that is down for a night fills no journal, and its failures are counted."""
        world = World()
        async with world.running() as logs:
            for _ in range(50):
                world.source.act(lambda _submit, trouble, _ok: trouble(SourceError("connection refused", hint="look")))
            await settle(200)
            (told,) = events(logs, "source.failed")
            assert (told["reason"], told["hint"]) == ("connection refused", "look")
            assert world.controller.counters.source_troubles == {"file": 50}
            assert world.controller.source_state["file"] == "connection refused"

            world.source.act(lambda _submit, _trouble, ok: ok())
            await settle()
            assert len(events(logs, "source.recovered")) == 1
            assert world.controller.source_state["file"] == "ok"

    @looped
    async def test_a_source_that_crashes_ends_nobody(self) -> None:
        """A source with a bug in it is logged, started anew with backoff, and the others go on."""
        good, bad = FakeSource("good"), FakeSource("bad")
        bad.crash = ZeroDivisionError("a bug")
        world = World(sources=[good, bad])
        async with world.running() as logs:
            good.bring(world.knows(b"one", bundle(session())))
            await world.clock.advance(3600)

            assert key_of(world) == "ASIAUSER000000000000"
            assert 5 <= bad.watches <= 500
            assert events(logs, "source.crashed")[0]["error"] == "ZeroDivisionError"
            assert "crashed" in world.controller.source_state["bad"]

            bad.crash = None
            await world.clock.advance(600)
            bad.bring(world.knows(b"two", bundle(session(), seq=2)))
            await settle()
            assert world.store.bundle is not None
            assert world.store.bundle.seq == 2

    @pytest.mark.parametrize(
        ("crash", "waits"),
        [
            (ZeroDivisionError("a bug"), False),
            (OSError(errno.EIO, "a bug"), False),
            (MemoryError(), True),
            (OSError(errno.EAGAIN, "no thread"), True),
            (OSError(errno.EMFILE, "no descriptor"), True),
            (ExceptionGroup("two looks", [ExceptionGroup("one", [MemoryError()]), ValueError()]), True),
            (ExceptionGroup("two looks", [ValueError(), ZeroDivisionError()]), False),
        ],
        ids=repr,
    )
    @looped
    async def test_a_crash_for_want_of_means_says_nothing_of_the_source(self, crash: Exception, waits: bool) -> None:
        """It may hold the first bundle as before, and is waited for; not so where a bug of ours reads it."""
        source = OnTheMachine("bad")
        source.crash = crash
        world = World(sources=[source])
        async with world.running():
            await world.clock.advance(3600)
            assert set(world.controller.intake.awaited.why) == (set(Cloud) if waits else set())

            source.crash = None
            await world.clock.advance(600)
            source.act(lambda _submit, _trouble, ok: ok())
            await settle()
            assert world.controller.intake.awaited.why == {}

    @looped
    async def test_silence_changes_nothing(self) -> None:
        """A source that falls silent or says that it is broken withdraws nothing."""
        world = World()
        async with world.running():
            world.source.bring(world.knows(b"one", bundle(session(hours=12))))
            await settle()
            world.source.act(lambda _submit, trouble, _ok: trouble(SourceError("gone")))
            await world.clock.advance(11 * 3600)

            assert key_of(world) == "ASIAUSER000000000000"


@looped
async def test_a_refusal_is_shown_until_it_no_longer_matters() -> None:
    """Until the same source brings one that is taken, or any other but a courier does; the same as before mends its own."""
    world = World()
    intake = world.controller.intake
    async with world.running():
        first = world.knows(b"one", bundle(session()))
        await intake.submit(SealedBundle(b"nonsense", "file"))
        assert intake.last_refusal is not None
        await intake.submit(SealedBundle(first, "courier"))
        assert intake.last_refusal is not None
        await intake.submit(SealedBundle(first, "push"))
        assert intake.last_refusal is not None
        await intake.submit(SealedBundle(first, "file"))
        assert intake.last_refusal is None
        await intake.submit(SealedBundle(b"nonsense", "file"))
        await intake.submit(SealedBundle(world.knows(b"two", bundle(session(), seq=2)), "push"))
        assert intake.last_refusal is None
