"""``token?scopes=`` narrows what the bundle gives, and never widens it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from msgspec.structs import replace

from agent.core.errors import Denied, Transient
from agent.core.model import (
    CLOUD_PLATFORM,
    Bundle,
    Cloud,
    GcpExternalAccount,
    GcpServiceAccount,
    GcpToken,
    GoogleToken,
    Grant,
)
from agent.core.scopes import given_by, narrower
from agent.core.secret import Secret
from tests.fakes.clock import settle
from tests.unit.controller.support import Call, Issued, World, looped
from tests.unit.identity.worlds import HOUR, bundle, google_token, session

AUTH = "https://www.googleapis.com/auth/"
READ = f"{AUTH}devstorage.read_only"
DRIVE = f"{AUTH}drive"


def account(*scopes: str) -> GcpServiceAccount:
    given = GcpServiceAccount(id="sa", client_email="sa@p.example", private_key_id="1", private_key=Secret("k"))
    return replace(given, scopes=scopes) if scopes else given


@pytest.mark.parametrize(
    ("grant", "asked", "minted"),
    [
        (account(), (READ,), (READ,)),
        (account(), (f"{AUTH}bigquery", READ, READ), (f"{AUTH}bigquery", READ)),
        (account(), (READ, f"{AUTH}userinfo.email", "openid"), (f"{AUTH}userinfo.email", READ, "openid")),
        (account(DRIVE, READ), (DRIVE,), (DRIVE,)),
        (account(), (CLOUD_PLATFORM,), None),
        (account(), (CLOUD_PLATFORM, READ), None),
        (account(DRIVE, READ), (READ, DRIVE), None),
        (account(), (DRIVE,), None),
        (account(), (READ, DRIVE), None),
        (account(READ), (CLOUD_PLATFORM,), None),
        (account(READ), (f"{AUTH}devstorage.full_control",), None),
        (account(), (), None),
        (account(), ("https://evil.example/auth/devstorage.read_only",), None),
        (account(), ("devstorage.read_only",), None),
        (account(), (READ + '"',), None),
        (account(), tuple(f"{AUTH}bigquery{n}" for n in range(17)), None),
        (None, (READ,), None),
    ],
)
def test_only_what_the_sender_gave(grant: Grant | None, asked: tuple[str, ...], minted: tuple[str, ...] | None) -> None:
    """A wish is minted when it is less than the grant gives and wholly in it; else the ordinary token answers."""
    assert narrower(given_by(grant), asked) == (None if minted is None else tuple(sorted(minted)))


def test_a_finished_token_cannot_be_narrowed() -> None:
    """There is nothing to mint from."""
    token = GcpToken(id="t", access_token=Secret("x"), expires_at=1_800_000_000)
    assert narrower(given_by(token), (READ,)) is None


async def serving(world: World) -> None:
    world.issuer.answer = lambda call: Issued(google_token(call.at)) if call.cloud is not Cloud.AWS else None
    await world.submit(world.knows(b"one", bundle(account(), routes={Cloud.GCP: "sa"})))
    await settle(40)


def held(world: World, scope: str) -> GoogleToken | None:
    """What may be handed out now for one scope."""
    found = {scopes: token for scopes, token, _ in world.controller.issuing.scoped.held(world.clock.now())}
    return found.get((scope,))


@looped
async def test_a_narrow_token_is_held_while_it_is_good() -> None:
    """It is minted once, held until ten minutes before its end, and of no use after a withdrawal."""
    world = World()
    async with world.running():
        await serving(world)
        assert held(world, READ) is None
        token = await world.controller.issuing.scoped.mint((READ,))
        assert token is not None
        assert held(world, READ) is token
        assert held(world, f"{AUTH}bigquery") is None
        await world.clock.advance((token.expires_at - world.clock.now() - timedelta(minutes=9)).total_seconds())
        assert held(world, READ) is None
        told: list[GoogleToken | None] = []
        world.store.watch(lambda: told.append(held(world, READ)))
        again = await world.controller.issuing.scoped.mint((READ,))
        assert held(world, READ) is again
        assert told == [again]  # whoever answers workers hears of it at once: nothing else changes with it
        await world.submit(world.knows(b"two", bundle(account(READ), routes={Cloud.GCP: "sa"}, seq=2)))
        await settle(40)
        assert held(world, READ) is None


def lasting_an_hour(call: Call) -> Issued | None:
    """As a token endpoint says it: for how long, and by no clock."""
    return Issued(google_token(call.at), lifetime=HOUR) if call.cloud is not Cloud.AWS else None


@pytest.mark.parametrize("hours", [-8, 8])
@looped
async def test_a_clock_that_is_put_right_makes_no_token_last_longer(hours: int) -> None:
    """How long it lasts was counted from a moment of our clock, and moves along: else it is shown as good for hours."""
    world = World()
    async with world.running():
        await serving(world)
        world.issuer.answer = lasting_an_hour
        assert await world.controller.issuing.scoped.mint((READ,)) is not None
        seen: list[timedelta] = []

        def look() -> None:
            token = held(world, READ)
            seen.append(token.expires_at - world.clock.now() if token is not None else timedelta())

        world.store.watch(look)  # no reader sees the new time beside the old end
        world.clock.set_utc(world.clock.now() + hours * HOUR)
        world.controller.time_moved()
        await settle()
        assert seen
        assert set(seen) == {HOUR}
        await world.clock.advance(49 * 60)
        assert held(world, READ) is not None
        await world.clock.advance(2 * 60)
        assert held(world, READ) is None


@pytest.mark.parametrize("hours", [-8, 8])
@looped
async def test_a_clock_that_is_put_right_meanwhile_makes_no_token_last_longer(hours: int) -> None:
    """The answer to a question that was asked before that is counted from the question on, too."""
    world = World()
    async with world.running():
        await serving(world)

        def answer(call: Call) -> Issued | None:
            issued = lasting_an_hour(call)
            world.clock.set_utc(world.clock.now() + hours * HOUR)
            world.controller.time_moved()
            return issued

        world.issuer.answer = answer
        token = await world.controller.issuing.scoped.mint((READ,))
        assert token is not None
        assert token.expires_at - world.clock.now() == HOUR
        assert held(world, READ) is token


@looped
async def test_a_token_lasts_from_the_question_on_and_not_from_the_answer() -> None:
    """An answer that was long on its way is as much the older: else it is shown as good when the cloud refuses it."""
    world = World()
    async with world.running():
        await serving(world)

        def answer(call: Call) -> Issued | None:
            world.clock.move(10)
            return lasting_an_hour(call)

        world.issuer.answer = answer
        token = await world.controller.issuing.scoped.mint((READ,))
        assert token is not None
        assert token.expires_at - world.clock.now() == HOUR - timedelta(seconds=10)


@looped
async def test_a_token_that_is_over_is_given_to_nobody() -> None:
    """A cache, or a clock that is hours off: the ordinary token is the answer."""
    world = World()
    async with world.running():
        await serving(world)
        world.issuer.answer = lambda call: Issued(google_token(call.at), lifetime=timedelta())
        assert await world.controller.issuing.scoped.mint((READ,)) is None
        assert held(world, READ) is None


@pytest.mark.parametrize("error", [Denied("no"), Transient("down"), ZeroDivisionError("bug")])
@looped
async def test_a_mint_that_fails_is_no_crash(error: Exception) -> None:
    """What the cloud refuses is an error of its kind; a bug of ours is none at all, and the next one tries again."""
    world = World()
    async with world.running():
        await serving(world)
        fine = world.issuer.answer

        def broken(_: Call) -> Exception:
            return error

        world.issuer.answer = broken
        if isinstance(error, ZeroDivisionError):
            assert await world.controller.issuing.scoped.mint((READ,)) is None
        else:
            with pytest.raises(type(error)):
                await world.controller.issuing.scoped.mint((READ,))
        world.issuer.answer = fine
        assert await world.controller.issuing.scoped.mint((READ,)) is not None


@looped
async def test_a_pause_that_was_asked_for_is_heard() -> None:
    """`Retry-After`: until then no wish for fewer scopes is a call."""
    world = World()
    async with world.running():
        await serving(world)
        fine, before = world.issuer.answer, len(world.issuer.calls)
        world.issuer.answer = lambda _: Transient("slow down", pause_seconds=10.0)
        for scope in (READ, f"{AUTH}bigquery", READ):
            with pytest.raises(Transient, match="slow down"):
                await world.controller.issuing.scoped.mint((scope,))
        assert len(world.issuer.calls) == before + 1
        world.issuer.answer = fine
        await world.clock.advance(10)
        assert await world.controller.issuing.scoped.mint((READ,)) is not None


FEDERATED = GcpExternalAccount(
    id="f", audience="//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/a", base="user"
)


@pytest.mark.parametrize("flies", [False, True])
@looped
async def test_a_token_of_a_source_that_was_replaced_is_nobody_s(*, flies: bool) -> None:
    """The grant reads the same, and another person's session is what it is made from now; also if it was being minted."""
    world = World()

    def of_its_source(call: Call) -> Issued | None:
        if call.cloud is not None:
            return None
        key = getattr(call.base, "access_key_id", "")
        return Issued(replace(google_token(call.at), access_token=Secret(f"of {key}"), email=None), lifetime=HOUR)

    def of(key: str, seq: int) -> Bundle:
        return bundle(session(key=key), FEDERATED, routes={Cloud.GCP: "f"}, seq=seq, salt=key)

    world.issuer.answer = of_its_source
    scoped = world.controller.issuing.scoped
    async with world.running():
        await world.submit(world.knows(b"one", of("ASIAALICE00000000000", 1)))
        await settle(40)
        if flies:
            world.issuer.gate.clear()
        minting = asyncio.create_task(scoped.mint((READ,)))
        await settle(10)
        assert minting.done() is not flies
        await world.submit(world.knows(b"two", of("ASIABOB0000000000000", 2)))
        world.issuer.gate.set()
        await settle(40)
        minted = await minting
        assert (minted is None) is flies
        assert list(scoped.held(world.clock.now())) == []
        again = await scoped.mint((READ,))
        assert again is not None
        assert again.access_token.reveal() == "of ASIABOB0000000000000"
        assert [token for _, token, _ in scoped.held(world.clock.now())] == [again]
