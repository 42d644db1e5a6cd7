"""Connections that make room, or that only end yet: none is forgotten, nor what was begun for it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

from agent.serve.handling import Later, Outcome, Peer
from agent.serve.listener import Listener
from agent.snapshot import Limits
from agent.wire.http import Request, Response
from tests.fakes.clock import FakeClock


@asynccontextmanager
async def listening(later: Later, limits: Limits) -> AsyncIterator[tuple[Listener, int]]:
    """A listener whose every request is held until ``later`` answers it, and its port."""

    def handler(_request: Request, _peer: Peer) -> Later:
        return later

    def broken(_request: Request | None, error: BaseException) -> Response:
        raise error

    sock = socket.create_server(("127.0.0.1", 0), backlog=100)
    listener = Listener(handler, broken=broken, clock=FakeClock(), limits=limits)
    intake = listener.listen([sock])
    try:
        yield listener, sock.getsockname()[1]
    finally:
        intake.close()
        await listener.close(0.1)


async def until(look: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not look():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.005)


async def asked(stack: ExitStack, port: int, more: bytes = b"") -> socket.socket:
    sock = stack.enter_context(socket.socket())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    await asyncio.get_running_loop().sock_sendall(sock, b"GET / HTTP/1.1\r\nHost: x\r\n" + more + b"\r\n")
    return sock


def test_who_makes_room_for_itself_is_not_answered_for_nobody() -> None:
    """The newest head is the largest, and there is no room for it: no work goes on that no cap counts."""

    async def scenario() -> None:
        running = begun = 0

        async def later() -> Outcome:
            nonlocal running, begun
            begun, running = begun + 1, running + 1
            try:
                await asyncio.Event().wait()
            finally:
                running -= 1
            raise AssertionError

        with ExitStack() as stack:
            async with listening(later, Limits(buffered_bytes=20_000)) as (listener, port):
                for number in range(20):
                    sock = await asked(stack, port, b"X-A: " + b"y" * (7000 + number) + b"\r\n")
                    await until(lambda: listener.held <= 2)
                    if number > 3:
                        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1), 60) == b""
                assert begun > 0
                await until(lambda: running == listener.held)

    asyncio.run(scenario())


def test_an_answer_that_nobody_takes_ends_though_no_other_connection_comes() -> None:
    """Whoever was held for so long that nothing else was watched is watched again once it is answered."""

    async def scenario() -> None:
        answer = asyncio.Event()

        async def later() -> Outcome:
            await answer.wait()
            return Response(200, (), b"x" * (8 << 20))

        with ExitStack() as stack:
            limits = Limits(unread_seconds=0.3, buffered_bytes=64 << 20)
            async with listening(later, limits) as (listener, port):
                await asked(stack, port)
                await until(lambda: listener.held == 1)
                await until(lambda: listener._sweeper is None)
                answer.set()
                await until(lambda: listener.held == 0)
                await until(lambda: listener.connections == 0)

    asyncio.run(scenario())
