"""When room is scarce, whoever has most gives way: told apart by user, over real sockets of real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.core.model import Cloud
from agent.host.sockets import read_socket_table
from agent.serve.fairness import Owners, Places, Table, Turnstile
from agent.serve.listener import Listener
from agent.snapshot import Limits, ServeSettings
from tests.fakes.clock import START, FakeClock
from tests.fakes.view import KEY, FakeView, RunningEndpoint, read_all, running_endpoint

ROOT = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POLL = (
    b"GET /computeMetadata/v1/instance/service-accounts/default/email?wait_for_change=true HTTP/1.1\r\n"
    b"Host: localhost\r\nMetadata-Flavor: Google\r\n\r\n"
)
HOSTILE = """
import encodings.idna, os, socket, sys
os.setgid(65534), os.setuid(65534)  # not before the start: its interpreter may be root's alone
port, count, data = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
held = []
for _ in range(count):
    held.append(socket.create_connection(("127.0.0.1", port)))
    held[-1].sendall(data)
print("on", flush=True)
sys.stdin.read()
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


@contextlib.contextmanager
def hostile(server: RunningEndpoint, count: int, data: bytes) -> Iterator[None]:
    """Another user's process that opens so many connections, sends ``data`` on each, and keeps them."""
    command = [sys.executable, "-c", HOSTILE, str(server.port), str(count), data.hex()]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        try:
            yield
        finally:
            process.stdin.close()  # type: ignore[union-attr]


@contextlib.contextmanager
def endpoint(read: Callable[[], Table] = read_socket_table, **limits: Any) -> Iterator[RunningEndpoint]:
    view = FakeView()
    view.live_gcp(START)
    settings = ServeSettings(token_key=KEY, limits=Limits(**{"head_seconds": 60.0, "spared_seconds": 0.0, **limits}))
    with running_endpoint(view, settings=settings, clock=FakeClock(), owners=lambda: Owners(read)) as server:
        yield server


def known(server: RunningEndpoint) -> bool:
    """Whether it is known whose each connection is, and none is still waited for as one that will send in a moment."""
    listener = server.endpoint.listener
    return server.run(
        lambda: len(listener._open) == listener.connections and all(c.owner is not None for c in listener._open)
    )


@as_root
def test_idle_connections() -> None:
    """Ours, idle for longer than all of theirs, stay: one of the many goes for each that comes."""
    with endpoint(connections=40) as server:
        ours = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
        until(lambda: server.endpoint.listener.connections == 5)
        with hostile(server, 35, b""):
            until(lambda: server.endpoint.listener.connections == 40 and known(server))
            for _ in range(20):
                assert server.send(ROOT).startswith(b"HTTP/1.1 200")
            for sock in ours:
                with sock:
                    sock.sendall(ROOT)
                    assert read_all(sock).startswith(b"HTTP/1.1 200")


class _Here:
    """A connection as the listener sees one: whose it is, and whether it is still there."""

    def __init__(self, owner: str, *, fresh: bool = False) -> None:
        self.owner, self.fresh = owner, fresh
        self.waited, self.turn, self.kept_bytes, self.gone = False, 0, 0, False

    def share(self) -> str:
        return self.owner

    def is_fresh(self, _turn: int) -> bool:
        return self.fresh

    def abort(self) -> None:
        self.gone = True


@pytest.mark.parametrize("fresh", [False, True], ids=["that wait", "that have just come"])
@pytest.mark.parametrize("most", [4, 16, 64])
def test_however_fast_one_owner_comes_again_nobody_else_goes(most: int, fresh: bool) -> None:
    """All places but a few are one owner's, who connects more often than there are places before anything is looked at."""

    async def main() -> None:
        never: Any = None
        listener = Listener(never, broken=never, clock=FakeClock(), limits=Limits(connections=most))
        opened: Any = listener.opened
        ours = [_Here("ours"), _Here("another's")]
        assert all(opened(one) for one in ours)
        for _ in range(5 * most):
            opened(_Here("theirs", fresh=fresh))
        late = _Here("ours")
        assert fresh or opened(late)
        assert not any(one.gone for one in (*ours, late))
        assert listener.connections <= most
        await listener.close(0.0)

    asyncio.run(main())


