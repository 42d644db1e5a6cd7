"""The small rules of one connection: whose it is, when it may go, and what is left when its client leaves."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import pytest

from agent.serve.connection import Connection
from agent.serve.fairness import Endpoint, Owners, Table
from agent.serve.handling import Access, Outcome, Peer
from agent.serve.listener import Listener
from agent.serve.readers import Readers
from agent.serve.stream import Stream
from agent.snapshot import Limits
from agent.wire.http import Request, Response
from tests.fakes.clock import FakeClock

ROOT = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
USER = os.getuid()


class Sockets:
    """A table that knows one user, and counts how often it was read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> Table:
        self.reads += 1
        return self

    def owner(self, peer: Endpoint, local: Endpoint) -> int | None:
        assert peer[0] == local[0] == "127.0.0.1"
        return 4001


class World:
    """A listener and what it heard; connections are made on real sockets, without an accept."""

    def __init__(self, handler: Any, **more: Any) -> None:
        self.accesses: list[Access] = []
        self.broken: list[Exception] = []
        self.errors: list[dict[str, Any]] = []
        self.ends: list[socket.socket] = []

        def broke(_request: Request, error: Exception) -> Outcome:
            self.broken.append(error)
            return Response(500)

        self.listener = Listener(
            handler, broken=broke, clock=FakeClock(), access=self.accesses.append, **{"limits": Limits(), **more}
        )

    def connect(self, *, tcp: bool = False, data: bytes | None = None) -> tuple[Connection, Stream, socket.socket]:
        """A connection; what its client has sent already; and the client's end."""
        if tcp:
            with socket.create_server(("127.0.0.1", 0)) as server:
                theirs = socket.create_connection(server.getsockname())
                ours, peer = server.accept()
        else:
            (ours, theirs), peer = socket.socketpair(), ""
        theirs.setblocking(False)
        self.ends.append(theirs)
        connection = Connection(self.listener)
        stream = Stream(ours, peer, Readers(asyncio.get_running_loop()), connection)
        stream.begin(data)
        return connection, stream, theirs


def play(scenario: Callable[[], Awaitable[World]]) -> World:
    """Run it; nothing may go wrong where nobody looks."""

    async def main() -> World:
        errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
        async with asyncio.timeout(20):
            world = await scenario()
        await world.listener.close(0.0)
        await asyncio.sleep(0)
        for end in world.ends:
            end.close()
        assert errors == []
        return world

    return asyncio.run(main())


def well(_request: Request, _peer: Peer) -> Response:
    return Response(200)


