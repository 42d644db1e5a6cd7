"""However STS answers, renewal by renewal: there is always a session that is good."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from agent.core.model import AwsKeys
from agent.core.secret import Secret
from tests.conformance.clouds import ShortSts
from tests.fakes.net import Answer, Asked, Fault
from tests.fakes.wire import BROKEN, HANG, RESET, SAME
from tests.system.harness import World, background, until

pytestmark = pytest.mark.slow

ROLE: Final = "arn:aws:iam::123456789012:role/Data"
LIFE_SECONDS: Final = 8
"""Renewed when a quarter to a third of it is over, and tried again within a second or two."""


class OddServer:
    """A server for :func:`tests.system.harness.background` that answers each request in another way.

    Every way in which an answer is none is followed by one in which it is. A connection is kept after an answer, and
    ended when the next request has come or a moment later, as servers do that have waited long enough.

    Args:
        sts: what it says.
        broken: the ways of :data:`tests.fakes.wire.BROKEN` in which it does not say it.

    Attributes:
        left: the ways that have not been tried yet; then it is an ordinary one.
        tried: those that were.
    """

    def __init__(self, sts: ShortSts, broken: list[str]) -> None:
        self._sts = sts
        self._server: asyncio.Server | None = None
        same = itertools.cycle(SAME.items())
        self.left: Iterator[tuple[str, object]] = itertools.chain.from_iterable(
            (next(same), (name, BROKEN[name])) for name in broken
        )
        self.tried: list[str] = []
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            if not await self._answer(reader, writer):
                return
            await reader.read(1)  # another request, which is not answered any more, or their end
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head[1:] if line}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        answer = self._sts(Asked(method, path, headers, body, headers["host"]))
        assert isinstance(answer, Answer), Fault
        name, way = next(self.left, ("as usual", SAME["as usual"]))
        self.tried.append(name)
        for piece in way(answer):  # type: ignore[operator]
            if piece == HANG:
                await reader.read()
            elif piece == RESET:
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.close()
                return False
            else:
                writer.write(piece)
                await writer.drain()
        if name not in SAME or "ended by the connection" in name:
            writer.close()
            return False
        return True


@pytest.mark.parametrize("part", range(3))
def test_a_session_that_is_good_through_every_way_of_answering(tmp_path: Path, part: int) -> None:
    """Answers in pieces, broken off, twice, by a proxy, by another protocol, on a connection that is ended under us."""
    (tmp_path / "w").mkdir()
    world = World(tmp_path / "w")
    sts = ShortSts(lambda: datetime.now(UTC))
    sts.role_seconds = LIFE_SECONDS
    sts.role(ROLE)
    key, secret = sts.user()
    broken = list(BROKEN)[part::3]
    server = OddServer(sts, broken)
    with background(server):
        changes = {"mint": {"sts_endpoint": server.url, "request_timeout_seconds": 1.0, "probe": False}}
        with world.agent(changes) as agent:
            agent.ready()
            base = AwsKeys(id="keys", access_key_id=key, secret_access_key=Secret(secret))
            world.drop(world.seal(base, world.role_grant(base="keys")))
            until(lambda: agent.role() is not None, what="a session")
            served = set()

            def good() -> bool:
                credential = agent.credential()
                assert credential["Expiration"] > datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                assert credential["SecretAccessKey"] == sts.principals[credential["AccessKeyId"]].secret
                served.add(credential["AccessKeyId"])
                return set(broken) <= set(server.tried)

            until(good, seconds=100, what="every way of answering")
            assert len(served) >= len(broken) - 1  # the first good answer was what the role stands on
            assert not agent.events("raw")
            assert agent.stop() == 0
