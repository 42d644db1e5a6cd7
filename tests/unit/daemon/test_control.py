"""The routes of the control socket: who may have what done."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from agent.core.source import Ack
from agent.daemon.control import routes, verdict
from agent.daemon.reload import Reloaded
from agent.serve.control import ControlRequest


async def applied() -> Reloaded:
    return Reloaded("applied", needs_restart=["mint"])


def reload_as(uid: int) -> tuple[int, Any]:
    none: Any = None
    table = routes(status=none, metrics=none, counted=none, keys=none, push=none, refresh=none, reload=applied)
    response = asyncio.run(call(table["POST", "/v1/reload"](ControlRequest(none, uid, uid, 1))))
    return response.status, msgspec.json.decode(response.body)


async def call(answer: Any) -> Any:
    return await answer


def test_a_verdict_says_when_as_every_document_does() -> None:
    """Instants are YYYY-MM-DDTHH:MM:SSZ (COMMANDS.md), whatever the clock says beyond the second."""
    at = datetime(2026, 1, 2, 3, 4, 5, 678900, UTC)
    told = msgspec.json.decode(verdict(Ack(origin="push", outcome="same", at=at)).body)
    assert told["at"] == "2026-01-02T03:04:05Z"


@pytest.mark.parametrize("uid", [0, os.geteuid()])
def test_whoever_could_signal_may_have_the_configuration_read(uid: int) -> None:
    """Root, and the agent's own user: who asks is told what came of it."""
    status, document = reload_as(uid)
    assert status == 200
    assert document == {"outcome": "applied", "needs_restart": ["mint"], "reason": None, "hint": None}


def test_an_operator_has_it_not_read() -> None:
    """Whoever may only ask and push decides no more by this than without it."""
    status, document = reload_as(54321)
    assert status == 403
    assert "root" in document["error"]