class Held:
    """Requests that wait for an event; who was told to give up."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.waiting = 0
        self.given_up: list[str] = []

    def __call__(self, request: Request, _peer: Peer) -> Callable[[], Awaitable[Outcome]]:
        async def wait() -> Outcome:
            self.waiting += 1
            try:
                await self.event.wait()
            except asyncio.CancelledError:
                self.given_up.append(request.path)
                raise
            return Response(200)

        return wait


def test_an_answer_for_a_client_that_leaves_in_that_moment_is_nobody_s() -> None:
    """It is there, and the connection ends before it is sent: nothing is sent, reported or broken by it."""

    async def scenario() -> World:
        held = Held()
        world = World(held)
        _, stream, _ = world.connect(data=ROOT)
        while not held.waiting:  # noqa: ASYNC110 - the task's first step is what is waited for
            await asyncio.sleep(0)
        held.event.set()
        await asyncio.sleep(0)  # the answer is made, and not yet taken
        stream.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert held.given_up == []
        return world

    world = play(scenario)
    assert (world.accesses, world.broken, world.listener.connections, world.listener.held) == ([], [], 0, 0)


def test_who_gives_way_is_waited_for_no_longer() -> None:
    """A long poll that is put out stops waiting: what it waited on has room for another."""

    async def scenario() -> World:
        held = Held()
        world = World(held, limits=Limits(held=2))
        for number, name in enumerate((b"/first", b"/second", b"/third"), start=1):
            world.connect(data=ROOT.replace(b"/", name, 1))
            while held.waiting < number:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
        assert (world.listener.held, held.given_up) == (2, ["/first"])
        return world

    world = play(scenario)
    assert (world.accesses[0].status, world.accesses[0].path) == (0, "/first")


def test_only_who_had_no_chance_to_be_read_is_spared() -> None:
    """Until the loop has gone round twice, as long as nothing has come of it, and while it is there."""

    async def scenario() -> World:
        world = World(well)
        connection, stream, _ = world.connect()
        assert connection.is_fresh(connection.turn)
        assert connection.is_fresh(connection.turn + 1)
        assert not connection.is_fresh(connection.turn + 2)
        connection.data_received(ROOT[:5])
        assert not connection.is_fresh(connection.turn)
        gone, stream, _ = world.connect()
        stream.abort()
        assert not gone.is_fresh(gone.turn)
        return world

    play(scenario)


@pytest.mark.parametrize("with_table", [True, False])
def test_the_kernel_tells_who_is_at_the_other_end_of_a_unix_socket(with_table: bool) -> None:
    """Whether there is a table of sockets or not: that of TCP says nothing of it."""

    async def scenario() -> World:
        world = World(well)
        owners = Owners(Sockets())
        for belongs in (True, False):
            connection, _, _ = world.connect()
            if belongs:
                connection.belong(owners, Sockets() if with_table else None)
                assert connection.owner == (USER if with_table else None)  # else it is asked for again
            assert connection.share() == USER
            assert connection.owner == USER  # asked for once
        owners.close()
        return world

    play(scenario)


def test_where_the_kernel_tells_at_once_it_is_asked_and_only_of_whom_is_not_known() -> None:
    """One that is known stays who it was, whatever is said of its address by then."""

    async def scenario() -> World:
        world, asked = World(well), list[Endpoint]()

        def ask(peer: Endpoint, _local: Endpoint) -> int:
            asked.append(peer)
            return 4002

        owners = Owners(Sockets(), ask)
        connection, stream, _ = world.connect(tcp=True)
        connection.belong(owners, None)
        assert connection.owner == 4002
        connection.belong(owners, Sockets())
        assert (connection.owner, len(asked)) == (4002, 1)
        stream.abort()
        connection.give_up()  # nobody is there any more, and nothing is wrong with that
        gone, stream, _ = world.connect(tcp=True)
        stream.abort()
        gone.belong(owners, Sockets())
        assert gone.owner is None
        owners.close()
        return world

    play(scenario)


def test_whose_a_connection_is_is_learned_once() -> None:
    """By a table where the kernel is not asked about one socket; what is known already costs no second reading."""

    async def scenario() -> World:
        sockets, told = Sockets(), list[Hashable]()
        owners = Owners(sockets)

        def handler(_request: Request, peer: Peer) -> Callable[[], Awaitable[Outcome]]:
            async def answer() -> Outcome:
                told.extend([await peer.owner(), await peer.owner()])
                return Response(200)

            return answer

        world = World(handler, owners=owners)
        world.connect(tcp=True, data=ROOT)
        while not world.accesses:  # noqa: ASYNC110 - a thread reads the table
            await asyncio.sleep(0.001)
        assert (told, sockets.reads) == ([4001, 4001], 1)
        return world

    play(scenario)


def test_what_is_told_of_a_request_is_how_long_it_took() -> None:
    """From the whole request to its answer: no less than nothing, and no more than the test itself took."""
    before = time.perf_counter()

    async def scenario() -> World:
        world = World(well)
        for data in (ROOT, b"nonsense\r\n\r\n"):
            world.connect(data=data)
        return world

    world = play(scenario)
    assert [access.status for access in world.accesses] == [200, 400]
    assert all(0 <= access.seconds <= time.perf_counter() - before for access in world.accesses)
