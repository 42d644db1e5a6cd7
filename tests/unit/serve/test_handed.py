"""What is closed aside, where no thread can be had for it."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading

import pytest

from agent.serve.handed import Closing


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), MemoryError()], ids=["no number", "no memory"]
)
def test_what_no_thread_can_be_had_for_is_closed_all_the_same(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """At once, by whoever asks."""

    def refused(_thread: threading.Thread) -> None:
        raise error

    async def scenario() -> None:
        closing = Closing()
        reader, writer = os.pipe()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            closing.close(writer)
        assert os.read(reader, 1) == b""  # nobody has the other end any more
        assert not closing.crowded
        os.close(reader)

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [OSError(24, "no descriptor"), MemoryError()], ids=["no descriptor", "no memory"])
def test_nothing_ends_the_thread_that_closes(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """What cannot be closed together with others is closed by itself, and so is what comes later."""

    def refused() -> None:
        raise error

    async def scenario() -> None:
        closing = Closing()
        monkeypatch.setattr(socket, "socketpair", refused)
        for _ in range(2):
            reader, writer = os.pipe()
            closing.close(writer)
            assert await asyncio.to_thread(select.select, [reader], [], [], 60.0) == ([reader], [], [])
            os.close(reader)

    asyncio.run(scenario())
