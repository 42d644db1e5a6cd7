"""A connection is accepted as the standard library accepts it, and no object in Python is made of it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.serve.handed import Guarded, Guarding
from agent.serve.intake import acceptor

Connect = Callable[[], socket.socket]


@pytest.fixture(params=["127.0.0.1", "::1", "unix"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    if request.param == "unix":
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(tmp_path / "s"))
        made.listen()
    else:
        family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
        try:
            made = socket.create_server((request.param, 0), family=family)
        except OSError:
            pytest.skip("this machine has no such address")
    with made:
        made.setblocking(False)
        yield made


def told(connection: Any) -> tuple[object, ...]:
    """What tells one socket from another."""
    with contextlib.closing(connection):
        fd = connection.fileno()
        return (
            *(int(connection.family), int(connection.type), connection.proto, connection.gettimeout()),
            *(os.get_blocking(fd), os.get_inheritable(fd), connection.getsockname()),
        )


def test_it_is_what_the_library_s_own_would_be(listening: socket.socket) -> None:
    """The same kind of socket with the same ends, which waits as long and is nobody else's after exec."""
    name = listening.getsockname()
    with socket.socket(listening.family) as one, socket.socket(listening.family) as other:
        one.connect(name)
        other.connect(name)
        ours, peer = acceptor(listening)()
        its, _ = listening.accept()
        assert type(ours) is socket.SocketType
        assert peer == (one.getsockname() or "")
        assert told(ours) == told(its)


def test_it_ends_when_it_is_closed(listening: socket.socket) -> None:
    """It has no descriptor then, the other side sees the end, and to close it once more does nothing."""
    with socket.socket(listening.family) as client:
        client.connect(listening.getsockname())
        connection, _ = acceptor(listening)()
        connection.close()
        connection.close()
        assert connection.fileno() == -1
        assert client.recv(1) == b""


def test_nobody_there_is_said_as_the_library_says_it(listening: socket.socket) -> None:
    """Whoever accepts from an empty queue is told so at once."""
    with pytest.raises(BlockingIOError):
        acceptor(listening)()


def test_a_socket_that_accepts_in_its_own_way_is_left_to_it(listening: socket.socket) -> None:
    """What guards against descriptors that are handed over does so where it accepts."""
    name = listening.getsockname()
    with Guarding(listening) as guarding, socket.socket(guarding.family) as client:
        guarding.setblocking(False)
        client.connect(name)
        connection, _ = acceptor(guarding)()
        with contextlib.closing(connection):
            assert isinstance(connection, Guarded)


def test_a_library_that_calls_it_otherwise_accepts_itself() -> None:
    """What is used of the library is no promise of its; without it a connection costs more, and is accepted."""

    class Other:
        def accept(self) -> Any:
            return "connection", "peer"

    other: Any = Other()
    accepted: Any = acceptor(other)()
    assert accepted == ("connection", "peer")
