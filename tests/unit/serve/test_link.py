"""What is said to a controller that does not listen."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agent.core.errors import Transient, UpstreamError
from agent.core.model import Cloud
from agent.serve.audit import Ledger
from agent.serve.handling import Access
from agent.serve.link import MOST_UNREAD_BYTES, Link
from agent.serve.tally import Tally
from agent.snapshot.frames import frame_of_snapshot, from_server
from agent.snapshot.messages import MOST_SENT_BYTES, Counts, Left, Pass, ServerSays, Taken
from tests.fakes.view import FakeView


def test_a_controller_that_hangs_is_told_so_much() -> None:
    """What only it can do fails at once, what is served is served on, and when it reads again nothing is missing."""

    async def scenario() -> None:
        loop, view, link = asyncio.get_running_loop(), FakeView(), Link()
        its, ours = socket.socketpair()
        its.setblocking(False)
        await loop.create_unix_connection(link.protocol, sock=ours)
        await loop.sock_sendall(its, frame_of_snapshot(view.data()))
        await link.first()
        body, most = b"x" * MOST_SENT_BYTES, 2 * MOST_UNREAD_BYTES // MOST_SENT_BYTES
        said = 0
        while link.say(Pass(said + 1, Cloud.GCP, "PUT", "/x", (), body, 1.0)):
            said += 1
            assert said <= most
        with pytest.raises(Transient):
            await link.id_token("x")
        with pytest.raises(UpstreamError):
            await link.service(Cloud.GCP).request("GET", "/x")
        tally = Tally(link.say, Ledger("off", None))
        tally.access(Access("GET", "/", 200, 0.0, 0, ""))
        assert not tally.tell()
        assert link.say(Left(1))
        await loop.sock_sendall(its, frame_of_snapshot(view.data()))
        assert link.served is not None
        frames, heard = from_server(), list[ServerSays]()

        async def hear(last: ServerSays, times: int) -> None:
            async with asyncio.timeout(60):
                while heard.count(last) < times:
                    data = await loop.sock_recv(its, 1 << 20)
                    heard.extend(one for one in frames.feed(data) if not isinstance(one, bytes))

        await hear(Taken(link.served.version), 2)
        assert [type(one) for one in heard] == [Taken, *[Pass] * said, Left, Taken]
        assert tally.tell()
        await hear(Counts(((200, 1),)), 1)
        tally.close()
        link.close()
        its.close()

    asyncio.run(scenario())
