"""What is durable has one owner: taking away waits for nothing, no update is lost, an acknowledgement is the truth."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.controller.noting import NOTE_AGAIN_SECONDS
from agent.core.errors import HostError
from agent.core.model import Action, Cloud, SealedBundle
from agent.core.verdict import Memory, Policy
from agent.core.view import Ended, Live, Pending
from agent.identity.whose import Whose
from tests.fakes.clock import settle
from tests.unit.controller.support import World, events, looped
from tests.unit.identity.worlds import HOUR, bundle, role, session

HERE: dict[str, Any] = {"boot_id": "b:1:1", "firmware": {}}


def view(world: World) -> object:
    return world.store.answer(Cloud.AWS, world.clock.now())


def unwritten(world: World) -> bool:
    return world.controller.durable.unwritten


class TestTakingAway:
    @looped
    async def test_a_stalled_disk_does_not_stand_in_the_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """While the disk hangs a withdrawal is in force at once; it is acknowledged as one that a restart forgets."""
        monkeypatch.setattr("agent.controller.durable.PATIENCE_SECONDS", 0.05)
        world = World()
        async with world.running() as logs:
            await world.submit(world.knows(b"one", bundle(session())))
            world.recorder.gate.clear()
            submission = asyncio.create_task(
                world.controller.intake.submit(
                    SealedBundle(world.knows(b"end", bundle(seq=2, action=Action.WITHDRAW)), "file")
                )
            )
            await settle()
            assert isinstance(view(world), Ended)
            ack = await submission

            assert (ack.outcome, ack.durable) == ("accepted", False)
            assert world.controller.durable.unwritten
            assert "does not answer" in events(logs, "memory.not_written")[0]["reason"]
            world.recorder.gate.set()
            await settle()
            assert unwritten(world) is False
            assert world.recorder.saved[-1] == (world.store.memory, None)
            assert (await world.submit(b"end")).durable

    @looped
    async def test_it_overtakes_an_acceptance_that_waits_for_the_disk(self) -> None:
        """A withdrawal that comes while a bundle is being written takes effect at once; the bundle is not put in force."""
        world = World()
        async with world.running():
            await world.submit(world.knows(b"one", bundle(session())))
            world.recorder.gate.clear()
            two = asyncio.create_task(
                world.controller.intake.submit(SealedBundle(world.knows(b"two", bundle(session(), seq=2)), "file"))
            )
            await settle()
            end = asyncio.create_task(
                world.controller.intake.submit(
                    SealedBundle(world.knows(b"end", bundle(seq=3, action=Action.WITHDRAW)), "push")
                )
            )
            await settle()
            assert isinstance(view(world), Ended)
            world.recorder.gate.set()

            assert (await two).code == "rollback"
            assert (await end).durable
            assert isinstance(view(world), Ended)
            assert world.recorder.saved[-1] == (world.store.memory, None)

    @looped
    async def test_a_key_service_that_hangs_does_not_stand_in_the_way(self) -> None:
        """While another bundle waits for its key, a withdrawal is opened, evaluated and in force."""
        world = World()
        async with world.running():
            await world.submit(world.knows(b"one", bundle(session())))
            world.opener.gate.clear()
            hanging = asyncio.create_task(
                world.controller.intake.submit(SealedBundle(world.knows(b"two", bundle(session(), seq=2)), "file"))
            )
            await settle()
            world.opener.gate = asyncio.Event()
            world.opener.gate.set()
            ack = await world.submit(world.knows(b"end", bundle(seq=3, action=Action.WITHDRAW)), "push")

            assert ack.outcome == "accepted"
            assert isinstance(view(world), Ended)
            hanging.cancel()

    @looped
    async def test_what_a_full_disk_refused_is_written_later(self) -> None:
        """A withdrawal that could not be written is written as soon as the disk takes it."""
        world = World()
        async with world.running():
            await world.submit(world.knows(b"one", bundle(session())))
            world.recorder.trouble = HostError("no space left on device")
            ack = await world.submit(world.knows(b"end", bundle(seq=2, action=Action.WITHDRAW)))
            assert (ack.outcome, ack.durable) == ("accepted", False)
            world.recorder.trouble = None
            await world.clock.advance(61)

            assert world.recorder.saved[-1] == (world.store.memory, None)
            assert (await world.submit(b"end")).durable


class TestWhoseItIs:
    @looped
    async def test_what_came_of_a_defect_is_written_later_too(self) -> None:
        """Whatever the recorder raises, the writer goes on: the acknowledgement says not durable, and it is retried."""
        world = World()
        async with world.running() as logs:
            world.recorder.trouble = OSError(5, "input/output error")
            ack = await world.submit(world.knows(b"one", bundle(session())))
            assert (ack.outcome, ack.durable) == ("accepted", False)
            assert unwritten(world)
            world.recorder.trouble = None
            await world.clock.advance(60)

            assert not unwritten(world)
            assert world.recorder.saved[-1] == (world.store.memory, b"one")
            assert len(events(logs, "memory.crashed")) == 1

    @looped
    async def test_what_is_written_meanwhile_does_not_undo_an_acknowledgement(self) -> None:
        """Somebody has the present state written while a bundle waits for the disk: the disk holds the bundle all the same."""
        world = World()
        async with world.running():
            world.recorder.gate.clear()
            submission = asyncio.create_task(
                world.controller.intake.submit(SealedBundle(world.knows(b"one", bundle(session())), "file"))
            )
            await settle()
            world.controller.durable.write()
            world.recorder.gate.set()
            assert (await submission).durable
            assert world.recorder.saved[-1] == (world.store.memory, b"one")

    @looped
    async def test_the_end_is_the_last_chance_to_write(self) -> None:
        """What the disk refused is written before the process ends, if the disk takes it then; nothing is written twice."""
        world = World()
        async with world.running():
            world.recorder.trouble = HostError("no space")
            await world.submit(world.knows(b"one", bundle(session())))
            world.recorder.trouble = None
            await world.controller.durable.last(1.0)
            assert world.recorder.saved == [(world.store.memory, b"one")]
            await world.controller.durable.last(1.0)
            assert len(world.recorder.saved) == 1

    @looped
    async def test_a_disk_that_hangs_holds_up_no_end(self) -> None:
        """The last chance is a short one."""
        world = World()
        async with world.running():
            world.recorder.trouble = HostError("no space")
            await world.submit(world.knows(b"one", bundle(session())))
            world.recorder.gate.clear()
            await world.controller.durable.last(0.05)
            assert world.recorder.saved == []
            world.recorder.gate.set()

    @looped
    async def test_a_name_learned_while_a_bundle_is_written_is_not_lost(self) -> None:
        """The machine's name comes between the verdict on a bundle and its acceptance: both are in the memory."""
        world = World(memory=Memory())
        async with world.running():
            world.recorder.gate.clear()
            submission = asyncio.create_task(
                world.controller.intake.submit(SealedBundle(world.knows(b"one", bundle(session())), "file"))
            )
            await settle()
            await world.controller.intake.identified(Whose.OURS, "aws:i-7", **HERE)
            world.recorder.gate.set()

            assert (await submission).durable
            assert world.store.memory.instance_id == "aws:i-7"
            assert world.recorder.saved[-1] == (world.store.memory, b"one")

    @looped
    async def test_another_machine_s_memory_is_forgotten_though_a_bundle_is_being_written(self) -> None:
        """A reset between verdict and acceptance stays: what was evaluated by the old memory is evaluated by the new."""
        world = World(memory=Memory("aws:i-old"))
        async with world.running():
            await world.submit(world.knows(b"five", bundle(session(), seq=5)))
            world.recorder.gate.clear()
            submission = asyncio.create_task(
                world.controller.intake.submit(
                    SealedBundle(world.knows(b"six", bundle(session(), seq=6, subject="new")), "file")
                )
            )
            await settle()
            await world.controller.intake.identified(Whose.ANOTHERS, "aws:i-new", **HERE)
            world.recorder.gate.set()
            await submission
            await settle()

            assert world.store.memory.instance_id == "aws:i-new"
            assert [m.subject for m in world.store.memory.marks if m.seq == 6] == ["new"]
            assert world.recorder.saved[-1][0] == world.store.memory

    @looped
    async def test_a_name_is_written_at_once(self) -> None:
        """The name that is learned late is on the disk without waiting for a bundle."""
        world = World(memory=Memory())
        async with world.running():
            await world.controller.intake.identified(Whose.OURS, "aws:i-7", **HERE)
            await settle()

            assert world.recorder.saved[-1][0].instance_id == "aws:i-7"

    @looped
    async def test_while_nothing_tells_whose_it_is_nothing_of_it_is_served(self) -> None:
        """In doubt the clouds are pending; the machine's name ends it either way."""
        first = World()
        one = bundle(session())
        async with first.running():
            await first.submit(first.knows(b"one", one))
        for whose, kind in ((Whose.OURS, Live), (Whose.ANOTHERS, Live)):
            world = World(memory=first.store.memory, policy=Policy())
            world.issuer.answer = lambda call: None
            world.knows(b"one", one)
            async with world.running():
                await world.controller.intake.identified(Whose.UNKNOWN, "", sealed=b"one", **HERE)
                await settle()
                assert isinstance(view(world), Pending)
                await world.controller.intake.identified(whose, "i-1", sealed=b"one", **HERE)
                await settle()
                served = isinstance(view(world), kind)
                assert served is (whose is Whose.OURS)
                assert bool(world.store.memory.marks) is (whose is Whose.OURS)

    @looped
    async def test_what_came_to_a_machine_in_doubt_is_its_own(self) -> None:
        """A bundle accepted before the name was known survives the forgetting of the other machine's memory."""
        first = World()
        async with first.running():
            await first.submit(first.knows(b"one", bundle(session(), seq=9, subject="old")))
        world = World(memory=first.store.memory)
        async with world.running():
            await world.controller.intake.identified(Whose.UNKNOWN, "", sealed=b"one", **HERE)
            assert (await world.submit(world.knows(b"new", bundle(session(), seq=1)))).outcome == "accepted"
            await world.controller.intake.identified(Whose.ANOTHERS, "i-2", **HERE)
            await settle()
            await settle()

            assert isinstance(view(world), Live)
            assert [(m.subject, m.seq) for m in world.store.memory.marks] == [("team", 1)]


