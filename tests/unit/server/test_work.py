"""The process that answers workers ends when there is nobody left who tells it what is served."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agent.host import confine
from agent.server import work
from agent.snapshot.frames import frame_of_snapshot
from tests.unit.controller.support import looped


@pytest.mark.parametrize("why", ["link", "stop", "junk"])
@looped
async def test_one_that_ends_before_it_serves(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a first snapshot nothing is answered: it ends, and leaves the sockets to its successor."""
    monkeypatch.setattr(confine, "give_up_all_but_answering", lambda: True)
    ours, its = socket.socketpair()
    stop = asyncio.Event()
    with ours:
        serving = asyncio.create_task(work.serve(its, [], None, stop))
        await asyncio.sleep(0.01)
        assert not serving.done()
        if why == "link":
            ours.close()
        elif why == "stop":
            stop.set()
        else:
            ours.send(frame_of_snapshot(b"junk"))
        async with asyncio.timeout(10):
            await serving
