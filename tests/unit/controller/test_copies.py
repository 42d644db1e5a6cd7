"""Our own copy of what was in force before a restart, while its key service is silent; and what is told of a refusal."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from agent.core.errors import BundleError, KeyUnavailableError, SealError, UnreadableError
from agent.core.model import Action, Bundle, Cloud, OnExpiry, SealedBundle
from agent.core.source import STATE
from agent.core.verdict import Policy
from agent.core.view import Ended, Live, Pending
from agent.identity.whose import Whose
from tests.fakes.clock import START, settle
from tests.unit.controller.support import Issued, World, events, looped
from tests.unit.identity.worlds import aws_credential, bundle, session

AWAY = KeyUnavailableError("the KMS did not answer")
NOT_OURS = SealError("it is sealed to other keys", code="recipient")


async def restarted(found: Bundle | None = None) -> World:
    """A process whose memory names a bundle of before, which cannot be opened just now."""
    before = World()
    async with before.running():
        await before.submit(before.knows(b"one", found or bundle(session())))
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


@pytest.mark.parametrize("on_expiry", OnExpiry)
@pytest.mark.parametrize("by", ["session", "lease"])
@looped
async def test_what_is_over_when_a_copy_opens_at_last_is_over(by: str, on_expiry: OnExpiry) -> None:
    """Its end came while nobody could open it: what was to follow that end follows, and nobody waits on."""
    lease = START + timedelta(hours=1) if by == "lease" else None
    found = bundle(session(hours=12 if by == "lease" else 1), lease=lease, on_expiry=on_expiry)
    world = await restarted(found)
    world.issuer.answer = lambda call: Issued(aws_credential(call.at))
    async with world.running():
        await world.clock.advance(2 * 3600)
        assert isinstance(answer(world), Pending)
        world.knows(b"one", found)
        await world.clock.advance(3600)
        assert isinstance(answer(world), Live if on_expiry is OnExpiry.FALLBACK else Ended)
        assert world.controller.intake.waiting == frozenset()


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


@looped
async def test_what_a_source_has_that_is_no_bundle_is_told_everywhere() -> None:
    """To the source itself, to who reads the log and the history, and to who counts; what is said each minute is counted."""
    world = World()
    async with world.running() as logs:
        for number in range(50):
            world.controller.intake.unreadable(world.source, UnreadableError("twice encoded"))
            await settle()
            assert number > 0 or len(events(logs, "bundle.unreadable")) == 1
        assert [(ack.outcome, ack.code, ack.reason) for ack in world.source.acks] == [
            ("refused", "unreadable", "twice encoded")
        ] * 50
        lines = events(logs, "bundle.unreadable")
        assert {(one["log_level"], one["source"], one["reason"]) for one in lines} == {
            ("error", "file", "twice encoded")
        }
        assert len(lines) < 50
        assert world.controller.counters.refused == {"unreadable": 50}
        found = {(one.kind, one.about, one.said) for one in world.controller.history.entries}
        assert ("refused", "file", "twice encoded") in found


@looped
async def test_a_revocation_is_counted_by_its_reason() -> None:
    """What alerts watch tells that an identity was taken away, as it tells of what was never taken."""
    world = World()
    async with world.running():
        await world.submit(world.knows(b"one", bundle(session())))
        assert world.controller.counters.refused == {}
        world.knows(b"one", NOT_OURS)
        world.controller.intake.review()
        await settle()
        assert world.controller.counters.refused == {"recipient": 1}


@looped
async def test_a_copy_that_does_not_open_is_opened_when_its_key_is_back() -> None:
    """The key file was not there at the start: when it is, what was in force serves, though no source brings it."""
    before = World()
    async with before.running():
        await before.submit(before.knows(b"one", bundle(session())))
    world = World(memory=before.store.memory)
    world.knows(b"one", NOT_OURS)
    await world.controller.intake.resume(b"one")
    async with world.running():
        world.knows(b"one", bundle(session()))
        await world.clock.advance(3600)
        assert isinstance(answer(world), Ended)  # time alone mends no key
        world.controller.intake.reconsider()
        await settle()
        assert isinstance(answer(world), Live)


@looped
async def test_after_a_doubt_the_copy_waits_for_its_key_service() -> None:
    """While it was doubted whose the copy is it was dropped; when it is ours again it is as any: tried until it opens."""
    before = World()
    async with before.running():
        await before.submit(before.knows(b"one", bundle(session())))
    world = World(memory=before.store.memory)
    world.knows(b"one", AWAY)
    identified = world.controller.intake.identified
    async with world.running():
        await identified(Whose.UNKNOWN, "i-1", boot_id="b", firmware={}, sealed=b"one")
        assert world.controller.intake.waiting == frozenset()
        await identified(Whose.OURS, "i-1", boot_id="b", firmware={}, sealed=b"one")
        assert world.controller.intake.waiting == {STATE}
        world.knows(b"one", bundle(session()))
        await world.clock.advance(120)
        assert isinstance(answer(world), Live)


@pytest.mark.parametrize("found", [bundle(session()), AWAY, NOT_OURS], ids=["opens", "silent", "refused"])
@pytest.mark.parametrize("meanwhile", ["brought", "withdrawn"])
@looped
async def test_what_was_settled_while_the_copy_was_opened_is_left_so(
    meanwhile: str, found: Bundle | BundleError
) -> None:
    """Its source brought the same or took it back: what becomes of the copy then is no news, and it is not kept."""
    before = World()
    one = bundle(session())
    async with before.running():
        await before.submit(before.knows(b"one", one))
    world = World(memory=before.store.memory)
    world.opener.gate.clear()
    async with world.running() as logs:
        resuming = asyncio.create_task(world.controller.intake.resume(b"one"))
        await settle()
        late, world.opener.gate = world.opener.gate, asyncio.Event()
        world.opener.gate.set()
        if meanwhile == "brought":
            await world.submit(world.knows(b"one", one))
        else:
            await world.submit(world.knows(b"less", bundle(action=Action.WITHDRAW, seq=2)))
        memory, in_force = world.store.memory, world.store.bundle
        assert (in_force is not None) is (meanwhile == "brought")
        world.knows(b"one", found)
        late.set()
        await resuming
        await settle()
        assert (world.store.memory, world.store.bundle) == (memory, in_force)
        assert world.controller.intake.waiting == frozenset()
        said = {line["event"] for line in logs}
        assert not said & {"bundle.resumed", "bundle.not_resumed", "bundle.held"}


@looped
async def test_a_copy_that_was_overtaken_is_no_refusal() -> None:
    """Nobody brought it: that it does not come into force any more is no alarm, and hides none."""
    world = await restarted()
    async with world.running() as logs:
        world.knows(b"one", bundle(session()))
        world.opener.gate.clear()
        world.controller.intake.reconsider()
        await settle()
        late, world.opener.gate = world.opener.gate, asyncio.Event()
        world.opener.gate.set()
        await world.submit(world.knows(b"less", bundle(action=Action.WITHDRAW, seq=2)))
        late.set()
        await settle()
        assert world.store.bundle is None
        assert world.controller.intake.last_refusal is None
        assert world.controller.counters.refused == {}
        assert events(logs, "bundle.refused") == []


@looped
async def test_while_a_bundle_is_in_force_what_is_brought_is_opened_once() -> None:
    """A key service is asked a second time only where what was accepted before is lost; and its age counts otherwise."""
    world = World()
    one = bundle(session())
    async with world.running():
        await world.submit(world.knows(b"one", one))
        asked = len(world.opener.opened)
        await world.submit(world.knows(b"other", NOT_OURS))
        await world.submit(b"one")
        assert world.opener.opened[asked:] == [(b"other", None), (b"one", None)]