@as_root
def test_long_polls() -> None:
    """Our long poll, the oldest, outlives any number of theirs."""
    with endpoint(held=20) as server, socket.create_connection(("127.0.0.1", server.port), timeout=20) as ours:
        ours.sendall(POLL)
        until(lambda: server.endpoint.listener.held == 1)
        with hostile(server, 15, POLL):
            until(lambda: server.endpoint.listener.held == 16 and known(server))
            with hostile(server, 60, POLL):
                until(lambda: server.endpoint.listener.held == 20)
                server.run(lambda: server.view.set(Cloud.GCP, _other(server)))
                assert read_all(ours).startswith(b"HTTP/1.1 200")


@as_root
def test_a_table_that_cannot_be_had_is_asked_for_again() -> None:
    """Ours, whose owner could not be told at first, does not count with theirs for good, and give way for them."""
    reads = 0

    def read() -> Table:
        nonlocal reads
        reads += 1
        if reads == 1:
            raise OSError("no memory just now")
        return read_socket_table()

    with endpoint(read, held=20) as server, socket.create_connection(("127.0.0.1", server.port), timeout=20) as ours:
        ours.sendall(POLL)
        until(lambda: server.endpoint.listener.held == 1)
        with hostile(server, 15, POLL):
            until(lambda: server.endpoint.listener.held == 16 and known(server))
            assert reads > 1
            with hostile(server, 60, POLL):
                until(lambda: server.endpoint.listener.held == 20)
                server.run(lambda: server.view.set(Cloud.GCP, _other(server)))
                assert read_all(ours).startswith(b"HTTP/1.1 200")


def _other(server: RunningEndpoint) -> Any:
    from agent.core.view import Live, Origin
    from tests.fakes.view import google_token

    return Live(google_token(START), "other@example.com", Origin.BUNDLE)


@as_root
def test_buffered_bytes() -> None:
    """What half requests keep is bounded for all together, and the largest holder gives way, not the oldest."""
    with endpoint(buffered_bytes=1 << 20) as server, socket.create_connection(("127.0.0.1", server.port)) as ours:
        ours.sendall(ROOT[:-2] + b"X: " + b"y" * 4000)
        until(lambda: server.endpoint.listener.buffered_bytes > 4000)
        with hostile(server, 40, ROOT[:-2] + b"X: " + b"y" * 8000 + b"\r\nZ: " + b"z" * 7000):
            until(lambda: server.endpoint.listener.buffered_bytes > 500_000 and known(server))
            with hostile(server, 200, ROOT[:-2] + b"X: " + b"y" * 8000 + b"\r\nZ: " + b"z" * 7000):
                assert server.run(lambda: server.endpoint.listener.buffered_bytes) <= 1 << 20
                ours.sendall(b"\r\n\r\n")
                assert read_all(ours).startswith(b"HTTP/1.1 200")
        until(lambda: server.endpoint.listener.connections == 0)
        assert server.endpoint.listener.buffered_bytes == 0


def test_a_turnstile_serves_the_one_who_has_least() -> None:
    """Behind a hundred of one owner, another's first request is the next to go in."""

    async def scenario() -> list[str]:
        gate, order = Turnstile(2), []

        async def one(owner: str) -> None:
            async with gate.turn(owner):
                order.append(owner)
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(one("greedy"))
            group.create_task(one("polite"))
        async with gate.turn("greedy"), gate.turn("greedy"):
            assert gate.crowded
        return order

    order = asyncio.run(scenario())
    assert len(order) == 101
    assert order.index("polite") <= 4


def test_a_turnstile_survives_those_who_leave() -> None:
    """Whoever gives up waiting, or inside, leaves no place taken."""

    async def scenario() -> None:
        gate = Turnstile(1)

        async def stay(owner: str) -> None:
            async with gate.turn(owner):
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(stay(f"owner {n % 3}")) for n in range(30)]
        for _ in range(30):
            await asyncio.sleep(0)
            tasks.pop(0).cancel()
            await asyncio.sleep(0)
        async with asyncio.timeout(5), gate.turn("last"):
            pass

    asyncio.run(scenario())


