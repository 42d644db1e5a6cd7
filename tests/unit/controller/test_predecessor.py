"""What a former bundle left is served until its successor has a credential, and no longer than its own sender lets it."""

from __future__ import annotations

import pytest

from agent.core.errors import Transient
from agent.core.model import Action, AwsWebIdentity, Cloud, WebTokenInline
from agent.core.secret import Secret
from agent.core.view import Live
from tests.fakes.clock import settle
from tests.unit.controller.support import World, looped
from tests.unit.identity.worlds import bundle, session

ROLE = AwsWebIdentity(
    id="w", role_arn="arn:aws:iam::123456789012:role/x", token=WebTokenInline(token=Secret("a.e30.c"))
)


def served(world: World) -> str | None:
    answer = world.store.answer(Cloud.AWS, world.clock.now())
    return getattr(answer.credential, "access_key_id", None) if isinstance(answer, Live) else None


@pytest.mark.parametrize("withdrawn", ["its own stream", "another stream"])
@looped
async def test_it_ends_with_the_withdrawal_of_its_stream(withdrawn: str) -> None:
    """Though another sender's bundle is in force, which has nothing yet: the withdrawal says that nothing is served."""
    world = World()
    world.issuer.answer = lambda call: Transient("down", code="network") if call.cloud is None else None
    async with world.running():
        await world.submit(world.knows(b"one", bundle(session())))
        await world.submit(world.knows(b"two", bundle(ROLE, issuer="cp2", subject="other")))
        await settle(40)
        assert served(world) == session().access_key_id
        subject = "third" if withdrawn == "another stream" else bundle(session()).subject
        ack = await world.submit(world.knows(b"three", bundle(seq=2, action=Action.WITHDRAW, subject=subject)))
        assert ack.outcome == "accepted"
        assert served(world) == (None if withdrawn == "its own stream" else session().access_key_id)
