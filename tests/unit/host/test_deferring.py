"""When a listening socket tells of a connection: real sockets, and what the kernel says of them."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host.deferring import CREDENTIAL, SECONDS, defer, passed


@pytest.fixture
def cookies(tmp_path: Path) -> Path:
    """A kernel that sends them."""
    path = tmp_path / "tcp_syncookies"
    path.write_text("1\n")
    return path


@pytest.fixture(params=["127.0.0.1", "::1"])
def listening(request: pytest.FixtureRequest, cookies: Path) -> Iterator[socket.socket]:
    """Deferred."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as made:
        defer([made], cookies=cookies)
        yield made


def tells(listening: socket.socket, seconds: float = 0) -> bool:
    return bool(select.select([listening], [], [], seconds)[0])


def tells_too_early(listening: socket.socket) -> bool:
    """Whether a silent connection is told of before its second is over: if this process stood still it is over."""
    began = time.monotonic()
    with socket.create_connection(listening.getsockname()[:2]):
        return tells(listening) and time.monotonic() < began + SECONDS


def test_who_has_sent_nothing_is_not_told_of_yet(listening: socket.socket) -> None:
    """A client is connected, and its request is there as soon as it is told of: one look, no waiting."""
    assert not tells_too_early(listening)
    assert tells(listening, 20)
    listening.accept()[0].close()
    with socket.create_connection(listening.getsockname()[:2]) as client:
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


def deferred(listening: socket.socket) -> bool:
    """What the kernel says of it."""
    return listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0


@pytest.mark.parametrize(
    ("says", "sent"),
    [("0\n", False), ("1\n", True), ("2\n", True), (None, False), ("", False), ("\u00e9", False)],
)
def test_where_it_is_not_known_that_cookies_are_sent_it_is_not_asked_for(
    listening: socket.socket, tmp_path: Path, says: str | None, sent: bool
) -> None:
    """A flood of silent connections would drive others out of the kernel's queue: they are told of at once.

    Whoever made the socket keeps it: what was asked for before that was known is taken back.
    """
    assert deferred(listening)
    cookies = tmp_path / "said"
    if says is not None:
        cookies.write_text(says)
    defer([listening], cookies=cookies)
    assert deferred(listening) is sent
    if not sent:
        with socket.create_connection(listening.getsockname()[:2]):
            assert tells(listening, 20)


def test_only_the_service_manager_tells_of_the_sockets_network(listening: socket.socket, cookies: Path) -> None:
    """A unit with a network of its own reads what holds there, or nothing: without the credential nothing is known."""
    directory = cookies.parent
    cookies.rename(directory / CREDENTIAL)
    for environ, sent in (({"CREDENTIALS_DIRECTORY": str(directory)}, True), ({}, False)):
        defer([listening], cookies=passed(environ))
        assert deferred(listening) is sent


def test_other_sockets_are_left_alone(tmp_path: Path, cookies: Path) -> None:
    """Among what a service manager passes are unix and netlink sockets; they work as before."""
    with socket.socket(socket.AF_UNIX) as local, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink:
        local.bind(str(tmp_path / "s"))
        local.listen()
        defer([local, netlink], cookies=cookies)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            assert tells(local)
