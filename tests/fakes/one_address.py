"""What answers at 169.254.169.254 where there is neither EC2 nor Google: the other services that live there, and no service.

EC2's and Google's own fakes answer the other's questions as the real ones do: EC2 with 401, 404 or 405 in its own name, Google with
403 or 404 and its flavor.
"""

from __future__ import annotations

from aiohttp import web

from tests.fakes.served import Served


class Azure(Served):
    """Azure's service: 400 to whoever does not send ``Metadata: true`` ("Azure Instance Metadata Service", errors)."""

    async def answer(self, request: web.Request) -> web.Response:
        del request
        body = b'{ "error": "Bad request. Required metadata header not specified" }'
        return web.Response(status=400, body=body, headers={"Server": "IMDS/150.870.65.1854"})


class OpenStack(Served):
    """Nova's: EC2's first version alone, so no session token; and no identity document."""

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/latest/meta-data/instance-id":
            return web.Response(text="i-00000001")
        page = b"<html>\n <head>\n  <title>404 Not Found</title>\n </head>\n</html>"
        return web.Response(status=404, body=page, content_type="text/html")


class Portal(Served):
    """A captive portal: it answers everything, with a page or the way to one."""

    status = 200

    async def answer(self, request: web.Request) -> web.Response:
        del request
        return web.Response(status=self.status, body=b"<html>sign in", headers={"Server": "nginx", "Location": "/in"})


class Redirecting(Portal):
    """The same, by 302."""

    status = 302
