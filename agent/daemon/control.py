"""The routes of the control socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from agent.core.source import Ack
from agent.serve.control import ControlRequest, Route
from agent.wire.http import JSON, Response


def routes(
    *,
    status: Callable[[], dict[str, Any]],
    metrics: Callable[[], bytes],
    keys: Callable[[], list[dict[str, str]]],
    push: Callable[[bytes], Awaitable[Ack]],
    refresh: Callable[[], Awaitable[list[dict[str, str | int | None]]]],
) -> Mapping[tuple[str, str], Route]:
    """Bind what the daemon can say and do to paths.

    Args:
        status: the status document.
        metrics: the metrics in the Prometheus text format.
        keys: the public halves of the worker's keys.
        push: evaluates sealed bytes; its verdict is the answer.
        refresh: has every source looked at now, and tells what each held.
    """

    async def get_status(_: ControlRequest) -> Response:
        return Response(200, (JSON,), msgspec.json.encode(status()) + b"\n")

    async def get_metrics(_: ControlRequest) -> Response:
        return Response(200, (("Content-Type", "text/plain; version=0.0.4; charset=utf-8"),), metrics())

    async def get_keys(_: ControlRequest) -> Response:
        return Response(200, (JSON,), msgspec.json.encode({"keys": keys()}) + b"\n")

    async def put_bundle(request: ControlRequest) -> Response:
        return verdict(await push(request.body))

    async def post_refresh(_: ControlRequest) -> Response:
        return Response(200, (JSON,), msgspec.json.encode({"sources": await refresh()}) + b"\n")

    return {
        ("POST", "/v1/refresh"): post_refresh,
        ("GET", "/v1/status"): get_status,
        ("GET", "/v1/keys"): get_keys,
        ("PUT", "/v1/bundle"): put_bundle,
        ("GET", "/metrics"): get_metrics,
    }


def verdict(ack: Ack) -> Response:
    """What whoever handed in a bundle is answered."""
    # 422: it was understood and is not acceptable (RFC 9110 section 15.5.21).
    return Response(422 if ack.outcome == "refused" else 200, (JSON,), msgspec.json.encode(ack) + b"\n")
