"""How fakes are reached: over loopback sockets, or in the same process for simulations that live for days.

A fake is a function from what was asked to an answer or a fault. :func:`serve` puts it behind a real socket;
:class:`InProcess` stands in for :class:`agent.upstream.Upstream` (the same ``request``, ``open`` and ``close``) and
costs microseconds.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from agent.upstream import Reach, UpstreamError, UpstreamResponse, origin_of
from agent.upstream.dates import date_of


@dataclass(frozen=True)
class Asked:
    """A request as it arrived. Header names are in lower case."""

    method: str
    path_qs: str
    headers: Mapping[str, str]
    body: bytes = b""
    host: str = ""

    @property
    def path(self) -> str:
        return self.path_qs.partition("?")[0]

    @property
    def query(self) -> str:
        return self.path_qs.partition("?")[2]


@dataclass(frozen=True)
class Answer:
    """An answer to be sent as it is."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Fault(enum.Enum):
    """What networks and servers do instead of answering."""

    HANG = "hang"  # accept the request and say nothing
    DOWN = "down"  # close the connection without a word


Handler = Callable[[Asked], Answer | Fault]


class InProcess:
    """An ``Upstream`` without sockets.

    Args:
        routes: handlers by origin (``https://sts.eu-west-1.amazonaws.com``); the origin ``*`` answers for all others.
    """

    def __init__(self, routes: Mapping[str, Handler]) -> None:
        self.routes = dict(routes)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        timeout_seconds: float | None = None,
        max_bytes: int | None = None,
        reach: Reach = Reach.CONFIGURED,
    ) -> UpstreamResponse:
        origin = origin_of(url)
        handler = self.routes.get(origin) or self.routes.get("*")
        if handler is None:
            raise UpstreamError(f"cannot connect to {origin}", code="network")
        path_qs = "/" + url.split("://", 1)[1].partition("/")[2] if "/" in url.split("://", 1)[1] else "/"
        lowered = {name.lower(): value for name, value in CIMultiDict(headers).items()}
        host = origin.split("://", 1)[1]
        answer = handler(Asked(method, path_qs, lowered, body or b"", lowered.get("host", host)))
        # Let other tasks run, as a real request would.
        await asyncio.sleep(0)
        if answer is Fault.HANG:
            raise UpstreamError(f"{origin} did not answer in time", code="timeout")
        if not isinstance(answer, Answer):
            raise UpstreamError(f"{origin} closed the connection without an answer", code="network")
        length = {"Content-Length": str(len(answer.body))}  # as servers say it
        headers_ = CIMultiDictProxy(CIMultiDict({**length, **answer.headers}))
        return UpstreamResponse(answer.status, headers_, answer.body, date_of(headers_))

    async def close(self) -> None:
        pass


@asynccontextmanager
async def serve(handler: Handler, *, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """Serve ``handler`` on a loopback port; gives the base URL without a final slash."""
    stopping = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        asked = Asked(
            request.method,
            request.raw_path,
            {name.lower(): value for name, value in request.headers.items()},
            await request.read(),
            request.headers.get("Host", ""),
        )
        answer = handler(asked)
        if answer is Fault.HANG:
            await stopping.wait()
        if not isinstance(answer, Answer):
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        stopping.set()
        await runner.cleanup()
