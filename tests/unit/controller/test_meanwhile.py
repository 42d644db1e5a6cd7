"""While a key service or a disk is waited for, something else happens: each case by itself.

All of them in every order: ``tests/properties/test_meanwhile.py``.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import msgspec
import pytest

from agent.core.errors import KeyUnavailableError, PayloadError, SealError
from agent.core.model import Action, Bundle, Cloud, OnExpiry, SealedBundle
from agent.core.verdict import Mark, Memory, Policy
from agent.core.view import Ended, Live
from agent.identity.standing import Machines, Standing, standing
from agent.identity.whose import Whose
from tests.fakes.clock import START, settle
from tests.unit.controller.support import World, looped
from tests.unit.identity.worlds import bundle, session

OURS = bundle(session("ours"), seq=3)
MARK = Mark(OURS.issuer, OURS.subject, OURS.seq, OURS.digest, START)
REMEMBERED = Memory("i-1", marks=(MARK,), decided={Cloud.AWS: None}, active=MARK)


def served(world: World) -> bool:
    return isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Live)


def standing_of(world: World) -> Standing:
    return standing(world.store.state, Cloud.AWS, world.clock.now())


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


@pytest.mark.parametrize("way", ["brought", "resumed"])
@looped
async def test_a_refusal_by_what_is_not_believed_any_more_is_none(way: str) -> None:
    """A key service takes its time, and our clock is put right meanwhile: the bundle was over by the hour of before."""
    found = bundle(session("ours"), seq=3, on_expiry=OnExpiry.FALLBACK)
    mark = Mark(found.issuer, found.subject, found.seq, found.digest, START)
    decided = Memory("i-1", marks=(mark,), decided={Cloud.AWS: OnExpiry.FALLBACK}, active=mark)
    policy = Policy(grace=timedelta(days=400))
    world = World(policy=policy, memory=Memory("i-1") if way == "brought" else decided)

    def by_time(now: datetime, _accepted: str | None) -> Bundle:
        if now > START + timedelta(days=1):
            raise PayloadError("over", code="expired")
        return found

    world.knows(b"ours", by_time)
    world.clock.set_utc(START + timedelta(days=300))
    machine: list[bool] = []
    async with world.running():
        world.opener.gate.clear()
        bringing = asyncio.create_task(
            world.submit(b"ours")
            if way == "brought"
            else world.controller.intake.identified(Whose.OURS, "i-1", boot_id="b", firmware={}, sealed=b"ours")
        )
        await settle()
        world.store.watch(lambda: machine.append(isinstance(standing_of(world), Machines)))
        world.clock.set_utc(START)
        world.controller.rebase()
        world.opener.gate.set()
        await bringing
        await world.clock.advance(1)
        assert served(world)
        assert not any(machine)


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
async def test_our_copy_does_not_come_into_force_in_a_doubt_that_began_while_it_was_opened() -> None:
    """A copy of a machine that runs was restarted: its name comes while a key service is slow, or silent and tried again."""
    for silent in (False, True):
        world = World(memory=REMEMBERED)
        world.knows(b"ours", KeyUnavailableError("silent") if silent else OURS)
        identified = world.controller.intake.identified
        async with world.running():
            if silent:
                await identified(Whose.OURS, "i-1", boot_id="b", firmware={}, sealed=b"ours")
                world.knows(b"ours", OURS)
            world.opener.gate.clear()
            again = (
                asyncio.sleep(0) if silent else identified(Whose.OURS, "i-1", boot_id="b", firmware={}, sealed=b"ours")
            )
            resuming = asyncio.create_task(again)
            await world.clock.advance(10)
            assert world.opener.busy == 1
            await identified(Whose.UNKNOWN, "i-2", boot_id="b", firmware={}, sealed=b"ours")
            world.opener.gate.set()
            await resuming
            await world.clock.advance(600)
            assert not served(world)
            assert world.store.memory.active == MARK
            await identified(Whose.OURS, "i-1", boot_id="b", firmware={}, sealed=b"ours")
            assert served(world)


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


WITHDRAWAL, LATER = (bundle(seq=seq, action=Action.WITHDRAW) for seq in (4, 5))


@looped
async def test_a_withdrawal_that_came_before_the_clone_was_known_holds_after_it() -> None:
    """It was acknowledged on this machine: an older bundle that a source still shows stays refused."""
    world = World(memory=REMEMBERED)
    withdrawn, old = world.knows(b"withdrawal", WITHDRAWAL), world.knows(b"ours", OURS)
    async with world.running():
        assert (await world.submit(withdrawn)).outcome == "accepted"
        await world.controller.intake.identified(Whose.ANOTHERS, "i-2", boot_id="b", firmware={})
        assert (await world.submit(old)).code == "rollback"
        assert not served(world)
        assert world.recorder.saved[-1] == (world.store.memory, None)
        assert world.store.memory.instance_id == "i-2"


@looped
async def test_a_cloud_that_was_decided_here_is_not_the_machines_after_it_turns_out_a_clone() -> None:
    """Given and withdrawn while the memory passed for ours: without the memory it is as closed as on any machine."""
    world = World(memory=REMEMBERED)
    given, withdrawn = world.knows(b"given", bundle(session("given"), seq=4)), world.knows(b"withdrawal", LATER)
    async with world.running():
        await world.submit(given)
        await world.submit(withdrawn)
        await world.controller.intake.identified(Whose.ANOTHERS, "i-2", boot_id="b", firmware={})
        await world.clock.advance(60)
        assert isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Ended)


@looped
async def test_a_withdrawal_for_the_other_machine_by_name_does_not_bind_this_one() -> None:
    """It meant the name that turned out to be another machine's: this one's own bundles may have lower numbers."""
    world = World(memory=REMEMBERED)
    withdrawn = world.knows(b"withdrawal", msgspec.structs.replace(WITHDRAWAL, named=True))
    old = world.knows(b"ours", OURS)
    async with world.running():
        await world.submit(withdrawn)
        await world.controller.intake.identified(Whose.ANOTHERS, "i-2", boot_id="b", firmware={})
        assert (await world.submit(old)).outcome == "accepted"


@looped
async def test_our_copy_that_was_opened_late_is_still_another_machines() -> None:
    """A key service was silent at the start, so the copy took another way into force: nobody brought it here."""
    world = World(memory=REMEMBERED)
    world.knows(b"ours", KeyUnavailableError("silent"))
    identified = world.controller.intake.identified
    await identified(Whose.OURS, "i-1", boot_id="b", firmware={}, sealed=b"ours")
    world.knows(b"ours", OURS)
    async with world.running():
        await world.clock.advance(30)
        assert served(world)
        await identified(Whose.ANOTHERS, "i-2", boot_id="b", firmware={})
        await world.clock.advance(600)
        assert not served(world)
        assert world.store.memory.marks == ()


@looped
async def test_what_a_source_brings_as_well_is_not_only_found_here() -> None:
    """A source shows the very bundle that was resumed, and will not show it again: a clone takes it from there."""
    world = World(memory=REMEMBERED)
    identified = world.controller.intake.identified
    world.knows(b"ours", OURS)
    await identified(Whose.OURS, "i-1", boot_id="b", firmware={}, sealed=b"ours")
    async with world.running():
        assert (await world.submit(b"ours")).outcome == "same"
        await identified(Whose.ANOTHERS, "i-2", boot_id="b", firmware={})
        await world.clock.advance(2)
        assert served(world)
        assert world.recorder.saved[-1] == (world.store.memory, b"ours")


@looped
async def test_what_is_shown_once_more_takes_nothing_from_what_replaced_it() -> None:
    """Another signer's older bundle comes again: when the memory turns out another machine's, the newer one goes on."""
    world = World(memory=REMEMBERED)
    older = world.knows(b"older", bundle(session("older"), issuer="another"))
    newer = world.knows(b"newer", bundle(session("newer"), seq=4))
    async with world.running():
        for data, outcome in ((older, "accepted"), (newer, "accepted"), (older, "same")):
            assert (await world.submit(data)).outcome == outcome
        await world.controller.intake.identified(Whose.ANOTHERS, "i-2", boot_id="b", firmware={})
        await world.clock.advance(2)
        assert world.recorder.saved[-1] == (world.store.memory, newer)
        assert (await world.submit(older)).outcome == "same"
        assert world.store.bundle is not None
        assert world.store.bundle.issuer == OURS.issuer


@looped
async def test_what_is_shown_once_more_opens_no_cloud_that_a_withdrawal_closed() -> None:
    """The withdrawal is of the newer one, and says nothing of the machine: it is not served, as before it was a clone."""
    world = World(memory=REMEMBERED)
    may_fall_back = OnExpiry.FALLBACK
    older = world.knows(b"older", bundle(session("older"), issuer="another", on_expiry=may_fall_back))
    newer = world.knows(b"newer", bundle(session("newer"), seq=4, on_expiry=may_fall_back))
    withdrawn = world.knows(b"withdrawal", LATER)
    async with world.running():
        for data in (older, newer, older, withdrawn):
            await world.submit(data)
        await world.controller.intake.identified(Whose.ANOTHERS, "i-2", boot_id="b", firmware={})
        await world.clock.advance(60)
        assert world.store.memory.decided == {Cloud.AWS: OnExpiry.DENY}
        assert isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Ended)


@looped
async def test_what_was_replaced_before_it_is_shown_here_is_not_in_force_after_it() -> None:
    """Both were found; the one in force is shown first, then the one that it had replaced: that changes nothing."""
    replaced = bundle(session("replaced"), issuer="another")
    mark = Mark(replaced.issuer, replaced.subject, replaced.seq, replaced.digest, START)
    world = World(memory=Memory("i-1", marks=(mark, MARK), decided={Cloud.AWS: None}, active=MARK))
    identified = world.controller.intake.identified
    world.knows(b"ours", OURS)
    world.knows(b"replaced", replaced)
    await identified(Whose.OURS, "i-1", boot_id="b", firmware={}, sealed=b"ours")
    async with world.running():
        for data in (b"ours", b"replaced"):
            assert (await world.submit(data)).outcome == "same"
        await identified(Whose.ANOTHERS, "i-2", boot_id="b", firmware={})
        await world.clock.advance(2)
        assert world.store.memory.active == MARK
        assert served(world)


@pytest.mark.parametrize("named", [False, True])
def test_a_clone_that_is_found_during_the_second_write(named: bool) -> None:
    """What is accepted just then is evaluated by the new name: kept if it is for this machine, refused if it is not."""

    @looped
    async def check() -> None:
        world = World(memory=REMEMBERED)
        identified = world.controller.intake.identified
        world.knows(b"ours", OURS)
        await identified(Whose.OURS, "i-1", boot_id="b", firmware={}, sealed=b"ours")
        new = world.knows(b"new", msgspec.structs.replace(bundle(session("new"), seq=4), named=named))
        async with world.running():
            world.recorder.gate.clear()
            submitted = asyncio.create_task(world.controller.intake.submit(SealedBundle(new, "file")))
            await settle()
            world.controller.durable.write()  # the state of before the bundle, to be written after it
            first, world.recorder.gate = world.recorder.gate, asyncio.Event()
            first.set()
            await settle()
            assert not submitted.done()
            if named:
                world.knows(new, PayloadError("another machine's", code="audience"))
            await identified(Whose.ANOTHERS, "i-2", boot_id="b", firmware={})
            world.recorder.gate.set()
            ack = await submitted
            await world.clock.advance(2)
            assert (ack.outcome, served(world)) == (("refused", False) if named else ("accepted", True))
            assert world.recorder.saved[-1] == (world.store.memory, None if named else new)

    check()


@pytest.mark.parametrize("what", ["a step", "a sleep"])
def test_what_is_opened_meanwhile_is_verified_by_the_present_time(what: str) -> None:
    """The clock is stepped, or the machine sleeps, while a key service is asked: the hour of the question counts no more."""

    @looped
    async def check() -> None:
        world = World()
        asked: list[datetime] = []

        def verify(now: datetime, _digest: str | None) -> Bundle:
            asked.append(now)
            return bundle(session())

        data = world.knows(b"one", verify)
        async with world.running():
            world.opener.gate.clear()
            submitted = asyncio.create_task(world.controller.intake.submit(SealedBundle(data, "file")))
            await settle()
            if what == "a step":
                world.clock.set_utc(START - timedelta(hours=1))
                world.controller.time_moved()
            else:
                await world.clock.advance(3600)
            world.opener.gate.set()
            assert (await submitted).outcome == "accepted"
            assert asked[-1] == world.clock.now()

    check()
