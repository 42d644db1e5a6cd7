"""The bundle in force, evaluated again because whom we believe has changed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from agent.controller import REVIEW_AGAIN_SECONDS
from agent.core.errors import BundleError, KeyUnavailableError, PayloadError, SealError
from agent.core.model import Action, Bundle, Cloud, OnExpiry
from agent.core.verdict import Memory, Policy
from agent.core.view import Ended, Live
from tests.fakes.clock import START, settle
from tests.unit.controller.support import World, events, looped
from tests.unit.identity.worlds import HOUR, bundle, role, session

NOT_BELIEVED = SealError("no pinned signer has that key", code="signer")


def serves(world: World) -> bool:
    return isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Live)


def late_for_newcomers(found: Bundle) -> Callable[[datetime, str | None], Bundle]:
    """A bundle past its last acceptance: it opens for who accepted it before, and for nobody else."""

    def opened(_now: datetime, accepted: str | None) -> Bundle:
        if accepted != found.digest:
            raise PayloadError("it could be accepted until an hour ago", code="expired")
        return found

    return opened


@looped
async def test_what_is_not_believed_any_more_ends() -> None:
    """A bundle whose signer is gone is revoked: closed as after a restart, an error in the log, the refusal of note."""
    world = World(policy=Policy(fallback=frozenset(Cloud)))
    async with world.running() as logs:
        await world.submit(world.knows(b"one", bundle(session())))
        memory, changes = world.store.memory, world.changes
        world.knows(b"one", NOT_BELIEVED)
        world.controller.intake.review()
        await settle()

        assert isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Ended)
        assert world.store.bundle is None
        assert world.store.memory == memory
        assert world.changes > changes
        assert [(line["log_level"], line["code"]) for line in events(logs, "bundle.revoked")] == [("error", "signer")]
        assert world.controller.intake.last_refusal is not None
        assert world.controller.intake.last_refusal.code == "signer"


@looped
async def test_the_outcome_is_that_of_a_restart() -> None:
    """After a revocation each cloud is answered as by a process that starts with the same memory and the same trust."""
    policy = Policy(fallback=frozenset(Cloud))
    world = World(policy=policy)
    async with world.running():
        await world.submit(world.knows(b"one", bundle(session(), on_expiry=OnExpiry.FALLBACK)))
        world.knows(b"one", NOT_BELIEVED)
        world.controller.intake.review()
        await settle()
        restarted = World(policy=policy, memory=world.store.memory)
        restarted.knows(b"one", NOT_BELIEVED)
        await restarted.controller.intake.resume(b"one")
        now = world.clock.now()
        for cloud in Cloud:
            assert world.store.origin(cloud, now) == restarted.store.origin(cloud, now)


@looped
async def test_nothing_is_held_over_for_a_successor() -> None:
    """A newer bundle, believed by the same reload, that must first mint does not keep the revoked one served."""
    world = World()
    async with world.running():
        await world.submit(world.knows(b"one", bundle(session())))
        await world.submit(world.knows(b"two", NOT_BELIEVED))
        world.issuer.gate.clear()
        world.knows(b"one", NOT_BELIEVED)
        world.knows(b"two", bundle(role("r"), seq=2))
        world.controller.intake.review()
        world.controller.intake.reconsider()
        await settle()
        assert world.store.bundle is not None
        assert world.store.bundle.seq == 2
        assert not serves(world)


@looped
async def test_its_last_acceptance_does_not_matter() -> None:
    """A bundle past its last acceptance whose signer is still believed stays in force."""
    world = World()
    async with world.running() as logs:
        one = bundle(session())
        await world.submit(world.knows(b"one", one))
        world.knows(b"one", late_for_newcomers(one))
        world.controller.intake.review()
        await settle()
        assert len(world.opener.opened) == 2
        assert serves(world)
        assert events(logs, "bundle.revoked") == []


def doubtful() -> SealError:
    error = SealError("made for another key, or altered", code="unwrap")
    error.doubtful = True
    return error


@pytest.mark.parametrize(
    "trouble", [KeyUnavailableError("the key service does not answer"), doubtful()], ids=["silent", "erring"]
)
@looped
async def test_a_key_service_that_is_not_well_takes_nothing_away(trouble: BundleError) -> None:
    """While the key service is silent, or computes something else, the bundle is served, and is evaluated later."""
    world = World()
    async with world.running() as logs:
        await world.submit(world.knows(b"one", bundle(session())))
        world.knows(b"one", trouble)
        world.controller.intake.review()
        await settle()
        assert serves(world)
        assert [line["log_level"] for line in events(logs, "bundle.not_reviewed")] == ["error"]
        world.knows(b"one", NOT_BELIEVED)
        await world.clock.advance(REVIEW_AGAIN_SECONDS + 1)
        assert not serves(world)


@pytest.mark.parametrize("where", ["opened", "leased anew", "told"])
@looped
async def test_a_review_that_breaks_off_is_done_again(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For want of memory, say, wherever that strikes: what is believed no longer is not served on for it."""
    world = World()

    def breaks(*_args: object, **_more: object) -> None:
        raise MemoryError

    async with world.running() as logs:
        await world.submit(world.knows(b"one", bundle(session(), lease=START + 4 * HOUR)))
        if where == "opened":
            world.knows(b"one", breaks)  # type: ignore[arg-type]
        elif where == "leased anew":
            world.knows(b"one", bundle(session(), lease=START + 2 * HOUR))
            monkeypatch.setattr(world.controller.durable, "lease_anew", breaks)
        else:
            world.knows(b"one", NOT_BELIEVED)
            monkeypatch.setattr(world.controller.history, "add", breaks)
        world.controller.intake.review()
        await settle()
        assert serves(world) is (where != "told")
        assert events(logs, "work.crashed")
        monkeypatch.undo()
        world.knows(b"one", NOT_BELIEVED)
        await world.clock.advance(REVIEW_AGAIN_SECONDS + 1)
        assert not serves(world)


