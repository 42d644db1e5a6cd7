"""The operator's endpoint: a unix socket that speaks the same HTTP, for status, metrics, push and withdraw.

The kernel decides who may speak, by the socket file's mode. Who *did* speak is in the request, from the peer
credentials of the socket (unix(7), ``SO_PEERCRED``), for the routes that ask and for the log.

The browser checks of the workers' endpoint are not needed: a page cannot open a unix socket.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

import msgspec

from agent.core.clock import Clock
from agent.core.errors import AgentError
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.serve.handling import Access, Later, Outcome, Peer
from agent.serve.listener import Listener
from agent.snapshot import Limits
from agent.wire.http import JSON, Request, Response

_UCRED: Final = struct.Struct("3i")


class ControlRequest(msgspec.Struct, frozen=True):
    """A request and who sent it. ``pid`` is 0 when the peer is in another pid namespace."""

    request: Request
    uid: int
    gid: int
    pid: int

    @property
    def body(self) -> bytes:
        """The request's body, complete."""
        return self.request.body


Route = Callable[[ControlRequest], Awaitable[Response]]


class ControlEndpoint:
    """The routes, behind the same listener as the workers' endpoint.

    Args:
        routes: by method and path; a path that exists under another method is 405.
        clock: for the ``Date`` header.
        access: told of every request.
        broken: told of an exception that a route let through; the client gets 500 and nothing of it.
        max_body_bytes: of a push.
        limits: instead of the usual ones.
        named: what an error calls this socket.
        whose: the user id that stands for the user of one, when connections become scarce.
    """

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Route],
        *,
        clock: Clock,
        access: Callable[[Access], None] | None = None,
        broken: Callable[[Request, Exception], None] | None = None,
        max_body_bytes: int = MAX_BUNDLE_BYTES,
        limits: Limits | None = None,
        named: str = "the control socket",
        whose: Callable[[int], int] = int,
    ) -> None:
        self._routes = dict(routes)
        self._named = named
        self._broken = broken
        self.listener = Listener(
            self._handle,
            broken=self._failed,
            clock=clock,
            # Few speak here, and a push may come from a slow program.
            limits=limits or Limits(body_bytes=max_body_bytes, head_seconds=15.0, connections=64, held=32),
            access=access,
            bodies=self._means_body,
            whose=whose,
        )

    def _means_body(self, method: str, target: str) -> bool:
        """Only a push does; a body sent elsewhere is not kept."""
        return method in {"POST", "PUT"} and (method, target.partition("?")[0]) in self._routes

    def _handle(self, request: Request, peer: Peer) -> Outcome | Later:
        path = "/" + "/".join(request.segments)
        method = "GET" if request.method == "HEAD" else request.method
        route = self._routes.get((method, path))
        if route is None:
            allowed = sorted(m for m, p in self._routes if p == path)
            if allowed:
                return problem(405, f"expected {' or '.join(allowed)}", ("Allow", ", ".join(allowed)))
            return problem(404, f"no such path on {self._named}")
        return partial(self._call, route, ControlRequest(request, *peer_credentials(peer)))

    @staticmethod
    async def _call(route: Route, request: ControlRequest) -> Response:
        try:
            return await route(request)
        except AgentError as error:
            # Refused on purpose; the message was written to be read.
            return problem(400, error.message)

    def _failed(self, request: Request, error: Exception) -> Outcome:
        if self._broken is not None:
            self._broken(request, error)
        return problem(500, "the agent could not answer; see its log")


def peer_credentials(peer: Peer) -> tuple[int, int, int]:
    """``uid, gid, pid`` of the process that connected; all -1 (and pid 0) when the kernel does not say."""
    sock = peer.socket()
    if sock is None:
        return -1, -1, 0
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError:
        return -1, -1, 0
    pid, uid, gid = _UCRED.unpack(raw)
    return uid, gid, pid


def problem(status: int, message: str, *headers: tuple[str, str]) -> Response:
    """A refusal as JSON: ``{"error": MESSAGE}``."""
    return Response(status, (JSON, *headers), msgspec.json.encode({"error": message}))
