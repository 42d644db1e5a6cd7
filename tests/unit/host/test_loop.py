"""The event loop closes what is its own, once."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from typing import cast

import pytest

from agent.host.loop import Loop


class Greeting(asyncio.Protocol):
    """Writes at once, as what tells a server what to serve does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(b"x" * 1000)


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_connection_whose_peer_has_left_closes_nobody_elses_descriptor(family: socket.AddressFamily) -> None:
    """Its number is free as soon as it is closed, and the next that is opened has it."""

    async def connected_and_left() -> None:
        ours, its = socket.socketpair() if family == socket.AF_UNIX else _connected()
        its.close()
        loop = asyncio.get_running_loop()
        create = loop.create_unix_connection if family == socket.AF_UNIX else loop.create_connection
        await create(Greeting, sock=ours)

    async def run() -> None:
        gc.freeze()  # or each round looks through all that the tests before have left: minutes, on a busy machine
        for _ in range(50):
            await connected_and_left()
            others = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
            await asyncio.sleep(0)
            gc.collect()
            for other in others:
                os.close(other)  # an error, if somebody else has

    try:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(run())
    finally:
        gc.unfreeze()


def _connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        return ours, listening.accept()[0]
