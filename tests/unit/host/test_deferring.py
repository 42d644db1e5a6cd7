"""When a listening socket tells of a connection: real sockets, and what the kernel says of them."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host.deferring import defer


@pytest.fixture(params=["127.0.0.1", "::1"])
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """Deferred."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as made:
        defer([made])
        yield made


def tells(listening: socket.socket, seconds: float = 0) -> bool:
    return bool(select.select([listening], [], [], seconds)[0])


def test_who_has_sent_nothing_is_not_told_of_yet(listening: socket.socket) -> None:
    """A client is connected, and its request is there as soon as it is told of: one look, no waiting."""
    with socket.create_connection(listening.getsockname()[:2]) as client:
        assert not tells(listening)
        client.sendall(b"GET /")
        assert tells(listening, 20)
        ours, _ = listening.accept()
        with ours:
            assert ours.recv(5, socket.MSG_DONTWAIT) == b"GET /"


def test_who_leaves_or_stays_silent_is_told_of(listening: socket.socket) -> None:
    """Nobody stays in the kernel for good: one that ends is told of at once, a silent one after the kernel's second."""
    with socket.create_connection(listening.getsockname()[:2]):
        with socket.create_connection(listening.getsockname()[:2]):
            pass
        for _ in range(2):
            assert tells(listening, 20)
            listening.accept()[0].close()


@pytest.mark.parametrize(("says", "deferred"), [("0\n", False), ("1\n", True), ("2\n", True), (None, True)])
def test_without_cookies_it_is_not_asked_for(tmp_path: Path, says: str | None, deferred: bool) -> None:
    """Where a flood of silent connections would drive others out of the kernel's queue, they are told of at once."""
    cookies = tmp_path / "tcp_syncookies"
    if says is not None:
        cookies.write_text(says)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        defer([listening], cookies=cookies)
        with socket.create_connection(listening.getsockname()):
            assert tells(listening, 0 if deferred else 20) is not deferred


def test_other_sockets_are_left_alone(tmp_path: Path) -> None:
    """Among what a service manager passes are unix and netlink sockets; they work as before."""
    with socket.socket(socket.AF_UNIX) as local, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink:
        local.bind(str(tmp_path / "s"))
        local.listen()
        defer([local, netlink])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            assert tells(local)
