"""A body is read where one is meant, and costs next to nothing elsewhere."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from agent.serve.reading import IDLE_BODY_BYTES, Fault, RequestReader
from tests.fakes.clock import START, FakeClock
from tests.fakes.upstreams import Scripted, answer
from tests.fakes.view import FakeView, read_all, running_endpoint

ATTRIBUTE = "/computeMetadata/v1/instance/guest-attributes/ns/key"
HEAD = "{} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata-Flavor: Google\r\n{}\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked"
TOKEN = "PUT /latest/api/token HTTP/1.1\r\nHost: localhost\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n{}\r\n\r\n"


def reader(*, means: bool, body: int = 65536) -> RequestReader:
    return RequestReader(line_bytes=8190, head_bytes=16384, headers=64, body_bytes=body, bodies=lambda *_: means)


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (CHUNKED, b"1\r\nx\r\n" * 200_000),
        (CHUNKED, b"1;" + b"e" * 1_000_000),
        (CHUNKED, b"0\r\n" + b"T: r\r\n" * 100_000),
        (CHUNKED, b"fffff\r\n" + b"x" * 1_000_000),
        ("Content-Length: 1048576", b"x" * 1_000_000),
        ("Content-Length: 65536", b""),
        ("Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 65536", b"x" * 65536),
    ],
    ids=["one-byte-chunks", "extension", "trailers", "one-chunk", "length", "announced", "upgrade"],
)
@pytest.mark.parametrize("request_line", ["GET /", "PUT /latest/api/token", f"GET {ATTRIBUTE}", "POST /x", "HEAD /"])
def test_no_body_is_meant(request_line: str, fields: str, body: bytes) -> None:
    """Whatever its form, a body where none is meant is refused before more than a kilobyte of it was looked at."""
    view = FakeView()
    view.live_gcp(START)
    with running_endpoint(view, clock=FakeClock(), gce=Scripted) as server:
        head = HEAD.format(request_line, fields).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            for at in range(0, max(1, len(body)), 65536):
                try:
                    sock.sendall((b"" if at else head) + body[at : at + 65536])
                except OSError:
                    break  # it does not even read on
            assert read_all(sock).startswith(b"HTTP/1.1 413 ")
        assert server.endpoint.listener.buffered_bytes == 0


@pytest.mark.parametrize("cut", [1, 7, 1000, 65536], ids=str)
@pytest.mark.parametrize("means", [False, True])
def test_the_parser_sees_a_bounded_part(cut: int, means: bool) -> None:
    """However much comes at once, the parser calls back for no more than a slice of it behind a whole head."""
    calls = 0

    class Counting(RequestReader):
        __slots__ = ()

        def on_body(self, piece: bytes) -> None:
            nonlocal calls
            calls += 1
            super().on_body(piece)

    made = Counting(line_bytes=8190, head_bytes=16384, headers=64, body_bytes=65536, bodies=lambda *_: means)
    made.feed(HEAD.format("PUT /", CHUNKED).encode())
    body = b"1\r\nx\r\n" * 100_000
    for at in range(0, len(body), cut):
        made.feed(body[at : at + cut])
        if made.fault is not None:
            break
    assert made.fault is Fault.BODY_TOO_LARGE
    assert calls <= (8000 if means else IDLE_BODY_BYTES // 6 + 1)


@pytest.mark.parametrize("means", [False, True])
def test_a_head_in_tiny_pieces(means: bool) -> None:
    """A head that comes byte by byte is taken, one that comes so without end is not."""
    made = reader(means=means)
    for byte in HEAD.format("GET /", "A: b").encode():
        made.feed(bytes([byte]))
    assert made.complete
    made = reader(means=means)
    made.feed(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
    for _ in range(8000):
        made.feed(b"A")
        if made.fault is not None:
            break
    assert made.fault is Fault.HEAD_TOO_LARGE
    assert made.complete is False


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ("Content-Length: 0", b""),
        ("Content-Length: 2", b"{}"),
        ("Content-Type: application/json\r\nContent-Length: 1000", b"x" * 1000),
        (CHUNKED, b"0\r\n\r\n"),
        (CHUNKED, b"2\r\n{}\r\n0\r\n\r\n"),
    ],
    ids=["none", "braces", "some", "no-chunk", "a-chunk"],
)
def test_a_small_body_out_of_habit_is_read_past(fields: str, body: bytes) -> None:
    """A small body that a client sends out of habit is read past, in one piece or two, and the request answered."""
    view = FakeView()
    view.live_aws(START)
    with running_endpoint(view, clock=FakeClock()) as server:
        head = TOKEN.format(fields).encode()
        assert server.send(head + body).startswith(b"HTTP/1.1 200 ")
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(head)
            sock.sendall(body)
            assert read_all(sock).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("spell", [str, lambda path: path.replace("guest", "gu%65st"), lambda p: "http://metadata" + p])
def test_guest_attributes_have_one(spell: Callable[[str], str]) -> None:
    """What a worker publishes about itself goes on whole, however the path is spelt."""
    real = Scripted({ATTRIBUTE: answer("", Metadata_Flavor="Google")})
    with running_endpoint(FakeView(), clock=FakeClock(), gce=lambda: real) as server:
        body = b"v" * 60_000
        request = (
            HEAD.format(f"PUT {spell(ATTRIBUTE)}", f"Content-Length: {len(body)}")
            .encode()
            .replace(b"169.254.169.254", b"metadata")
        )
        assert server.send(request + body).startswith(b"HTTP/1.1 200 ")
    assert [asked.body for asked in real.asked] == [body]


def test_without_a_real_server_nothing_takes_one() -> None:
    """Where nobody could take the attribute its body is not read either."""
    view = FakeView()
    view.live_gcp(START)
    with running_endpoint(view, clock=FakeClock()) as server:
        request = HEAD.format(f"PUT {ATTRIBUTE}", "Content-Length: 60000").encode()
        assert server.send(request).startswith(b"HTTP/1.1 413 ")
