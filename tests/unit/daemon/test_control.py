"""The routes of the control socket: who may have what done."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec
import pytest

from agent.daemon.control import routes
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
