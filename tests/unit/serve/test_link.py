"""What is asked of a controller and heard from it, and what is said to one that does not listen."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agent.core.errors import Transient, UpstreamError
from agent.core.model import Cloud, IdToken
from agent.core.secret import Secret
from agent.serve.audit import Ledger
from agent.serve.handling import Access
from agent.serve.link import MOST_UNREAD_BYTES, Link
from agent.serve.tally import Tally
from agent.serve.waiting import Served
from agent.snapshot.frames import frame_of, frame_of_snapshot, from_server
from agent.snapshot.messages import (
    MOST_SENT_BYTES,
    ControllerSays,
    Counts,
    Left,
    Mint,
    Minted,
    Pass,
    Passed,
    ServerSays,
    Taken,
)
from tests.fakes.clock import START
from tests.fakes.view import FakeView
from tests.unit.controller.support import looped
from tests.unit.serve.test_asking import settled
from tests.unit.serve.test_server import Wire


class Line(Wire):
    """A connection to a controller, as the test plays it."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self.ended = False
        self.connection = link.protocol()
        self.connection.connection_made(self)

    def is_closing(self) -> bool:
        return self.ended

    def abort(self) -> None:
        self.ended = True

    def said(self) -> list[ServerSays]:
        """What the controller was told since the last time."""
        pieces, self.pieces = self.pieces, []
        return [one for one in from_server().feed(b"".join(pieces)) if not isinstance(one, bytes)]

    def says(self, *messages: ControllerSays) -> None:
        for message in messages:
            self.connection.data_received(frame_of(message))


def token(audience: str) -> IdToken:
    return IdToken(Secret("a.b.c"), audience, START, START)


@looped
async def test_each_who_asks_is_given_the_answer_to_their_own_question() -> None:
    """In whatever order answers come; one that nobody waits for, or that comes twice, is nobody's."""
    link = Link()
    line = Line(link)
    minting = {name: asyncio.create_task(link.id_token(name)) for name in ("a", "b", "c")}
    passing = asyncio.create_task(link.service(Cloud.AWS).request("GET", "/x"))
    await settled()
    asked = line.said()
    numbers = {one.audience if isinstance(one, Mint) else "/x": one.number for one in asked if hasattr(one, "number")}
    assert sorted(numbers) == ["/x", "a", "b", "c"]
    line.says(Minted(max(numbers.values()) + 1, token("nobody's")))
    for name in ("c", "a"):
        line.says(Minted(numbers[name], token(name)), Minted(numbers[name], token("another's")))
    line.says(Passed(numbers["/x"], 200, body=b"x"))
    found = {name: await minting[name] for name in ("a", "c")}
    assert {name: one.audience for name, one in found.items() if one is not None} == {"a": "a", "c": "c"}
    assert (await passing).body == b"x"
    assert not minting["b"].done()
    minting["b"].cancel()
    await settled()
    assert line.said() == [Left(numbers["b"])]
    line.says(Minted(numbers["b"], token("b")))  # too late, and nobody's


@pytest.mark.parametrize(
    ("answer", "most", "error"),
    [
        (Passed(1, 200, body=b"four"), 4, None),
        (Passed(1, 200, body=b"four"), None, None),
        (Passed(1, 200, body=b"four"), 3, "too large"),
        (Passed(1, 0), None, "no usable answer"),
        (Minted(1, token("a")), None, "no usable answer"),
    ],
)
@looped
async def test_an_answer_that_is_none_is_an_error(answer: ControllerSays, most: int | None, error: str | None) -> None:
    """What a worker is given of the real service is what was asked for, whole, or nothing."""
    link = Link()
    line = Line(link)
    asking = asyncio.create_task(link.service(Cloud.AWS).request("GET", "/x", max_bytes=most))
    await settled()
    line.says(answer)
    if error is None:
        assert (await asking).body == b"four"
    else:
        with pytest.raises(UpstreamError, match=error):
            await asking


@looped
async def test_a_token_is_not_made_of_another_answer() -> None:
    """What the real service says to somebody is no token of anybody."""
    link = Link()
    line = Line(link)
    asking = asyncio.create_task(link.id_token("a"))
    await settled()
    line.says(Passed(1, 200, body=b"x"))
    with pytest.raises(Transient, match="something else"):
        await asking


@looped
async def test_the_newest_controller_is_the_one_that_is_asked() -> None:
    """The one before is left, and what it was asked ends; its own end, which is heard later, ends nothing of the newest's."""
    lost: list[bool] = []
    link = Link(lost=lambda: lost.append(True))
    before = Line(link)
    first = asyncio.create_task(link.id_token("a"))
    await settled()
    now = Line(link)
    assert before.ended
    with pytest.raises(Transient, match="restarts"):
        await first
    second = asyncio.create_task(link.id_token("b"))
    await settled()
    before.connection.connection_lost(None)
    await settled()
    assert (lost, second.done()) == ([], False)
    (asked,) = now.said()
    assert isinstance(asked, Mint)
    now.says(Minted(asked.number, token("b")))
    assert await second is not None
    third = asyncio.create_task(link.id_token("c"))
    await settled()
    now.connection.connection_lost(None)
    assert lost == [True]
    with pytest.raises(Transient, match="restarts"):
        await third
    assert not link.say(Left(1))


@looped
async def test_what_was_kept_is_not_served_in_place_of_what_is_told() -> None:
    """What was found where a controller keeps it is served until one says what is; what is none is served by nobody."""
    view, link = FakeView(), Link()
    line, kept = Line(link), Served(view.data())
    view.touch()
    told = view.data()
    link.begin_with(None)
    assert link.served is None
    link.begin_with(kept)
    assert await link.first() is kept
    line.connection.data_received(frame_of_snapshot(told))
    assert line.said() == [Taken(view.served.version)]
    link.begin_with(Served(told))
    assert link.served is kept  # whom everything asks, and which has what was told
    assert kept.version == view.served.version
    line.connection.data_received(frame_of_snapshot(b"junk"))
    assert (line.ended, kept.version) == (True, view.served.version)
    late = Line(link)
    link.break_off()
    assert late.ended


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
