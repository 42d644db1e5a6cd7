"""A server that stands by sees whether connections wait which the other does not take."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agent.serve.intake import waiting
from agent.server import queues
from tests.unit.controller.support import looped


@looped
async def test_connections_that_nobody_takes_are_told_of() -> None:
    """Again and again, as long as they wait; and not while there are none."""
    told = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        watch = queues.Queues([listening], told.set)
        watch.begin()
        async with asyncio.timeout(60):
            for _ in range(2):
                with socket.create_connection(listening.getsockname()):
                    await told.wait()
                told.clear()
                listening.accept()[0].close()
        watch.close()


@looped
async def test_connections_that_are_taken_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often one comes: at each glance none waits. The first that is told of is the one that was left."""
    glances: list[int] = []
    monkeypatch.setattr(queues, "GLANCE_SECONDS", 0.01)
    monkeypatch.setattr(queues, "AGAIN_SECONDS", 0.01)

    glanced = asyncio.Event()

    def looked(listening: socket.socket) -> int:
        if not left:
            listening.accept()[0].close()  # by the server that answers
        glances.append(waiting(listening))
        glanced.set()
        return glances[-1]

    monkeypatch.setattr(queues, "waiting", looked)
    told = asyncio.Event()
    left: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        watch = queues.Queues([listening], told.set)
        watch.begin()
        async with asyncio.timeout(60):
            for _ in range(4):
                glanced.clear()
                with socket.create_connection(listening.getsockname()):
                    await glanced.wait()
            assert not told.is_set()
            assert not any(glances)
            left.append(socket.create_connection(listening.getsockname()))
            await told.wait()
        left[0].close()
        watch.close()
