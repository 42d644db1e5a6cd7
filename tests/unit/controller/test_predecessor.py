"""What a former bundle left is served until its successor has a credential, and no longer than its own sender lets it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from agent.core.errors import Transient
from agent.core.model import Action, AwsWebIdentity, Cloud, WebTokenInline
from agent.core.secret import Secret
from agent.core.verdict import Accepted
from agent.core.view import Live
from agent.identity.events import TrustNarrowed
from tests.fakes.clock import START, settle
from tests.unit.controller.support import World, looped
from tests.unit.identity.driver import Store
from tests.unit.identity.test_small_print import store, take
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


@pytest.mark.parametrize("gone", ["its own signer", "another signer"])
@looped
async def test_it_ends_with_its_signer(gone: str) -> None:
    """At once, and whatever becomes of its successor, which another signer sent."""
    world = World()
    world.issuer.answer = lambda call: Transient("down", code="network") if call.cloud is None else None
    async with world.running():
        await world.submit(world.knows(b"one", replace(bundle(session()), signer_kid="a")))
        await world.submit(world.knows(b"two", replace(bundle(ROLE, seq=2), signer_kid="b")))
        await settle(40)
        world.controller.intake.review({"b"} if gone == "its own signer" else {"a", "b"})
        assert served(world) == (None if gone == "its own signer" else session().access_key_id)
        await settle(40)
        assert world.store.bundle is not None
        assert world.store.bundle.seq == 2


@pytest.mark.parametrize("known", [True, False], ids=["by this version", "by an earlier version"])
def test_the_next_process_knows_whose_it_is(*, known: bool) -> None:
    """It ends with its own stream and signer there as well; of an earlier version's, nothing says so: with any."""
    before = store()
    take(before, replace(bundle(session(hours=5)), signer_kid="a"))
    second = replace(bundle(ROLE, issuer="cp2", subject="other"), signer_kid="b")
    take(before, second)
    (left,) = before.remnants()
    assert (left.stream, left.signer) == (("cp", "team"), "a")

    def next_process() -> Store:
        made = store(before.memory)
        verdict = made.evaluate(second, START, resume=True)
        assert isinstance(verdict, Accepted)
        made.accept(verdict, START)
        assert made.restore_remnant(left if known else left._replace(stream=None, signer=""), START)
        return made

    for kept, stays in ((frozenset("ab"), known), (frozenset("b"), False)):
        made = next_process()
        made.apply(TrustNarrowed(kept), START)
        assert bool(made.remnants()) is stays
    for subject, stays in (("third", known), ("team", False)):
        made = next_process()
        take(made, bundle(subject=subject, seq=2, action=Action.WITHDRAW))
        assert bool(made.remnants()) is stays
