"""A handler of :mod:`tests.fakes.net` behind a socket of :mod:`tests.fakes.served`, for a daemon in another process."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from tests.fakes import net
from tests.fakes.served import Served


@dataclass
class Behind(Served):
    """Serves ``handler``. The diary is the handler's; ``asked`` has what went over the socket."""

    handler: net.Handler = field(kw_only=True)

    async def answer(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = net.Asked(request.method, request.raw_path, headers, await request.read(), headers.get("host", ""))
        answer = self.handler(asked)
        if not isinstance(answer, net.Answer):
            raise web.HTTPServiceUnavailable
        return web.Response(status=answer.status, body=answer.body, headers=dict(answer.headers))
