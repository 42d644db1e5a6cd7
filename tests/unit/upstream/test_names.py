"""A name server that is silent holds up those who ask for its names, and nobody else."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from agent.host.threads import Threads
from agent.upstream import Reach, Upstream, UpstreamError, UpstreamSettings
from tests.fakes.net import Answer, serve


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Names below silent.example are never answered until the event is set."""
    answered = threading.Event()
    really = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **more: Any) -> Any:
        if str(host).endswith("silent.example"):
            answered.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no name server")
        return really(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield answered
    answered.set()


def test_names_that_bundles_give_do_not_hold_up_the_operators(silent: threading.Event) -> None:
    """Forty look-ups of a bundle's hosts hang; one of the operator's host goes on."""

    async def main() -> None:
        out = Upstream(UpstreamSettings(connect_timeout_seconds=50), lookups=lambda: Threads(8))
        async with serve(lambda _: Answer(200, b"hello")) as url:
            port = url.rpartition(":")[2]
            hanging = [
                asyncio.create_task(out.request("GET", f"https://h{n}.silent.example/", reach=Reach.PUBLIC))
                for n in range(40)
            ]
            while sum(t.name == "aside" for t in threading.enumerate()) < 8:  # noqa: ASYNC110 - threads tell no loop
                await asyncio.sleep(0)
            async with asyncio.timeout(20):
                answer = await out.request("GET", f"http://localhost:{port}/", reach=Reach.CONFIGURED)
            assert answer.body == b"hello"
            assert not any(task.done() for task in hanging)
            silent.set()
            for result in await asyncio.gather(*hanging, return_exceptions=True):
                assert isinstance(result, UpstreamError)
        await out.close()

    asyncio.run(main())


def test_a_name_that_nobody_knows_is_an_error_of_the_way_out() -> None:
    """What getaddrinfo says is told as an upstream's failure that will pass."""

    async def main() -> None:
        out = Upstream(lookups=lambda: Threads(1))
        with pytest.raises(UpstreamError, match=r"nobody\.invalid"):
            await out.request("GET", "http://nobody.invalid/")
        await out.close()

    asyncio.run(main())