class TestOver:
    @looped
    async def test_after_the_lease_nothing_is_asked_of_anybody(self) -> None:
        """Once the lease is over no mint, no renewal, no reading of a base happens, however long the agent runs on."""
        world = World(policy=Policy(fallback=frozenset()))
        async with world.running():
            lease = world.clock.now() + HOUR
            made = bundle(session("base", hours=30), role("r", base="base"), routes={Cloud.AWS: "r"}, lease=lease)
            await world.submit(world.knows(b"one", made))
            await world.clock.advance(3600)
            assert isinstance(view(world), Ended)
            calls = len(world.issuer.calls)
            for _ in range(20):
                await world.clock.advance(1800)

            assert len(world.issuer.calls) == calls


class TestHistory:
    @looped
    async def test_no_memory_waits_for_the_history(self) -> None:
        """While the history hangs on its way to the disk, bundles and withdrawals are written and acknowledged."""
        world = World()
        world.recorder.note_gate.clear()
        async with world.running():
            assert (await world.submit(world.knows(b"one", bundle(session())))).durable
            assert (await world.submit(world.knows(b"two", bundle(session(), seq=2)))).durable
            assert (await world.submit(world.knows(b"end", bundle(seq=3, action=Action.WITHDRAW)))).durable
            assert world.recorder.noted == ()

    @looped
    async def test_what_happens_is_written_now_and_then_and_at_the_end(self) -> None:
        """However often something happens there is one writing in five seconds, and the end leaves nothing out."""
        world = World()

        def noted() -> list[str]:
            return [one.kind for one in world.recorder.noted]

        async with world.running():
            await world.submit(world.knows(b"one", bundle(session())))
            assert noted() == ["identity", "identity"]  # of the start
            await world.clock.advance(NOTE_AGAIN_SECONDS)
            world.controller.step()
            await settle()
            assert noted().count("bundle") == 1
            await world.submit(world.knows(b"two", bundle(session(), seq=2)))
            world.controller.step()
            await settle()
            assert noted().count("bundle") == 1
            await world.controller.durable.last(1.0)
            assert noted().count("bundle") == 2

    @looped
    async def test_the_history_of_another_machine_is_forgotten(self) -> None:
        """A disk that was copied brings no history along: it would be told of a machine on which it never happened."""
        world = World()
        async with world.running():
            await world.submit(world.knows(b"one", bundle(session())))
            world.controller.durable.reset("i-2", "b:1:1", {})
            assert world.controller.history.entries == ()

    @looped
    async def test_a_history_that_cannot_be_written_ends_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A defect of ours there costs the history; the memory is written all the same, at the end too."""

        async def broken(_: object) -> None:
            raise UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed")

        world = World()
        monkeypatch.setattr(world.recorder, "note", broken)
        async with world.running() as logs:
            assert (await world.submit(world.knows(b"one", bundle(session())))).durable
            await world.controller.durable.last(1.0)
            assert events(logs, "work.crashed")
            assert world.recorder.saved[-1][1] == b"one"
