"""What the process that answers workers begins with and is told, and that it ends when nobody is left to tell it."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket

import pytest

from agent.host import confine
from agent.serve.link import Link
from agent.serve.waiting import Served
from agent.server import forked, supervisor, work
from agent.server.supervisor import Supervisor
from agent.snapshot.frames import frame_of_snapshot
from tests.fakes.view import FakeView
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


@looped
async def test_of_what_was_kept_the_newest_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was about to replace one may have ended in between: both lie there, in either order, or with junk."""
    view, found = FakeView(), list[Served | None]()
    older = view.data()
    view.touch()
    newer = view.data()
    monkeypatch.setattr(confine, "give_up_all_but_answering", lambda: True)
    monkeypatch.setattr(Link, "begin_with", lambda _, served: found.append(served))
    for kept in itertools.permutations((older, newer, b"junk")):
        await work.serve(None, [], None, asyncio.Event(), kept=kept, wall=7.0)
        served = found.pop()
        assert served is not None
        assert (served.version, served.wall) == (Served(newer).version, 7.0)
    await work.serve(None, [], None, asyncio.Event(), kept=[b"junk", b""])
    assert found == [None]


@looped
async def test_a_server_does_what_its_master_says_and_nothing_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers nobody for a sign of life or a link; and a master that has ended is not heard again and again.

    A link that came when there was no descriptor for it, and a word when there was no memory, end nothing of that.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    heard, linked = list[bytes](), asyncio.Event()

    def hear(master: socket.socket) -> tuple[bytes, socket.socket | None]:
        if not heard:
            heard.append(b"nothing, for want of memory")
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        said, given = forked.hear(master)
        heard.append(said)
        return said, given

    async def connect(given: socket.socket) -> None:
        given.close()
        linked.set()

    monkeypatch.setattr(supervisor, "hear", hear)
    with ours, its, socket.socket() as link:
        ours.settimeout(60)
        server = Supervisor(its, connect, stands_by=True)
        server.heed()
        ours.send(forked.LINK)
        ours.send(forked.ASKED)
        assert await asyncio.to_thread(ours.recv, 9) == b"."
        socket.send_fds(ours, [forked.LINK], [link.fileno()])
        async with asyncio.timeout(60):
            await linked.wait()
            assert not server.answers.is_set()
            ours.send(forked.TAKE_OVER)
            await server.answers.wait()
            server.waiting()
            server.serves()
            assert [ours.recv(9), ours.recv(9)] == [b"?", b"+"]
            ours.close()
            while heard[-1]:  # noqa: ASYNC110 - the next round of the loop is what is waited for
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert heard[1:] == [forked.LINK, forked.ASKED, forked.LINK, forked.TAKE_OVER, b""]
