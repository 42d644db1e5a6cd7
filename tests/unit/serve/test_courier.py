"""The couriers' socket under those who may ask it: each user has a share, and what one does takes nothing from another."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from agent.serve.control import ControlRequest, Route
from agent.serve.courier import DEAR, LIMITS, CourierEndpoint, Share, Shared
from agent.serve.handed import Guarding
from agent.wire.http import Request, Response
from tests.fakes.clock import FakeClock

NOBODY = 65534


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach, with a short name."""
    path = Path(tempfile.mkdtemp(prefix="courier-"))
    path.chmod(0o755)
    yield path / "s"
    shutil.rmtree(path)


async def answered(request: ControlRequest) -> Response:
    return Response(200, (), str(request.uid).encode())


def serve(
    place: Path,
    talk: Callable[[FakeClock, CourierEndpoint], Awaitable[None]],
    route: Route = answered,
    whose: Callable[[int], int] = int,
) -> None:
    """Listen, talk, close."""

    async def main() -> None:
        clock = FakeClock()
        endpoint = CourierEndpoint(
            {("POST", "/v1/enrol"): route, ("PUT", "/v1/bundle"): route}, clock=clock, whose=whose
        )
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(place))
        os.chmod(place, 0o666)  # noqa: PTH101 - a socket in a directory in memory
        sock.listen(64)
        server = endpoint.listener.listen([Guarding(sock)])
        try:
            await talk(clock, endpoint)
        finally:
            server.close()
            await endpoint.listener.close(0.1)

    asyncio.run(main())


async def ask(place: Path, path: str = "/v1/enrol", method: str = "POST") -> tuple[int, bytes]:
    """One request; the answer's head too."""
    reader, writer = await asyncio.open_unix_connection(str(place))
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer


async def ask_as(uid: int, place: Path) -> int:
    """The same as another user."""
    script = (
        "import os, socket, sys; os.setuid(int(sys.argv[2])); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(b'POST /v1/enrol HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\n\\r\\n{}');"
        "print(s.recv(4096).split()[1].decode())"
    )
    out = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str(place), str(uid)],
        capture_output=True,
        check=True,
    )
    return int(out.stdout)


def test_a_user_who_asks_without_end_is_told_when_to_ask_again(place: Path) -> None:
    """The share is used up after its burst, says until when, and fills with time."""

    async def talk(clock: FakeClock, _: CourierEndpoint) -> None:
        assert [(await ask(place))[0] for _ in range(int(DEAR.burst))] == [200] * int(DEAR.burst)
        status, answer = await ask(place)
        assert status == 429
        assert b"\r\nRetry-After: 1\r\n" in answer
        assert json.loads(answer.rpartition(b"\r\n\r\n")[2]).keys() == {"error"}
        assert (await ask(place, "/v1/bundle", "PUT"))[0] == 200  # each route has its own
        await clock.advance(1.0)
        assert [(await ask(place))[0] for _ in range(2)] == [200, 429]

    serve(place, talk)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_one_users_flood_takes_no_answer_from_another(place: Path) -> None:
    """While one user is refused for asking too often, another is answered at once."""

    async def talk(_: FakeClock, __: CourierEndpoint) -> None:
        flood = [(await ask(place))[0] for _ in range(3 * int(DEAR.burst))]
        assert flood.count(429) == 2 * int(DEAR.burst)
        assert await ask_as(NOBODY, place) == 200

    serve(place, talk)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_subordinate_uids_have_one_share(place: Path) -> None:
    """Who may be others by a user namespace (subuid(5)) is asked for as one, whichever of them it is."""

    async def talk(_: FakeClock, __: CourierEndpoint) -> None:
        assert [(await ask(place))[0] for _ in range(int(DEAR.burst))] == [200] * int(DEAR.burst)
        assert await ask_as(NOBODY, place) == 429
        assert await ask_as(1, place) == 200

    serve(place, talk, whose={0: 7, NOBODY: 7, 1: 1}.__getitem__)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_connections_that_send_nothing_lock_nobody_out(place: Path) -> None:
    """One user opens more connections than there may be and sends nothing; another's request is answered."""

    async def talk(_: FakeClock, endpoint: CourierEndpoint) -> None:
        idle = [await asyncio.open_unix_connection(str(place)) for _ in range(LIMITS.connections + 40)]
        assert endpoint.listener.connections <= LIMITS.connections + 1  # and one that was accepted just now
        assert await ask_as(NOBODY, place) == 200
        for _reader, writer in idle:
            writer.close()

    serve(place, talk)


