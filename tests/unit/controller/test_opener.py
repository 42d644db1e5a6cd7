"""A failure to open that is no verdict: nothing that was accepted is lost by it, nor what may be the first bundle."""

from __future__ import annotations

import asyncio
import errno
from datetime import datetime
from typing import Any

import pytest

from agent.core.errors import BundleError, KeyUnavailableError, SealError
from agent.core.model import Bundle, Cloud, OnExpiry, SealedBundle
from agent.core.source import STATE, OnError, OnSuccess, Submit
from agent.core.verdict import Memory, Policy, Verdict
from agent.core.view import Absent, Ended, Live
from agent.identity.whose import Whose
from tests.fakes.clock import settle
from tests.unit.controller.support import FakeSource, World, events, looped
from tests.unit.identity.worlds import bundle, session

WANTS = [MemoryError(), OSError(errno.EAGAIN, "no thread"), OSError(errno.EMFILE, "no descriptor")]
FAULT = ZeroDivisionError("a bug")
NOT_BELIEVED = SealError("no pinned signer has that key", code="signer")


def crashes(error: Exception) -> object:
    def opened(_now: datetime, _accepted: str | None) -> Bundle:
        raise error

    return opened


def serves(world: World) -> bool:
    return isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Live)


async def remembered() -> Memory:
    before = World()
    async with before.running():
        await before.submit(before.knows(b"one", bundle(session(), on_expiry=OnExpiry.FALLBACK)))
    return before.store.memory


def fallback(memory: Memory | None = None, source: FakeSource | None = None) -> World:
    policy = Policy(fallback=frozenset(Cloud))
    return World(policy=policy, memory=memory, sources=None if source is None else [source])


@pytest.mark.parametrize("error", [*WANTS, FAULT], ids=repr)
@looped
async def test_what_was_in_force_is_opened_again_whatever_kept_it_from_that(error: Exception) -> None:
    """It is waited for, and comes back with what failed; no worker is the machine meanwhile."""
    world = fallback(await remembered())
    world.opener.table[b"one"] = crashes(error)  # type: ignore[assignment]
    async with world.running() as logs:
        await world.controller.intake.resume(b"one")
        for _ in range(10):
            await world.clock.advance(30)
            assert "is being opened" in str(world.store.answer(Cloud.AWS, world.clock.now()))
        assert events(logs, "work.crashed")[0]["error"] == type(error).__name__
        world.knows(b"one", bundle(session()))
        await world.clock.advance(600)
        assert serves(world)


class OnTheMachine(FakeSource):
    """Says that it was read, then submits what it read, as sources do."""

    awaited_in = tuple(Cloud)

    async def read(self, submit: Submit, _on_error: OnError, on_success: OnSuccess) -> None:
        on_success()
        await submit(SealedBundle(b"one", self.name))


@pytest.mark.parametrize("first", [*WANTS, KeyUnavailableError("away")], ids=repr)
@pytest.mark.parametrize("then", WANTS, ids=repr)
@looped
async def test_a_first_bundle_is_waited_for_though_a_look_at_it_fails_for_want(
    first: BundleError | Exception, then: Exception
) -> None:
    """The first look, and each further one, at bytes that the source brings but once."""
    source = OnTheMachine("file")
    world = fallback(source=source)
    world.opener.table[b"one"] = crashes(first)  # type: ignore[assignment]
    async with world.running():
        source.act(source.read)
        await settle()
        world.opener.table[b"one"] = crashes(then)  # type: ignore[assignment]
        await world.clock.advance(600)
        assert set(world.controller.intake.awaited.why) == set(Cloud)
        world.knows(b"one", bundle(session()))
        await world.clock.advance(600)
        assert serves(world)
        assert world.controller.intake.awaited.why == {}


