"""A master that was taken over has what it made for the controller: that never waits for it, and bounds what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
import structlog

from agent.daemon import link_transport, master_connection
from agent.daemon import servers as servers_module
from agent.serve.handed import Closing
from agent.server import words
from tests.unit.controller.support import looped
from tests.unit.daemon.test_master_connection import Joined

HOUR_SECONDS = 3600
HUNG_SECONDS = 60.0
"""A test whose loop waits for the other side is let go on after this, and fails."""


@contextlib.contextmanager
def never_waits(let_go: Callable[[], None]) -> Iterator[None]:
    """The loop does not wait for what only ``let_go`` ends."""
    timer = threading.Timer(HUNG_SECONDS, let_go)
    timer.start()
    try:
        yield
        assert timer.is_alive(), "the loop waited for the other side"
    finally:
        timer.cancel()
        timer.join()


@contextlib.contextmanager
def slow_to_close() -> Iterator[tuple[socket.socket, Callable[[], None]]]:
    """A connection whose last owner waits for an hour when he closes it, and what ends that."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sock = socket.create_connection(listening.getsockname())
        other, _ = listening.accept()
    reset = struct.pack("ii", 1, 0)

    def let_go() -> None:
        with contextlib.suppress(OSError):
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            other.close()

    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(b"x" * 65536)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, HOUR_SECONDS))
    try:
        yield sock, let_go
    finally:
        let_go()
        sock.close()


@looped
async def test_a_link_that_its_maker_has_too_holds_up_nobody() -> None:
    """Who has our end may have its calls wait, for all who have it; what we say on it does not."""
    joined = Joined()
    joined.begin()
    kept, its = socket.socketpair()
    with kept, its, never_waits(lambda: its.shutdown(socket.SHUT_RDWR)):
        joined.say(words.number(words.LINK, 7), kept.fileno())
        servers = joined.controller.servers
        await joined.until(lambda: servers.connected)
        (server,) = servers.connected
        fcntl.fcntl(kept, fcntl.F_SETFL, fcntl.fcntl(kept, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        for _ in range(8):
            servers.publish(b"x" * (1 << 20))
        assert 7 << 20 < server.unread_bytes < 9 << 20
        # Nor does the next call, when there is room for some of it.
        before = server.unread_bytes

        def is_read() -> bool:
            with contextlib.suppress(BlockingIOError):
                its.recv(1 << 14, socket.MSG_DONTWAIT)
            return server.unread_bytes < before

        await joined.until(is_read)
    joined.close()


def _with_a_word(joined: Joined, its: socket.socket, handed: int) -> Callable[[], bool]:
    socket.send_fds(its, [b"x"], [handed])
    return lambda: not joined.controller.servers.connected


def _in_place_of_a_link(joined: Joined, _its: socket.socket, handed: int) -> Callable[[], bool]:
    joined.say(words.number(words.LINK, 8), handed)
    return joined.ended.is_set


def _beside_a_link(joined: Joined, its: socket.socket, handed: int) -> Callable[[], bool]:
    joined.say(words.number(words.LINK, 8), its.fileno(), handed)
    return joined.ended.is_set


def _as_a_snapshot(joined: Joined, _its: socket.socket, handed: int) -> Callable[[], bool]:
    joined.say(words.SNAPSHOT, handed)
    joined.say(words.number(words.ENDED, 7))
    return lambda: 7 not in joined.connection.alive


def _unread_on_a_link(joined: Joined, its: socket.socket, handed: int) -> Callable[[], bool]:
    socket.send_fds(its, [b"x"], [handed])
    joined.controller.servers.close()
    return lambda: not joined.controller.servers.connected


def _unread_at_the_end(joined: Joined, _its: socket.socket, handed: int) -> Callable[[], bool]:
    joined.say(words.number(words.ENDED, 7))
    joined.say(words.number(words.ENDED, 7), handed)
    joined.connection.close()
    return lambda: True


HANDED = (_with_a_word, _in_place_of_a_link, _beside_a_link, _as_a_snapshot, _unread_on_a_link, _unread_at_the_end)


@pytest.mark.parametrize("hand_over", HANDED)
@looped
async def test_what_is_handed_over_holds_up_nobody(
    hand_over: Callable[[Joined, socket.socket, int], Callable[[], bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes along, and wherever, the loop is not who lets go of what is slow to close."""
    closing = Closing()
    for module in (link_transport, master_connection):
        monkeypatch.setattr(module, "CLOSING", closing)
    joined = Joined()
    joined.begin()
    with joined.link(7) as its, slow_to_close() as (handed, let_go), never_waits(let_go):
        await joined.until(lambda: joined.controller.servers.connected)
        is_done = hand_over(joined, its, handed.fileno())
        handed.close()
        await joined.until(is_done)
        await asyncio.sleep(0)  # what ends with it does so in the next round
        joined.close()


@looped
async def test_what_all_of_them_have_not_read_is_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone has less unread than one may; whoever has most is ended, and whoever reads goes on."""
    monkeypatch.setattr(servers_module, "MOST_WAITING_BYTES", 4 << 20)
    joined = Joined()
    joined.begin()
    servers = joined.controller.servers
    deaf = [joined.link(pid) for pid in range(2, 8)]
    await joined.until(lambda: len(servers.connected) == len(deaf))
    honest = joined.link(1)
    await joined.until(lambda: len(servers.connected) == len(deaf) + 1)
    reading = threading.Thread(target=lambda: [None for _ in iter(lambda: honest.recv(1 << 20), b"")])
    reading.start()
    with structlog.testing.capture_logs() as logs:
        for _ in range(8):
            servers.publish(b"x" * (1 << 20))
            assert sum(one.waiting_bytes for one in servers.connected) <= 5 << 20
            await joined.until(lambda: all(not one.unread_bytes for one in servers.connected if one.pid == 1))
    assert {one.pid for one in servers.connected if not one.is_cut_off} >= {1}
    assert {line["why"] for line in logs} == {"it does not read what it is told"}
    joined.close()
    await joined.until(lambda: not reading.is_alive())
    for one in (*deaf, honest):
        one.close()


@looped
async def test_links_that_are_broken_again_and_again_do_not_fill_the_log() -> None:
    """The first are told of, then one at times, with the number of those that were not."""
    joined = Joined()
    joined.begin()
    servers = joined.controller.servers
    with structlog.testing.capture_logs() as logs:
        for pid in range(1, 61):
            with joined.link(pid) as its:
                await joined.until(lambda: servers.connected)
                its.sendall(b"\xff" * 64)
                await joined.until(lambda: servers.connected[0].is_cut_off)
            await joined.until(lambda: not servers.connected)
            joined.say(words.number(words.ENDED, pid))
        joined.controller.now += 60.0
        with joined.link(61) as its:
            await joined.until(lambda: servers.connected)
            its.sendall(b"\xff" * 64)
            await joined.until(lambda: servers.connected[0].is_cut_off)
    told = [line["unsaid"] for line in logs if line["event"] == "server.cut_off"]
    assert len(told) == 21
    assert sum(told) == 40
    joined.close()