def test_so_many_are_answered_at_once_and_the_others_wait(place: Path) -> None:
    """However many ask at once, so many questions are worked at; the rest are answered in their turn."""
    inside = most = 0
    release = asyncio.Event()

    async def slow(_: ControlRequest) -> Response:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if inside == DEAR.at_once:
            release.set()
        await release.wait()
        inside -= 1
        return Response(200)

    async def talk(_: FakeClock, __: CourierEndpoint) -> None:
        answers = await asyncio.gather(*(ask(place) for _ in range(int(DEAR.burst))))
        assert [status for status, _ in answers] == [200] * int(DEAR.burst)
        assert most == DEAR.at_once

    serve(place, talk, slow)


def test_several_who_ask_without_end_take_no_answer_from_another() -> None:
    """When several users have used up what all may ask, another waits for a turn of each at most, and is answered."""

    class Ticking(FakeClock):
        """Shows more at each look."""

        ticks = 0.0

        def boottime(self) -> float:
            self.ticks += 0.0001
            return super().boottime() + self.ticks

    share = Share(per_second=1e-9, burst=10.0, common_per_second=1000.0, common_burst=20.0, at_once=8)
    users = 5

    async def main() -> None:
        order: list[int] = []

        async def route(request: ControlRequest) -> Response:
            order.append(request.uid)
            return Response(200)

        async def ask(uid: int) -> int:
            return (await shared.call(route, ControlRequest(cast("Request", None), uid, uid, 1))).status

        shared = Shared(share, Ticking(), int)
        asked = [asyncio.create_task(ask(uid)) for uid in range(users) for _ in range(int(share.burst) + 1)]
        for _ in range(50):
            await asyncio.sleep(0)
        before, polite = len(order), asyncio.create_task(ask(users))
        assert await asyncio.wait_for(polite, 60) == 200
        assert order.index(users) <= before + share.at_once + users
        statuses = await asyncio.wait_for(asyncio.gather(*asked), 60)
        assert (statuses.count(200), statuses.count(429)) == (users * int(share.burst), users)

    asyncio.run(main())


def test_what_is_no_route_is_told_without_a_share(place: Path) -> None:
    """A wrong path or method is refused as on the control socket, and a body that is too long is not read."""

    async def talk(_: FakeClock, __: CourierEndpoint) -> None:
        assert (await ask(place, "/v1/keys"))[0] == 404
        assert (await ask(place, "/metrics", "PUT"))[0] == 404
        assert (await ask(place, "/v1/enrol", "PUT"))[0] == 405
        reader, writer = await asyncio.open_unix_connection(str(place))
        writer.write(b"PUT /v1/bundle HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 413 ")
        writer.close()

    serve(place, talk)


@pytest.mark.parametrize("fails", [False, True])
def test_who_leaves_makes_no_room_for_more(fails: bool) -> None:
    """What a route has begun goes on when its client has gone, and counts until it ends, however that is."""

    async def main() -> None:
        begun: list[int] = []
        done = asyncio.Event()

        async def work(request: ControlRequest) -> Response:
            begun.append(request.uid)
            await done.wait()
            if fails:
                raise ValueError
            return Response(200, (), b"")

        async def route(request: ControlRequest) -> Response:
            return await asyncio.shield(asyncio.create_task(work(request)))

        async def ask(uid: int) -> int:
            return (await shared.call(route, ControlRequest(cast("Request", None), uid, uid, 1))).status

        shared = Shared(DEAR, FakeClock(), int)
        first = [asyncio.create_task(ask(1)) for _ in range(DEAR.at_once)]
        leaves, stays = asyncio.create_task(ask(1)), asyncio.create_task(ask(2))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(begun) == DEAR.at_once
        for one in (*first, leaves):
            one.cancel()
        assert all(one.cancelled() for one in (await asyncio.wait((*first, leaves)))[0])
        for _ in range(20):
            await asyncio.sleep(0)
        assert begun == [1] * DEAR.at_once
        done.set()
        (said,) = await asyncio.gather(stays, return_exceptions=True)
        assert isinstance(said, ValueError) if fails else said == 200
        assert begun == [*[1] * DEAR.at_once, 2]  # whoever left before its turn has had none

    asyncio.run(main())
