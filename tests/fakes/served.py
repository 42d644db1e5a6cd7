"""What the fake services have in common: a loopback socket, a diary of what was asked, faults on demand, an own process.

Nothing here knows a protocol. A fake derives from :class:`Served`, answers in :meth:`Served.answer`, and may offer
``POST /_admin/NAME`` calls by listing coroutines in ``admin``: that is how another process edits its state, as a
cloud's control plane would.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

ADMIN = "/_admin/"


@dataclass(frozen=True)
class Asked:
    """One request and what became of it.

    Attributes:
        path: as it stood on the wire, query included.
        headers: names in lower case.
        status: of the answer; ``None`` when the connection was dropped or is still open.
        at: monotonic seconds.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int | None
    at: float


@dataclass
class Fault:
    """What goes wrong next with requests whose path begins with ``prefix``.

    Attributes:
        status: answer this, with ``body``; ``None`` for the right answer.
        delay: seconds before anything is sent.
        drop: close the connection without an answer.
        times: how many requests it hits; ``None`` for all from now on.
        headers: of the answer with that status.
    """

    prefix: str = "/"
    status: int | None = None
    body: bytes = b""
    delay: float = 0.0
    drop: bool = False
    times: int | None = 1
    headers: Mapping[str, str] = field(default_factory=dict)


Admin = Callable[[dict[str, Any]], Awaitable[Any] | Any]


@dataclass
class Served:
    """A fake service on a loopback port. Use it as an asynchronous context manager, or :func:`run` it as a process.

    Attributes:
        certificate: file of a certificate and its key; with it, port 443 speaks TLS besides.
    """

    asked: list[Asked] = field(default_factory=list, kw_only=True)
    faults: deque[Fault] = field(default_factory=deque, kw_only=True)
    admin: dict[str, Admin] = field(default_factory=dict, kw_only=True, repr=False)
    url: str = field(default="", kw_only=True)
    certificate: str | None = field(default=None, kw_only=True)
    _runner: web.AppRunner | None = field(default=None, kw_only=True, repr=False)

    async def answer(self, request: web.Request) -> web.Response:
        """The protocol: derived classes say it."""
        raise NotImplementedError

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; returns the base URL, without a final slash."""
        app = web.Application(client_max_size=1 << 21)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=1024).start()
        bound = self._runner.addresses[0]
        self.url = f"http://[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"http://{bound[0]}:{bound[1]}"
        if self.certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(self.certificate)
            await web.TCPSite(self._runner, host, 443, ssl_context=tls).start()
        return self.url

    async def stop(self) -> None:
        """Close the port: from now on, connections are refused."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def inject(self, fault: Fault) -> None:
        """Let something go wrong."""
        self.faults.append(fault)

    def paths(self, method: str | None = None) -> list[str]:
        """What was asked so far, queries left out."""
        return [asked.path.partition("?")[0] for asked in self.asked if method in (None, asked.method)]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.path.startswith(ADMIN):
            return await self._administer(request, body)
        status: int | None = None
        try:
            fault = self._fault(request.raw_path)
            if fault is not None and fault.delay:
                await asyncio.sleep(fault.delay)
            if fault is not None and fault.drop:
                if request.transport is not None:
                    request.transport.abort()
                return web.Response()
            if fault is not None and fault.status is not None:
                response = web.Response(status=fault.status, body=fault.body, headers=fault.headers)
            else:
                response = await self.answer(request)
            status = response.status
            return response
        finally:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.asked.append(Asked(request.method, request.raw_path, headers, body, status, time.monotonic()))

    def _fault(self, path: str) -> Fault | None:
        for fault in self.faults:
            if path.startswith(fault.prefix):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.faults.remove(fault)
                return fault
        return None

    async def _administer(self, request: web.Request, body: bytes) -> web.Response:
        call = self.admin.get(request.path.removeprefix(ADMIN))
        if call is None or request.method != "POST":
            return web.json_response({"error": f"no such call; there are {sorted(self.admin)}"}, status=404)
        result = call(json.loads(body) if body else {})
        if isinstance(result, Awaitable):
            result = await result
        return web.json_response(result)


def run(fake: Served, argv: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; the first line on stdout is ``{"url": ...}``, flushed when the port is open."""
    parser = argparse.ArgumentParser(description=(type(fake).__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one, printed as JSON on the first line")
    parser.add_argument("--certificate", help="file of a certificate and its key: port 443 speaks TLS besides")
    arguments = parser.parse_args(argv)
    fake.certificate = arguments.certificate

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        url = await fake.start(arguments.host, arguments.port)
        sys.stdout.write(json.dumps({"url": url}) + "\n")
        sys.stdout.flush()
        await stop.wait()
        await fake.stop()

    asyncio.run(serve())