def lacks_once(world: World, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The first look at what was opened fails."""
    errors, evaluate = [error], world.store.evaluate

    def evaluated(*args: Any, **more: Any) -> Verdict:
        if errors:
            raise errors.pop()
        return evaluate(*args, **more)

    monkeypatch.setattr(world.store, "evaluate", evaluated)


@pytest.mark.parametrize("further", [False, True])
@looped
async def test_so_it_is_if_what_is_opened_cannot_be_evaluated_for_want(
    *, further: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may be missing behind the opener as well, at the first look and at a further one."""
    source = OnTheMachine("file")
    world = fallback(source=source)
    world.knows(b"one", KeyUnavailableError("away") if further else bundle(session()))
    lacks_once(world, monkeypatch, MemoryError())
    async with world.running():
        source.act(source.read)
        await settle()
        assert set(world.controller.intake.awaited.why) == set(Cloud)
        world.knows(b"one", bundle(session()))
        await world.clock.advance(600)
        assert serves(world)


@looped
async def test_the_copy_of_what_was_in_force_is_kept_if_it_cannot_be_evaluated_for_want(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its further look fails: it is looked at again, and no worker is refused for good."""
    world = fallback(await remembered())
    world.knows(b"one", KeyUnavailableError("away"))
    async with world.running():
        await world.controller.intake.resume(b"one")
        lacks_once(world, monkeypatch, MemoryError())
        world.knows(b"one", bundle(session(), on_expiry=OnExpiry.FALLBACK))
        await world.clock.advance(600)
        assert serves(world)


@looped
async def test_it_is_kept_if_it_cannot_be_put_in_force_for_want(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for that, and nobody else would try it again: it is looked at once more, and in force then."""
    world = fallback(await remembered())
    world.knows(b"one", bundle(session(), on_expiry=OnExpiry.FALLBACK))
    lacks_once(world, monkeypatch, MemoryError())
    async with world.running():
        await world.controller.intake.resume(b"one")
        assert not serves(world)
        await world.clock.advance(600)
        assert serves(world)


@looped
async def test_a_copy_that_is_another_bundle_is_waited_for_no_more() -> None:
    """Also if that is found at a further look: the sticky rule answers then, as at once."""
    world = fallback(await remembered())
    world.knows(b"one", KeyUnavailableError("away"))
    async with world.running():
        await world.controller.intake.resume(b"one")
        world.knows(b"one", bundle(session("another"), seq=1))
        await world.clock.advance(600)
        assert isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Ended | Absent)


@looped
async def test_a_further_look_that_ends_by_a_fault_of_ours_loses_no_bundle() -> None:
    """Nobody waits for it meanwhile; the source that brought it is well, and does not bring it again."""
    source = OnTheMachine("file")
    world = fallback(source=source)
    world.knows(b"one", KeyUnavailableError("away"))
    async with world.running() as logs:
        source.act(source.read)
        await settle()
        world.opener.table[b"one"] = crashes(FAULT)  # type: ignore[assignment]
        await world.clock.advance(120)
        assert events(logs, "work.crashed")[-1]["error"] == "ZeroDivisionError"
        assert (world.controller.intake.awaited.why, source.watches) == ({}, 1)
        world.knows(b"one", bundle(session()))
        await world.clock.advance(600)
        assert serves(world)


@looped
async def test_a_new_bundle_that_we_cannot_read_keeps_nobody_waiting() -> None:
    """By a fault of ours, that is, which comes each time: whoever seals such a one must not stop a worker."""
    source = OnTheMachine("file")
    world = fallback(source=source)
    world.opener.table[b"one"] = crashes(FAULT)  # type: ignore[assignment]
    async with world.running() as logs:
        source.act(source.read)
        await world.clock.advance(600)
        assert world.controller.intake.awaited.why == {}
        assert events(logs, "source.crashed")[0]["error"] == "ZeroDivisionError"


@pytest.mark.parametrize("error", [*WANTS, FAULT], ids=repr)
@looped
async def test_a_review_that_fails_is_done_again(error: Exception) -> None:
    """A signer who is not trusted any more is not in force for as long as nobody asks again."""
    world = World()
    async with world.running():
        await world.submit(world.knows(b"one", bundle(session())))
        world.opener.table[b"one"] = crashes(error)  # type: ignore[assignment]
        world.controller.intake.review()
        await settle()
        assert serves(world)
        world.knows(b"one", NOT_BELIEVED)
        await world.clock.advance(600)
        assert not serves(world)


@looped
async def test_an_attempt_that_was_overtaken_ends_no_other() -> None:
    """A doubt came while it was opened, and went: the end of that attempt says nothing of the one that goes on."""
    world = fallback(await remembered())
    late, world.opener.gate = asyncio.Event(), asyncio.Event()
    world.opener.gate.set()
    world.knows(b"one", KeyUnavailableError("away"))
    identified = world.controller.intake.identified
    async with world.running():
        await world.controller.intake.resume(b"one")
        world.opener.gates[b"one"] = late
        await world.clock.advance(120)
        assert world.opener.busy == 1  # the next attempt
        await identified(Whose.UNKNOWN, "i-1", boot_id="b", firmware={}, sealed=b"one")
        del world.opener.gates[b"one"]
        await identified(Whose.OURS, "i-1", boot_id="b", firmware={}, sealed=b"one")
        assert world.controller.intake.waiting == {STATE}
        world.knows(b"one", NOT_BELIEVED)
        late.set()
        await settle()
        assert "is being opened" in str(world.store.answer(Cloud.AWS, world.clock.now()))
