"""Places of long polls and of mints, counted by the server that gives them out and by the controller that bounds it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from agent import snapshot
from agent.core.model import Cloud, GoogleToken, IdToken
from agent.core.secret import Secret
from agent.daemon import passing
from agent.daemon import servers as servers_module
from agent.daemon.passing import Passing
from agent.daemon.requests import Requests
from agent.daemon.servers import Servers
from agent.serve import mints
from agent.serve import proxy as proxies
from agent.serve.link import Link
from agent.serve.mints import Mints, Shares
from agent.serve.proxy import Proxy
from agent.snapshot import ServeSettings
from tests.fakes.clock import START
from tests.fakes.upstreams import Scripted, answer
from tests.fakes.view import KEY, google_token
from tests.unit.serve.test_asking import settled
from tests.unit.serve.test_hiding import view_of

CONNECTIONS = 20
PLACES = 10
SECONDS = 600.0
INSTANCE = "/computeMetadata/v1/instance"
IDENTITY = "service-accounts/default/identity?audience=a"


class Owner:
    """Whoever asks."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def owner(self) -> str:
        return self.name


async def until(look: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not look():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.005)


def controller(
    real: Scripted,
    id_token: Callable[[str], Awaitable[IdToken | None]],
    access_token: Callable[[tuple[str, ...]], Awaitable[GoogleToken | None]],
    clock: Callable[[], float],
) -> Servers:
    """What a server asks, with its own bounds."""
    view = view_of("fallback")
    data = snapshot.encode(view.served.now)
    return Servers(
        lambda: data,
        version=lambda: 0,
        passing=lambda: Passing(
            {Cloud.GCP: real, Cloud.AWS: real},
            ServeSettings(token_key=KEY, passed_connections=CONNECTIONS, gce_upstream_seconds=SECONDS),
            answer=lambda cloud: view.served.answer(cloud, START.timestamp()),
            expects_bundle=lambda: True,
        ),
        id_token=id_token,
        access_token=access_token,
        requests=Requests(),
        clock=clock,
    )


async def linked(servers: Servers) -> Link:
    """Another server of that controller's."""
    loop, link, (ours, its) = asyncio.get_running_loop(), Link(), socket.socketpair()
    servers.link(ours)
    await loop.create_unix_connection(link.protocol, sock=its)
    await link.first()
    return link


def test_a_place_that_was_taken_from_the_greedy_is_had() -> None:
    """The controller hears of the one who comes before it hears of the one who goes: it refuses nobody for that."""

    async def scenario() -> None:
        real = Scripted()
        real.gate = asyncio.Event()
        servers = controller(real, nothing, nothing, asyncio.get_running_loop().time)
        link = await linked(servers)
        proxy = Proxy(link.service(Cloud.GCP), seconds=2.5, connections=CONNECTIONS)

        def poll(name: str, number: int) -> asyncio.Task[Any]:
            target = f"/computeMetadata/v1/instance/tags?wait_for_change=true&timeout_sec={60 + number}"
            return asyncio.create_task(proxy.fetch("GET", target, hang_seconds=65.0, asker=Owner(name)))

        greedy = [poll("greedy", number) for number in range(PLACES)]
        await until(lambda: real.under_way == PLACES)
        other = poll("other", PLACES)
        await until(lambda: sum(one.done() for one in greedy) == 1)
        await until(lambda: other.done() or any("timeout_sec=70" in one.path_qs for one in real.asked))
        assert not other.done()
        for one in (*greedy, other):
            one.cancel()
        await asyncio.gather(*greedy, other, return_exceptions=True)
        link.close()
        servers.close()

    asyncio.run(scenario())


