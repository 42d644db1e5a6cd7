"""One process that asks without end, or asks badly, takes no answer from another. Counted, never timed."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

import pytest

from agent.snapshot import Limits, ServeSettings
from agent.wire.ec2 import TokenKey
from tests.fakes.clock import START, FakeClock
from tests.fakes.view import KEY, FakeView, RunningEndpoint, read_all, running_endpoint

GOOD = TokenKey(KEY).make(FakeClock().boottime() + 21600, b"nonce1")
ROLES = (
    b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: localhost\r\n"
    b"X-aws-ec2-metadata-token: " + GOOD.encode() + b"\r\n\r\n"
)
GREEDY = 6
POLITE = 20


def whole_requests(server: RunningEndpoint, stop: threading.Event, count: Callable[[], None]) -> None:
    """As fast as it can, one after the other."""
    while not stop.is_set():
        with contextlib.suppress(OSError):
            server.send(ROLES)
        count()


def half_requests(server: RunningEndpoint, stop: threading.Event, count: Callable[[], None]) -> None:
    """Keeps thirty half requests open; finishes the oldest only to begin another."""
    held: list[socket.socket] = []
    while not stop.is_set():
        with contextlib.suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            held[-1].sendall(ROLES[:-2])
        count()
        if len(held) > 30:
            with held.pop(0) as oldest, contextlib.suppress(OSError):
                oldest.sendall(ROLES[-2:])
                read_all(oldest)
    for sock in held:
        sock.close()


def refused_requests(server: RunningEndpoint, stop: threading.Event, count: Callable[[], None]) -> None:
    """A hundred pipelined requests behind a bad one."""
    while not stop.is_set():
        with contextlib.suppress(OSError):
            server.send(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n" + ROLES * 100)
        count()


@pytest.mark.parametrize("flood", [whole_requests, half_requests, refused_requests])
def test_a_flood_takes_no_answer_from_others(flood: Callable[..., None]) -> None:
    """While greedy connections loop, each of another client's requests is answered, and none fails."""
    view = FakeView()
    view.live_aws(START)
    settings = ServeSettings(
        token_key=KEY,
        limits=Limits(head_seconds=60.0),
    )
    stop = threading.Event()
    under_way = threading.Semaphore(0)
    with running_endpoint(view, settings=settings, clock=FakeClock()) as server:
        threads = [
            threading.Thread(target=flood, args=(server, stop, under_way.release), daemon=True) for _ in range(GREEDY)
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(GREEDY):
                assert under_way.acquire(timeout=30)  # the flood is on
            answered = 0
            for _ in range(POLITE):
                with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
                    sock.sendall(ROLES)
                    answered += read_all(sock).startswith(b"HTTP/1.1 200 ")
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
    assert answered == POLITE
