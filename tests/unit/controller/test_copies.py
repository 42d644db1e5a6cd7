"""Our own copy of what was in force before a restart, while its key service is silent; and what is told of a refusal."""

from __future__ import annotations

import asyncio

import pytest

from agent.core.errors import KeyUnavailableError, SealError, UnreadableError
from agent.core.model import Cloud, SealedBundle
from agent.core.verdict import Policy
from agent.core.view import Ended, Pending
from tests.fakes.clock import settle
from tests.unit.controller.support import World, events, looped
from tests.unit.identity.worlds import bundle, session

AWAY = KeyUnavailableError("the KMS did not answer")
NOT_OURS = SealError("it is sealed to other keys", code="recipient")


async def restarted() -> World:
    """A process whose memory names a bundle of before, which cannot be opened just now."""
    before = World()
    async with before.running():
        await before.submit(before.knows(b"one", bundle(session())))
    world = World(policy=Policy(fallback=frozenset(Cloud)), memory=before.store.memory)
    world.knows(b"one", AWAY)
    await world.controller.intake.resume(b"one")
    return world


def answer(world: World) -> object:
    return world.store.answer(Cloud.AWS, world.clock.now())


@looped
async def test_a_copy_that_turns_out_not_to_open_is_waited_for_no_longer() -> None:
    """The key service is back and refuses: workers hear that it is over, rather than to wait."""
    world = await restarted()
    async with world.running():
        assert isinstance(answer(world), Pending)
        world.knows(b"one", NOT_OURS)
        await world.clock.advance(120)
        assert isinstance(answer(world), Ended)


@looped
async def test_a_refusal_of_something_else_does_not_end_the_waiting() -> None:
    """Whoever brings what is not for us says nothing of what was in force."""
    world = await restarted()
    async with world.running():
        assert (await world.submit(world.knows(b"other", NOT_OURS))).code == "recipient"
        assert isinstance(answer(world), Pending)


@looped
async def test_a_silent_key_service_is_asked_once_a_try() -> None:
    """What may be our own bundle, brought anew, costs it no second question."""
    world = await restarted()
    asked = len(world.opener.opened)
    async with world.running():
        await world.submit(b"one")
        assert len(world.opener.opened) == asked + 1


@looped
async def test_a_copy_does_not_displace_what_came_while_it_was_opened() -> None:
    """Another stream's bundle is being written when the copy opens at last: the newcomer is what somebody wants now."""
    world = await restarted()
    async with world.running() as logs:
        world.recorder.gate.clear()
        newer = world.knows(b"two", bundle(session(key="ASIANEWER00000000000"), subject="other"))
        bringing = asyncio.create_task(world.controller.intake.submit(SealedBundle(newer, "file")))
        await settle()
        world.knows(b"one", bundle(session()))
        world.controller.intake.reconsider()  # the copy is opened, and waits for its turn
        await settle()
        world.recorder.gate.set()
        assert (await bringing).outcome == "accepted"
        await settle()
        assert world.store.bundle is not None
        assert world.store.bundle.subject == "other"
        assert events(logs, "bundle.resumed") == []


@looped
async def test_what_is_in_force_again_is_said() -> None:
    """Once, in the log, where whoever looks for the reason of a restart's silence finds it."""
    before = World()
    async with before.running():
        await before.submit(before.knows(b"one", bundle(session())))
    world = World(memory=before.store.memory)
    world.knows(b"one", bundle(session()))
    async with world.running() as logs:
        await world.controller.intake.resume(b"one")
        assert [line["seq"] for line in events(logs, "bundle.resumed")] == [1]


@looped
async def test_a_revocation_is_in_the_history() -> None:
    """What ended an identity is what a person looks for there first."""
    world = World()
    async with world.running():
        await world.submit(world.knows(b"one", bundle(session())))
        world.knows(b"one", NOT_OURS)
        world.controller.intake.review()
        await settle()
        assert [entry.about for entry in world.controller.history.entries if entry.kind == "revoked"] == ["state"]


@pytest.mark.parametrize("kind", ["refused", "unreadable"])
@looped
async def test_who_answers_workers_hears_of_a_refusal_at_once(kind: str) -> None:
    """They tell those who wait why nothing came: nothing else changes with it."""
    world = World()
    async with world.running():
        seen: list[str | None] = []
        world.store.watch(lambda: seen.append(getattr(world.controller.intake.last_refusal, "code", None)))
        if kind == "refused":
            await world.submit(world.knows(b"one", NOT_OURS))
        else:
            world.controller.intake.unreadable(world.source, UnreadableError("twice encoded"))
        assert seen[-1:] == ["recipient" if kind == "refused" else "unreadable"]
