"""What the agent hears of the process that answers workers."""

from __future__ import annotations

import asyncio
import socket

import structlog

from agent.daemon.child import ServerChild
from agent.server.master import LINK
from tests.unit.controller.support import looped
from tests.unit.daemon.test_servers import Controller


@looped
async def test_a_server_that_ends_again_and_again_is_told_of() -> None:
    """The first is none; its successors are said, and not once for each: they may come five times a second."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    controller, gone = Controller(), asyncio.Event()
    child = ServerChild(None, ours)
    with structlog.testing.capture_logs() as logs:
        child.answer([], controller.servers, gone.set)
        for _ in range(5):
            theirs, _unused = socket.socketpair()
            with theirs, _unused:
                socket.send_fds(its, [LINK], [theirs.fileno()])
            await asyncio.sleep(0.01)
        its.close()
        async with asyncio.timeout(10):
            await gone.wait()
    assert [(line["event"], line["times"]) for line in logs] == [("server.again", 1)]
    child.kill()