def test_the_answers_of_all_that_wait_for_one_change_are_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much the long polls of one worker are told at once, the server is not cut off, and what is small waits for none.

    A real service answers all of them in the same moment, and a server reads them one by one.
    """
    body = b"x" * (1 << 17)
    monkeypatch.setattr(servers_module, "MOST_UNREAD_BYTES", len(body) * PLACES // 2)

    async def scenario() -> None:
        real = Scripted({f"{INSTANCE}/zone": answer("z")})
        real.always, real.gate = answer(body), asyncio.Event()
        servers = controller(real, nothing, nothing, asyncio.get_running_loop().time)
        link = await linked(servers)
        service, order = link.service(Cloud.GCP), list[str]()

        async def ask(target: str) -> bytes:
            found = await service.request("GET", f"{INSTANCE}/{target}", timeout_seconds=SECONDS)
            order.append(target)
            return found.body

        polls = [asyncio.create_task(ask(f"tags?wait_for_change=true&timeout_sec={60 + n}")) for n in range(PLACES)]
        await until(lambda: real.under_way == PLACES)
        small = asyncio.create_task(ask("zone"))
        await until(lambda: real.under_way == PLACES + 1)
        real.gate.set()
        assert await asyncio.gather(*polls) == [body] * PLACES
        assert await small == b"z"
        assert order.index("zone") < PLACES // 2
        link.close()
        servers.close()

    asyncio.run(scenario())


async def nothing(_wanted: Any) -> None:
    return None


@pytest.mark.parametrize("made", [False, True], ids=["looked up", "made"])
def test_what_a_server_lets_in_is_asked(monkeypatch: pytest.MonkeyPatch, made: bool) -> None:
    """The controller, which refuses any worker alike, asks all that the server's fair shares let through.

    Not only as much as one kind of question, or one cloud, has under way; and not only as much as comes at once, when all
    that waited for its turn comes together with all that is let in then.
    """
    most, per_second, of_one = (
        (proxies.MADE_AT_ONCE, proxies.MADE_PER_SECOND, proxies.MADE_AT_ONCE_BY_ONE)
        if made
        else (proxies.ASKED_AT_ONCE, proxies.ASKED_PER_SECOND, proxies.ASKED_AT_ONCE_BY_ONE)
    )

    async def scenario() -> None:
        now = 0.0
        for module in (passing, proxies):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
        real = Scripted()
        real.gate = asyncio.Event()
        servers = controller(real, nothing, nothing, asyncio.get_running_loop().time)
        link = await linked(servers)
        ec2 = Proxy(link.service(Cloud.AWS), seconds=SECONDS, connections=CONNECTIONS)
        gce = Proxy(link.service(Cloud.GCP), seconds=SECONDS, connections=CONNECTIONS)
        asked = []

        def ask(proxy: Proxy, target: str, owner: str, *, made: bool = False) -> None:
            asked.append(asyncio.create_task(proxy.fetch("GET", target, made=made, asker=Owner(owner))))

        def ask_gce(path: str, numbers: range, *, made: bool = False) -> None:
            for n in numbers:
                ask(gce, f"{INSTANCE}/{path}{n}", f"owner {n // int(of_one)}", made=made)

        for n in range(PLACES):
            ask(ec2, f"/latest/meta-data/x{n}", "greedy")
        ask_gce("tags/", range(PLACES))
        ask_gce(IDENTITY, range(proxies.MADE_CONCURRENCY), made=True)
        await until(lambda: real.under_way + sum(one.done() for one in asked) == len(asked))
        assert real.under_way == 2 * PLACES + proxies.MADE_CONCURRENCY
        path, let_in = (IDENTITY, proxies.MADE_CONCURRENCY) if made else ("x", PLACES + proxies.MADE_CONCURRENCY)
        ask_gce(path, range(let_in, int(most)), made=made)
        await settled()
        now += 2
        ask_gce(path, range(int(most), int(most + 2 * per_second)), made=made)
        await settled()
        real.gate.set()
        found = await asyncio.gather(*asked)
        assert all(found)
        link.close()
        servers.close()

    asyncio.run(scenario())


def test_what_a_server_lets_in_is_minted() -> None:
    """The controller, which refuses any worker alike, refuses none that keeps to its share, whatever another has minted.

    Not while the greedy has as many tokens of another kind minted as there are places, not where another server begins
    while that one ends, and not when all that has waited for its turn comes together with all that may come at once.
    """

    async def scenario() -> None:
        now, go, under_way, most = 0.0, asyncio.Event(), 0, 0

        async def minting() -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await go.wait()
            under_way -= 1

        async def id_token(audience: str) -> IdToken:
            await minting()
            return IdToken(Secret("a.b.c"), audience, START, START)

        async def access_token(_scopes: tuple[str, ...]) -> GoogleToken:
            await minting()
            return google_token(START)

        servers = controller(Scripted(), id_token, access_token, lambda: now)
        asked: list[asyncio.Task[Any]] = []
        links = [await linked(servers), await linked(servers)]
        begun = []
        for link in links:
            shares = Shares(lambda: now)
            narrow = Mints(lambda wanted, link=link: link.scoped((wanted,)), shares, clock=lambda: now)  # type: ignore[misc]
            begun.append(Mints(link.id_token, shares, clock=lambda: now))
            asked += [asyncio.create_task(narrow.mint(f"n{n}", Owner("greedy"), name="")) for n in range(mints.AT_ONCE)]
        await until(lambda: under_way == mints.AT_ONCE_ASKED)
        former, ids = begun
        asked.append(asyncio.create_task(former.mint("polite", Owner("polite"), name="")))

        def ask_all(first: int, owners: int) -> None:
            for owner in range(first, first + owners):
                for n in range(int(mints.BURST_BY_ONE)):
                    asked.append(asyncio.create_task(ids.mint(f"{owner}-{n}", Owner(f"owner {owner}"), name="")))

        ask_all(0, 3)
        await settled()
        now += mints.TURN_SECONDS
        ask_all(3, 1)
        await settled()
        go.set()
        async with asyncio.timeout(60):
            found = await asyncio.gather(*asked)
        assert all(found)
        assert most == mints.AT_ONCE_ASKED
        for link in links:
            link.close()
        servers.close()

    asyncio.run(scenario())
