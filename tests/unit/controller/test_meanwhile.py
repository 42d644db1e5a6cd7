"""While a key service or a disk is waited for, something else happens: each case by itself.

All of them in every order: ``tests/properties/test_meanwhile.py``.
"""

from __future__ import annotations

import asyncio

from agent.core.errors import KeyUnavailableError, SealError
from agent.core.model import Cloud, SealedBundle
from agent.core.verdict import Mark, Memory
from agent.core.view import Live
from agent.identity.whose import Whose
from tests.fakes.clock import START, settle
from tests.unit.controller.support import World, looped
from tests.unit.identity.worlds import bundle, session

OURS = bundle(session("ours"), seq=3)
MARK = Mark(OURS.issuer, OURS.subject, OURS.seq, OURS.digest, START)
REMEMBERED = Memory("i-1", marks=(MARK,), decided={Cloud.AWS: None}, active=MARK)


def served(world: World) -> bool:
    return isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Live)


@looped
async def test_what_is_written_down_by_a_signer_who_is_dropped_does_not_come_into_force() -> None:
    """The disk takes its time, and a reload takes the signer away: the bundle was verified before, and counts no more."""
    world = World()
    data = world.knows(b"one", bundle(session()))
    async with world.running():
        world.recorder.gate.clear()
        submitted = asyncio.create_task(world.controller.intake.submit(SealedBundle(data, "file")))
        await settle()
        world.knows(data, SealError("nobody we know", code="signer"))
        world.controller.intake.review()
        world.recorder.gate.set()
        assert (await submitted).code == "signer"
        await settle()
        assert not served(world)
        assert world.recorder.saved[-1] == (world.store.memory, None)


@looped
async def test_what_is_only_verified_anew_is_accepted_all_the_same() -> None:
    """A change of whom we believe that leaves the signer costs the bundle nothing, and it is written once it is so."""
    world = World()
    data = world.knows(b"one", bundle(session()))
    async with world.running():
        world.recorder.gate.clear()
        submitted = asyncio.create_task(world.controller.intake.submit(SealedBundle(data, "file")))
        await settle()
        world.controller.intake.review()
        world.recorder.gate.set()
        ack = await submitted
        assert (ack.outcome, ack.durable) == ("accepted", True)
        assert world.recorder.saved[-1] == (world.store.memory, data)
        assert served(world)


@looped
async def test_our_copy_of_another_machines_bundle_is_not_taken_by_a_clone() -> None:
    """It is being opened, again, by a key service that was silent, when the machine is told to be another one."""
    world = World(memory=REMEMBERED)
    world.knows(b"ours", KeyUnavailableError("silent"))
    identified = world.controller.intake.identified
    await identified(Whose.OURS, "i-1", boot_id="b", firmware={}, sealed=b"ours")
    world.knows(b"ours", OURS)
    async with world.running():
        world.opener.gate.clear()
        await world.clock.advance(10)
        assert world.opener.busy == 1
        await identified(Whose.ANOTHERS, "i-2", boot_id="b", firmware={})
        world.opener.gate.set()
        await world.clock.advance(600)
        assert not served(world)
        assert world.store.memory.marks == ()


@looped
async def test_a_copy_that_could_not_be_opened_in_time_is_not_kept_for_a_clone() -> None:
    """The key service says that it cannot just now, after the memory was found to be another machine's."""
    world = World(memory=REMEMBERED)
    world.knows(b"ours", KeyUnavailableError("silent"))
    identified = world.controller.intake.identified
    world.opener.gate.clear()
    resuming = asyncio.create_task(identified(Whose.OURS, "i-1", boot_id="b", firmware={}, sealed=b"ours"))
    await settle()
    await identified(Whose.ANOTHERS, "i-2", boot_id="b", firmware={})
    world.opener.gate.set()
    await resuming
    assert world.controller.intake.waiting == frozenset()


@looped
async def test_our_copy_does_not_displace_what_another_signer_sent_meanwhile() -> None:
    """The former bundle is opened late: by then another stream's is in force, and stays."""
    world = World(memory=REMEMBERED)
    world.knows(b"ours", OURS)
    newer = bundle(session("newer"), seq=1, issuer="another")
    data = world.knows(b"newer", newer)
    world.opener.gate.clear()
    identified = world.controller.intake.identified
    resuming = asyncio.create_task(identified(Whose.OURS, "i-1", boot_id="b", firmware={}, sealed=b"ours"))
    await settle()
    first, world.opener.gate = world.opener.gate, asyncio.Event()
    world.opener.gate.set()
    assert (await world.submit(data)).outcome == "accepted"
    first.set()
    await resuming
    assert world.store.bundle is newer


@looped
async def test_the_newest_of_a_source_is_kept_though_an_older_one_fails_later() -> None:
    """Two are being opened; the older one's failure comes last, and does not take the place of the newer one."""
    world = World()
    old, new = world.knows(b"old", KeyUnavailableError("silent")), world.knows(b"new", KeyUnavailableError("silent"))
    async with world.running():
        world.opener.gate.clear()
        slow = asyncio.create_task(world.controller.intake.submit(SealedBundle(old, "file")))
        await settle()
        first, world.opener.gate = world.opener.gate, asyncio.Event()
        world.opener.gate.set()
        await world.submit(new)
        first.set()
        await slow
        world.knows(old, bundle(session("old"), seq=1))
        world.knows(new, bundle(session("new"), seq=2))
        await world.clock.advance(30)
        assert world.store.bundle is not None
        assert world.store.bundle.seq == 2


@looped
async def test_a_lease_that_was_given_anew_does_not_hide_that_a_signer_is_gone() -> None:
    """Two reviews at once: the first takes another lease, the second finds nobody who vouches for it any more."""
    world = World()
    data = world.knows(b"one", bundle(session()))
    async with world.running():
        await world.submit(data)
        assert world.store.bundle is not None
        leased = bundle(session(), lease=START.replace(hour=20))
        world.knows(data, leased)
        world.opener.gate.clear()
        world.controller.intake.review()
        await settle()
        first, world.opener.gate = world.opener.gate, asyncio.Event()
        world.controller.intake.review()
        await settle()
        first.set()
        await settle()
        assert world.store.bundle.lease_until == leased.lease_until
        world.knows(data, SealError("nobody we know", code="signer"))
        world.opener.gate.set()
        await settle()
        assert world.store.bundle is None
