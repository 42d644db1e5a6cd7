"""The places of long polls, counted by the server that gives them out and by the controller that bounds it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from agent import snapshot
from agent.core.model import Cloud
from agent.daemon.passing import Passing
from agent.daemon.requests import Requests
from agent.daemon.servers import Servers
from agent.serve.link import Link
from agent.serve.proxy import Proxy
from agent.snapshot import ServeSettings
from tests.fakes.clock import START
from tests.fakes.upstreams import Scripted
from tests.fakes.view import KEY
from tests.unit.serve.test_hiding import view_of

CONNECTIONS = 20
PLACES = 10


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


def test_a_place_that_was_taken_from_the_greedy_is_had() -> None:
    """The controller hears of the one who comes before it hears of the one who goes: it refuses nobody for that."""

    async def nothing(_wanted: Any) -> None:
        return None

    async def scenario() -> None:
        loop, real, view = asyncio.get_running_loop(), Scripted(), view_of("bundle")
        real.gate = asyncio.Event()
        settings = ServeSettings(token_key=KEY, passed_connections=CONNECTIONS)
        data = snapshot.encode(view.served.now)
        servers = Servers(
            lambda: data,
            version=lambda: 0,
            passing=lambda: Passing(
                {Cloud.GCP: real}, settings, answer=lambda cloud: view.served.answer(cloud, START), expects_bundle=lambda: True
            ),
            id_token=nothing,
            access_token=nothing,
            requests=Requests(),
            clock=loop.time,
        )  # fmt: skip
        link, (ours, its) = Link(), socket.socketpair()
        await loop.create_unix_connection(servers.protocol, sock=ours)
        await loop.create_unix_connection(link.protocol, sock=its)
        await link.first()
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
