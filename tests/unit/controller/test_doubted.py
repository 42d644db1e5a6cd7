"""While it is not known whose the memory is, what it says against a bundle is no verdict."""

from __future__ import annotations

import pytest

from agent.core.errors import KeyUnavailableError
from agent.core.model import Bundle, Cloud
from agent.core.verdict import Mark, Memory, Policy
from agent.core.view import Live, Origin
from agent.identity.whose import Whose
from tests.fakes.clock import START, settle
from tests.unit.controller.support import World, looped
from tests.unit.identity.worlds import bundle, google, session

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
