"""The routes of the control socket."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from agent.core.source import UNCONFIRMED, Ack
from agent.daemon.reload import Reloaded
from agent.serve.control import ControlRequest, Route, problem
from agent.wire import names
from agent.wire.http import JSON, Response


def routes(
    *,
    status: Callable[[], dict[str, Any]],
    metrics: Callable[[], bytes],
    counted: Callable[[], Awaitable[object]],
    keys: Callable[[], list[dict[str, str]]],
    push: Callable[[bytes], Awaitable[Ack]],
    refresh: Callable[[], Awaitable[list[dict[str, str | int | None]]]],
    reload: Callable[[], Awaitable[Reloaded]],
) -> Mapping[tuple[str, str], Route]:
    """Bind what the daemon can say and do to paths.

    Args:
        status: the status document.
        metrics: the metrics in the Prometheus text format.
        counted: has whoever answers workers say its numbers, which the two above then tell.
        keys: the public halves of the worker's keys.
        push: evaluates sealed bytes; its verdict is the answer.
        refresh: has every source looked at now, and tells what each held.
        reload: reads the configuration anew; what came of it. Root may have it done, and our own user.
    """

    async def get_status(_: ControlRequest) -> Response:
        await counted()
        return Response(200, (JSON,), msgspec.json.encode(status()) + b"\n")

    async def get_metrics(_: ControlRequest) -> Response:
        await counted()
        return Response(200, (("Content-Type", "text/plain; version=0.0.4; charset=utf-8"),), metrics())

    async def get_keys(_: ControlRequest) -> Response:
        return Response(200, (JSON,), msgspec.json.encode({"keys": keys()}) + b"\n")

    async def put_bundle(request: ControlRequest) -> Response:
        return verdict(await push(request.body))

    async def post_refresh(_: ControlRequest) -> Response:
        return Response(200, (JSON,), msgspec.json.encode({"sources": await refresh()}) + b"\n")

    async def post_reload(request: ControlRequest) -> Response:
        if request.uid not in {0, os.geteuid()}:  # who could send SIGHUP
            return problem(403, "expected root: whoever changes the configuration has it read")
        done = await reload()
        return Response(422 if done.outcome == "refused" else 200, (JSON,), msgspec.json.encode(done) + b"\n")

    return {
        ("POST", names.REFRESH_PATH): post_refresh,
        ("POST", names.RELOAD_PATH): post_reload,
        ("GET", names.STATUS_PATH): get_status,
        ("GET", names.KEYS_PATH): get_keys,
        ("PUT", names.BUNDLE_PATH): put_bundle,
        ("GET", "/metrics"): get_metrics,
    }


def verdict(ack: Ack) -> Response:
    """The answer to a push."""
    if not ack.confirmed:
        return problem(503, UNCONFIRMED, ("Retry-After", "2"))
    ack = replace(ack, at=ack.at.replace(microsecond=0))  # as every instant of our documents
    # 422: it was understood and is not acceptable (RFC 9110 section 15.5.21).
    return Response(422 if ack.outcome == "refused" else 200, (JSON,), msgspec.json.encode(ack) + b"\n")