@looped
async def test_a_mistake_is_made_good_by_the_next_reload() -> None:
    """Once its signer is believed again a revoked bundle is in force again, though nobody brings it anew."""
    world = World()
    async with world.running():
        one = bundle(session())
        await world.submit(world.knows(b"one", one))
        world.knows(b"one", NOT_BELIEVED)
        world.controller.intake.review()
        await settle()
        assert not serves(world)
        world.knows(b"one", late_for_newcomers(one))
        world.controller.intake.review()
        world.controller.intake.reconsider()
        await settle()
        assert serves(world)


@pytest.mark.parametrize("minutes", [10, 240, 480], ids=["shorter", "the same", "longer"])
@looped
async def test_the_lease_that_the_signer_may_give_counts_from_now_on(minutes: int) -> None:
    """A shorter or a longer one is the one which holds, and whoever answers is told; of the same one nobody hears."""
    world = World()
    async with world.running() as logs:
        await world.submit(world.knows(b"one", bundle(session(), lease=START + 4 * HOUR)))
        world.knows(b"one", bundle(session(), lease=START + timedelta(minutes=minutes)))
        changes = world.changes
        world.controller.intake.review()
        await settle()
        assert serves(world)
        assert world.store.bundle is not None
        assert world.store.bundle.lease_until == START + timedelta(minutes=minutes)
        is_another = minutes != 240
        assert len(events(logs, "bundle.leased_anew")) == is_another
        assert (world.changes > changes) is is_another


@pytest.mark.parametrize("found", [NOT_BELIEVED, KeyUnavailableError("it does not answer", code="key-unavailable")])
@looped
async def test_without_a_bundle_there_is_nothing_to_evaluate(found: BundleError) -> None:
    """Where no bundle is in force a review opens nothing."""
    world = World(memory=Memory("i-1"))
    async with world.running():
        world.knows(b"one", found)
        world.controller.intake.review()
        await settle()
        assert world.opener.opened == []


@looped
async def test_a_stranger_s_withdrawal_leaves_our_copy_waiting() -> None:
    """What waits for its key after a restart is still resumed when another stream was withdrawn meanwhile."""
    first = World()
    one = bundle(session())
    async with first.running():
        await first.submit(first.knows(b"one", one))
    world = World(memory=first.store.memory)
    world.knows(b"one", KeyUnavailableError("the key service does not answer", code="key-unavailable"))
    await world.controller.intake.resume(b"one")
    async with world.running():
        other = world.knows(b"other", bundle(action=Action.WITHDRAW, subject="strangers"))
        assert (await world.submit(other)).outcome == "accepted"
        assert not serves(world)
        world.knows(b"one", one)
        await world.clock.advance(120)
        assert serves(world)


@looped
async def test_a_successor_takes_the_place_of_our_copy() -> None:
    """After a revocation and a newer bundle the revoked one is not looked at again, whatever is reconsidered."""
    world = World()
    async with world.running():
        await world.submit(world.knows(b"one", bundle(session())))
        world.knows(b"one", NOT_BELIEVED)
        world.controller.intake.review()
        await settle()
        await world.submit(world.knows(b"two", bundle(session(), seq=2)))
        opened = len(world.opener.opened)
        world.controller.intake.reconsider()
        await settle()
        assert len(world.opener.opened) == opened
        assert serves(world)