def test_a_turnstile_passes_over_who_was_cancelled_in_that_moment() -> None:
    """Whoever is cancelled and called in one round of the loop ends as cancelled, and the next goes in."""

    async def scenario() -> list[object]:
        gate = Turnstile(1)

        async def one(owner: str) -> str:
            async with gate.turn(owner):
                return owner

        async with gate.turn("first"):
            tasks = [asyncio.create_task(one(owner)) for owner in ("a", "a", "b")]
            await asyncio.sleep(0)
            tasks[0].cancel()
            tasks[2].cancel()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)

    cancelled, served, also = asyncio.run(scenario())
    assert (type(cancelled), served, type(also)) == (asyncio.CancelledError, "a", asyncio.CancelledError)


def test_places_are_taken_from_who_has_most() -> None:
    """When all places are taken the newcomer gets the oldest of whoever has most, and none if nobody has more."""

    async def scenario() -> None:
        places, ended = Places(4), []

        async def stay(owner: str) -> bool:
            try:
                async with asyncio.timeout(60) as timeout:
                    if not places.take(owner, timeout):
                        return False
                    await asyncio.Event().wait()
            except TimeoutError:
                ended.append(owner)
            return True

        polite = asyncio.create_task(stay("polite"))
        await asyncio.sleep(0)
        greedy = [asyncio.create_task(stay("greedy")) for _ in range(20)]
        for _ in range(5):
            await asyncio.sleep(0)
        third = asyncio.create_task(stay("third"))
        for _ in range(5):
            await asyncio.sleep(0)
        fourth = asyncio.create_task(stay("fourth"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert await asyncio.wait_for(asyncio.create_task(stay("fifth")), 5) is False
        assert set(ended) == {"greedy"}
        assert [task.done() for task in (polite, third, fourth)] == [False] * 3
        for task in (polite, third, fourth, *greedy):
            task.cancel()
        await asyncio.gather(polite, third, fourth, *greedy, return_exceptions=True)

    asyncio.run(scenario())


def test_who_takes_several_places_takes_them_from_who_has_most() -> None:
    """What weighs more takes more places, all or none; what weighs more than all of them fits when there is nothing else."""

    async def scenario() -> None:
        places = Places(8)
        held = {name: asyncio.timeout(60) for name in ("old", "new", "polite", "third", "fourth", "whole")}
        async with held["old"], held["new"], held["polite"], held["third"], held["fourth"], held["whole"]:

            def ended() -> set[str]:
                now = asyncio.get_running_loop().time()
                return {name for name, one in held.items() if (one.when() or 0) <= now}

            assert places.take("greedy", held["old"], 3)
            assert places.take("greedy", held["new"], 3)
            assert places.take("polite", held["polite"])
            assert places.take("third", held["third"], 3)
            assert ended() == {"old"}
            held["old"].reschedule(None)
            assert not places.take("fourth", held["fourth"], 4)
            assert ended() == {"old"}
            assert places.take("greedy", held["whole"], 2)
            assert ended() == {"old", "new"}
            held["new"].reschedule(None)
            for name in ("polite", "third", "whole"):
                places.leave(held[name])
            assert places.take("fourth", held["fourth"], 100)
            assert not places.take("polite", held["polite"], 9)

    asyncio.run(scenario())


def test_a_table_for_each_who_asks_after_the_last() -> None:
    """Whoever asks while a table is being read gets one begun later, and nobody spins on one that has ended."""

    async def scenario() -> tuple[int, list[object]]:
        reads: list[object] = []

        class Empty:
            def owner(self, peer: object, local: object) -> None:
                return None

        def read() -> Empty:
            reads.append(Empty())
            return reads[-1]  # type: ignore[return-value]

        owners = Owners(read)
        try:
            tables: list[object] = []

            async def ask() -> None:
                tables.append(await owners.table())
                tables.append(await owners.table())

            await asyncio.gather(*(ask() for _ in range(50)))
        finally:
            owners.close()
        return len(reads), tables

    reads, tables = asyncio.run(scenario())
    assert reads == 2
    assert len(tables) == 100
    assert None not in tables
