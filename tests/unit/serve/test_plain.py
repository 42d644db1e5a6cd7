"""What is read at a glance is what the parser reads: no request is understood in two ways."""

from __future__ import annotations

import itertools
import socket

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.serve import plain
from agent.serve.plain import read_plain
from agent.serve.reading import RequestReader
from agent.snapshot import Limits
from tests.fakes.view import FakeView, read_all, running_endpoint
from tests.system.harness import until

LIMITS = Limits()
BOTO = (
    b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: 169.254.169.254\r\nAccept-Encoding: identity\r\n"
    b"User-Agent: Boto3/1.44.5\r\nx-aws-ec2-metadata-token: AAAA\r\n\r\n"
)


def parsed(data: bytes, limits: Limits = LIMITS) -> RequestReader:
    """The same by llhttp."""
    reader = RequestReader(
        line_bytes=limits.line_bytes,
        head_bytes=limits.head_bytes,
        headers=limits.headers,
        body_bytes=limits.body_bytes,
        bodies=lambda *_: True,
    )
    reader.feed(data)
    return reader


def agrees(data: bytes, limits: Limits = LIMITS) -> bool:
    """Whether it is plain; if it is, the parser must read it whole, and alike."""
    head = read_plain(data, limits)
    if head is None:
        return False
    reader = parsed(data, limits)
    assert reader.fault is None
    assert reader.complete
    assert reader.body == b""
    assert head == (reader.method, reader.target, reader.headers)
    assert list(head[2].items()) == list(reader.headers.items())
    return True


# Pieces of which requests and their near misses are made: any order, any number.
PIECES = (
    *(b"GET ", b"PUT ", b"HEAD ", b"POST ", b"get ", b"/latest/", b"//", b"/a?b=c&d=%20", b"/#f", b'/"', b"http://h/"),
    *(
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b" HTTP/1.1\n",
        b"  HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"host: b\r\n",
        b"Host:\r\n",
    ),
    *(b"Host:a\r\n", b"Host : a\r\n", b"User-Agent: x y\t\r\n", b"User-Agent: x  \r\n", b"A_b: c\r\n", b" folded\r\n"),
    *(b"Content-Length: 0\r\n", b"Content-Length: 00\r\n", b"content-length: 1\r\n", b"Content-Length: +0\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Connection: Keep-Alive\r\n", b"TE: trailers\r\n"),
    *(
        b"Connection: close, upgrade\r\n",
        b"Upgrade: h2c\r\n",
        b"Expect: 100-continue\r\n",
        b"X: \x80\r\n",
        b"X: \x00\r\n",
    ),
    *(b"Accept: */*\r\n", b"accept: b\r\n", b"X: a:b: c\r\n", b"\r\n", b"\n", b"\r", b"0\r\n\r\n", b"body"),
)
START = (b"GET /latest/ HTTP/1.1\r\n", b"PUT /a HTTP/1.1\r\n", b"HEAD / HTTP/1.1\r\n")
ANY = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=10).map(b"".join),
    st.tuples(st.sampled_from(START), st.lists(st.sampled_from(PIECES), max_size=8)).map(
        lambda parts: parts[0] + b"".join(parts[1]) + b"\r\n"
    ),
    st.tuples(st.binary(max_size=8), st.integers(0, len(BOTO)), st.integers(0, 8)).map(
        lambda cut: BOTO[: cut[1]] + cut[0] + BOTO[cut[1] + cut[2] :]
    ),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # this machine may be very busy
@given(ANY)
@example(BOTO)
@example(BOTO.replace(b"GET", b"GE"))
@example(BOTO + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
def test_both_read_alike(data: bytes) -> None:
    """Whatever is read at a glance the parser reads whole, without a fault, and as the same method, target and fields."""
    agrees(data)


def test_each_byte_in_each_place() -> None:
    """No byte, wherever in a request it stands instead of another, is read otherwise by the parser."""
    plain_ones = 0
    short = b"GET /a?b HTTP/1.1\r\nHost: a\r\nX-y: b c\r\n\r\n"
    for at, byte in itertools.product(range(len(short)), range(256)):
        plain_ones += agrees(short[:at] + bytes([byte]) + short[at + 1 :])
    assert plain_ones > len(short)


@pytest.mark.parametrize(
    "field",
    [
        *("Content-Length: 5", "Content-Length: 00", "Transfer-Encoding: chunked", "Expect: 100-continue"),
        *("Upgrade: websocket", "Connection: upgrade", "Connection: close, x", "Trailer: a", "Host: twice"),
        *("TE: trailers", "accept-encoding: twice", "X_Y: z", "X:y", "X:  y", "X: y ", "X: \x7f"),
    ],
)
def test_what_is_left_to_the_parser(field: str) -> None:
    """A head that says where a body ends, what becomes of the connection, or anything twice, is for the parser."""
    assert agrees(BOTO)
    assert read_plain(BOTO[:-2] + field.encode() + b"\r\n\r\n", LIMITS) is None


@pytest.mark.parametrize("field", ["Content-Length: 0", "Connection: close", "Connection: Keep-Alive", "X-Y: z"])
def test_what_programs_send(field: str) -> None:
    """The fields with which clients say that nothing follows are no reason for a parser."""
    assert agrees(BOTO[:-2] + field.encode() + b"\r\n\r\n")


def test_limits_are_the_parser_s_to_count() -> None:
    """What is longer than any limit, or has too many fields, is not read at a glance."""
    for limits in (Limits(line_bytes=len(BOTO) - 1), Limits(head_bytes=len(BOTO) - 1), Limits(headers=3)):
        assert read_plain(BOTO, limits) is None
    assert read_plain(BOTO, Limits(line_bytes=len(BOTO), head_bytes=len(BOTO), headers=4)) is not None


def test_what_is_known_of_names_is_bounded() -> None:
    """Anybody may invent names of fields: what is remembered of them does not grow."""
    for number in range(2000):
        assert agrees(BOTO[:-2] + f"X-{number}: a\r\n\r\n".encode())
    assert len(plain._known) <= 256


def test_every_request_of_the_tables_has_one_meaning() -> None:
    """The answers to a plain request and to the same in two pieces, which only the parser reads, are the same."""
    with running_endpoint(FakeView()) as server:
        for target in (
            "/",
            "/latest/meta-data/",
            "/latest/..",
            "/%2e%2e/a",
            "/latest/meta-data?a=%zz",
            "/a%20b",
            "/v1/credentials",
        ):
            data = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: a\r\n\r\n".encode()
            assert agrees(data)
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
                sock.sendall(data[:20])
                until(lambda: server.endpoint.listener.buffered_bytes > 0)  # the first piece is read
                sock.sendall(data[20:])
                pieces = read_all(sock)
            assert pieces.split(b"Date:")[0] == server.send(data).split(b"Date:")[0]
