"""What a request may cause to be minted, over real sockets, and the bookkeeping beneath."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from agent.core.errors import Transient
from agent.core.model import CLOUD_PLATFORM, GoogleToken, IdToken
from agent.core.secret import Secret
from agent.serve import mints as mints_module
from agent.serve.mints import AT_ONCE, BURST, BURST_BY_ONE, MOST_WAITING, Mints, TooOften
from tests.fakes.clock import START, FakeClock
from tests.fakes.view import FakeView, RunningEndpoint, google_token, running_endpoint

SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
IDENTITY = "/computeMetadata/v1/instance/service-accounts/default/identity?audience={}"


def token(audience: str) -> IdToken:
    return IdToken(Secret("a.b.c"), audience, START, START + timedelta(hours=1))


@contextmanager
def endpoint(asked: list[str]) -> Iterator[RunningEndpoint]:
    view = FakeView()
    view.live_gcp(START)
    view.mints = True
    view.scopes = (CLOUD_PLATFORM,)

    async def demand(audience: str) -> IdToken:
        asked.append(audience)
        return token(audience)

    async def scoped(scopes: tuple[str, ...]) -> GoogleToken:
        asked.append(" ".join(scopes))
        return google_token(START)

    with running_endpoint(view, clock=FakeClock(), demand=demand, scoped=scoped) as server:
        yield server


def identity(server: RunningEndpoint, audience: str) -> bytes:
    request = f"GET {IDENTITY.format(audience)} HTTP/1.1\r\nHost: localhost\r\nMetadata-Flavor: Google\r\n\r\n"
    return server.send(request.encode())


def test_new_audiences_without_end() -> None:
    """However many audiences are invented, few are minted; the rest are told when to come again."""
    asked: list[str] = []
    with endpoint(asked) as server:
        answers = [identity(server, f"https://a{n}.example") for n in range(200)]
        assert len(asked) <= BURST_BY_ONE + 5  # what came back meanwhile
        assert answers[0].startswith(b"HTTP/1.1 200 ")
        assert answers[-1].startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: " in answers[-1]
        server.view.id_tokens["https://held.example"] = token("https://held.example")
        server.run(server.view.touch)
        assert identity(server, "https://held.example").startswith(b"HTTP/1.1 200 ")


def test_what_one_kind_took_another_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens for fewer scopes and for audiences are one share, as they are to the controller, which bounds them together."""
    monkeypatch.setattr(mints_module, "PER_SECOND_BY_ONE", 1e-9)
    asked: list[str] = []
    with endpoint(asked) as server:
        for n in range(int(BURST_BY_ONE)):
            assert identity(server, f"https://a{n}.example").startswith(b"HTTP/1.1 200 ")
        path = f"/computeMetadata/v1/instance/service-accounts/default/token?scopes={SCOPE}"
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nMetadata-Flavor: Google\r\n\r\n"
        assert server.send(request.encode()).startswith(b"HTTP/1.1 200 ")  # the ordinary one
        assert len(asked) == BURST_BY_ONE


class Owner:
    def __init__(self, owner: str) -> None:
        self._owner = owner

    async def owner(self) -> str:
        return self._owner


def test_one_takes_no_mint_from_another() -> None:
    """While one asker is refused, another's first audience is minted; all askers together have a bound too."""

    async def scenario() -> None:
        minted: list[str] = []

        async def demand(audience: str) -> IdToken:
            minted.append(audience)
            return token(audience)

        mints = Mints(demand, clock=lambda: 0.0)

        async def tried(audience: str, owner: str) -> bool:
            try:
                return await mints.mint(audience, Owner(owner), name="") is not None
            except TooOften:
                return False

        assert sum([await tried(f"g{n}", "greedy") for n in range(500)]) == BURST_BY_ONE
        assert await tried("p", "polite")
        others = [asyncio.create_task(tried(f"m{n}", f"owner {n}")) for n in range(2 * MOST_WAITING)]
        for _ in range(200):
            await asyncio.sleep(0)
        assert sum(one.done() and one.result() for one in others) == BURST - BURST_BY_ONE - 1
        assert len(minted) == BURST
        assert sum(not one.done() for one in others) <= MOST_WAITING  # no more wait, whoever they say they are

    asyncio.run(scenario())


def test_a_failure_is_kept_for_a_moment() -> None:
    """What failed is not tried again by the next request, and is after a while."""

    async def scenario() -> None:
        now, calls = 0.0, 0

        async def demand(_audience: str) -> IdToken:
            nonlocal calls
            calls += 1
            raise Transient("google is down")

        mints = Mints(demand, clock=lambda: now)
        for _ in range(10):
            with pytest.raises(Transient):
                await mints.mint("a", None, name="")
        assert calls == 1
        now = 60.0
        with pytest.raises(Transient):
            await mints.mint("a", None, name="")
        assert calls == 2

    asyncio.run(scenario())


def test_many_who_ask_for_the_same() -> None:
    """A thousand programs that ask for one audience at once are one mint, whoever they are; leaving ends it for nobody."""

    async def scenario() -> None:
        calls, gate = 0, asyncio.Event()

        async def demand(audience: str) -> IdToken:
            nonlocal calls
            calls += 1
            await gate.wait()
            return token(audience)

        mints = Mints(demand)
        tasks = [asyncio.create_task(mints.mint("a", Owner(f"owner {n % 7}"), name="")) for n in range(1000)]
        for _ in range(5):
            await asyncio.sleep(0)
        tasks[0].cancel()
        gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert all(isinstance(answer, IdToken) for answer in answers[1:])
        assert calls == 1

    asyncio.run(scenario())


def test_a_turn_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing that was asked for ends, what waits behind it does not pile up, to be minted later for nobody."""
    monkeypatch.setattr(mints_module, "TURN_SECONDS", 0.01)

    async def scenario() -> None:
        minted: list[str] = []
        gate = asyncio.Event()

        async def demand(audience: str) -> IdToken:
            minted.append(audience)
            await gate.wait()
            return token(audience)

        mints = Mints(demand, clock=lambda: 0.0)
        tasks = [asyncio.create_task(mints.mint(f"a{n}", Owner(f"owner {n}"), name="")) for n in range(AT_ONCE + 3)]
        late = [*tasks[AT_ONCE:], asyncio.create_task(mints.mint(f"a{AT_ONCE}", Owner("another"), name=""))]
        for one in late:
            with pytest.raises(TooOften):
                await one
        gate.set()
        assert all(await asyncio.gather(*tasks[:AT_ONCE]))
        assert len(minted) == AT_ONCE
        assert await mints.mint("a8", Owner("another"), name="") is not None

    asyncio.run(scenario())
