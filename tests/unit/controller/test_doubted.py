"""While it is not known whose the memory is, what it says against a bundle is no verdict."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import pytest

from agent.core.errors import KeyUnavailableError
from agent.core.model import Bundle, Cloud, OnExpiry
from agent.core.verdict import Mark, Memory, Policy
from agent.core.view import Live, Origin
from agent.identity.whose import Whose
from tests.fakes.clock import START, settle
from tests.unit.controller.support import Issued, World, looped
from tests.unit.identity.worlds import aws_credential, bundle, google, role, session

BEFORE = bundle(session("before"), seq=10)
MARK = Mark(BEFORE.issuer, BEFORE.subject, BEFORE.seq, BEFORE.digest, START)
HERE = {"boot_id": "b", "firmware": {}}


def told(world: World, cloud: Cloud) -> str:
    answer = world.store.answer(cloud, world.clock.now())
    if isinstance(answer, Live):
        return "machine" if answer.origin is Origin.FALLBACK else "bundle"
    return type(answer).__name__.lower()


BROUGHT: dict[str, tuple[Mark | None, Bundle]] = {
    "older than what was in force there": (MARK, bundle(session(), google(), seq=5)),
    "withdrawn there": (None, BEFORE),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("brought", BROUGHT)
@looped
async def test_an_image_of_a_worker_takes_its_own_bundle(brought: str, *, late: bool) -> None:
    """By its own memory, which is empty, also if it learns its name only later; and no worker is the machine meanwhile."""
    active, sealed = BROUGHT[brought]
    memory = Memory("i-1", marks=(MARK,), decided={Cloud.AWS: None}, active=active)
    world = World(memory=memory, policy=Policy(fallback=frozenset(Cloud)))
    world.knows(b"x", sealed)
    identified = world.controller.intake.identified
    async with world.running():
        await identified(Whose.UNKNOWN if late else Whose.ANOTHERS, "" if late else "i-2", **HERE)  # type: ignore[arg-type]
        world.source.act(lambda _submit, _trouble, ok: ok())
        world.source.bring(b"x")
        await settle()
        if late:
            for _ in range(10):
                await world.clock.advance(30)
                assert told(world, Cloud.AWS) != "machine"
            await identified(Whose.ANOTHERS, "i-2", **HERE)  # type: ignore[arg-type]
            assert told(world, Cloud.AWS) != "machine"
            world.controller.intake.reconsider()
        await settle()
        assert told(world, Cloud.AWS) == "bundle"
        assert world.store.memory.instance_id == "i-2"


@pytest.mark.parametrize("brought", BROUGHT)
@looped
async def test_a_memory_that_was_ours_all_the_time_refuses_as_ever(brought: str) -> None:
    """What it says then is a verdict, and is told."""
    active, sealed = BROUGHT[brought]
    world = World(memory=Memory("i-1", marks=(MARK,), decided={Cloud.AWS: None}, active=active))
    world.knows(b"x", sealed)
    identified = world.controller.intake.identified
    async with world.running():
        await identified(Whose.UNKNOWN, "", **HERE)  # type: ignore[arg-type]
        ack = await world.submit(b"x")
        if active is not None:
            assert (ack.outcome, ack.code) == ("refused", KeyUnavailableError.code)
        await identified(Whose.OURS, "i-1", **HERE)  # type: ignore[arg-type]
        world.controller.intake.reconsider()
        await settle()
        assert world.store.bundle is None
        assert (world.source.acks[-1].outcome, world.source.acks[-1].code) == (
            ("refused", "rollback") if active is not None else ("same", None)
        )
        assert world.controller.intake.awaited.why == {}


LEFT = Memory("i-1", marks=(MARK,), decided={Cloud.AWS: OnExpiry.FALLBACK}, active=MARK)
"""Of a bundle whose loss would let the machine's identity back."""
CLOSED = Memory("i-1", decided=dict.fromkeys(Cloud, OnExpiry.DENY))
MAY_FALL_BACK = msgspec.structs.replace(BEFORE, on_expiry=OnExpiry.FALLBACK)


async def settled_as_ours(world: World) -> None:
    """It is a bundle that was found here, and its owner becomes known."""
    await world.controller.intake.identified(Whose.OURS, "i-1", **HERE, sealed=b"x")  # type: ignore[arg-type]


async def settled_as_anothers(world: World) -> None:
    """It was brought to this machine, whose name is learned late."""
    await world.submit(b"x")
    await world.clock.advance(30)
    world.opener.gate.clear()
    await world.controller.intake.identified(Whose.ANOTHERS, "i-2", **HERE)  # type: ignore[arg-type]


async def read_late(world: World) -> None:
    """The disk is read after all, and knows better than what came into force meanwhile."""
    await world.controller.intake.identified(Whose.OURS, "i-1", **HERE)  # type: ignore[arg-type]
    await world.submit(world.knows(b"y", bundle(role(), seq=3)))
    await world.clock.advance(30)
    world.opener.gate.clear()
    world.controller.intake.recall(LEFT, b"x")


@pytest.mark.parametrize(
    ("memory", "comes_back"),
    [(LEFT, settled_as_ours), (Memory(), settled_as_anothers), (CLOSED, read_late)],
    ids=["ours", "another's", "read late"],
)
@looped
async def test_nobody_is_told_that_it_is_the_machine_before_a_bundle_is_opened_again(
    memory: Memory, comes_back: Callable[[World], Awaitable[None]]
) -> None:
    """At none of the steps by which it comes back, though its loss would allow that: whoever waits is answered at each."""
    world = World(memory=memory, policy=Policy(fallback=frozenset(Cloud)))
    world.issuer.answer = lambda _call: Issued(aws_credential(world.clock.now()))
    world.knows(b"x", MAY_FALL_BACK)
    seen = list[str]()
    await world.controller.intake.identified(Whose.UNKNOWN, "", **HERE)  # type: ignore[arg-type]
    async with world.running():
        await world.clock.advance(30)
        world.store.watch(lambda: seen.append(told(world, Cloud.AWS)))
        await comes_back(world)
        await world.clock.advance(30)
        world.opener.gate.set()
        await settle()
        assert "machine" not in seen
        assert seen[-1] == "bundle"
