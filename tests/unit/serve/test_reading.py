"""The reader of one request: what it takes, piece by piece, and what it leaves behind."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.serve.reading import Fault, RequestReader

GET = b"GET /a?b HTTP/1.1\r\nHost: localhost\r\nX-Trail: blank \t\r\n\r\n"
PUT = b"PUT /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"PUT /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n"
)
UPGRADE = (
    b"PUT /a HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 5\r\n\r\nhello"
)


def reader(*, line: int = 100, head: int = 400, headers: int = 6, body: int = 50) -> RequestReader:
    return RequestReader(line_bytes=line, head_bytes=head, headers=headers, body_bytes=body)


def fed(data: bytes, **limits: int) -> RequestReader:
    made = reader(**limits)
    made.feed(data)
    return made


@pytest.mark.parametrize("data", [GET, PUT, CHUNKED, UPGRADE], ids=["get", "put", "chunked", "upgrade"])
@given(cuts=st.lists(st.integers(0, 220), max_size=8))
def test_pieces_make_no_difference(data: bytes, cuts: list[int]) -> None:
    """However a request is cut, it is read as the same one, and is whole with its last byte and not before."""
    whole = fed(data)
    assert whole.complete
    assert whole.fault is None
    made = reader()
    at = 0
    for cut in [*sorted(c for c in cuts if c < len(data)), len(data)]:
        assert not made.complete
        made.feed(data[at:cut])
        at = cut
    assert (made.complete, made.fault) == (True, None)
    for name in ("method", "target", "body", "fields"):
        assert getattr(made, name) == getattr(whole, name)


def test_values_end_without_blanks() -> None:
    """Blanks around a value are no part of it (RFC 9110 section 5.5)."""
    assert fed(GET).headers["x-trail"] == "blank"


def test_body_of_an_offered_upgrade() -> None:
    """A request that offers another protocol is read as if it did not, its body too (RFC 9110 section 7.8)."""
    assert fed(UPGRADE).body == b"hello"


def test_chunks_and_an_upgrade() -> None:
    """Chunks beside an offered upgrade are refused: the parser would leave them unread."""
    data = UPGRADE.replace(b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert fed(data).fault is Fault.BAD


@pytest.mark.parametrize("behind", [GET, b"\0\0garbage", b"PUT / HTTP/1.1\r\nX: " + b"y" * 5000], ids=str)
def test_what_is_behind_changes_nothing(behind: bytes) -> None:
    """A second request, or anything else behind the first, neither replaces it nor spoils it."""
    for data in (PUT, CHUNKED, UPGRADE):
        made = fed(data + behind)
        assert (made.fault, made.method, made.target, made.body) == (None, "PUT", "/a", b"hello")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"GET /" + b"a" * 100, Fault.TARGET_TOO_LONG),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 101 + b"\r\n\r\n", Fault.HEAD_TOO_LARGE),
        (b"GET / HTTP/1.1\r\n" + b"a" * 101 + b": x\r\n\r\n", Fault.HEAD_TOO_LARGE),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X%d: %090d\r\n" % (i, i) for i in range(5)),
            Fault.HEAD_TOO_LARGE,
        ),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 6 + b"\r\n", Fault.BAD),
        (b"GET / HTTP/1.1\r\n\r\n", Fault.BAD),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", Fault.BAD),
        (b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 51\r\n\r\n", Fault.BODY_TOO_LARGE),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n33\r\n" + b"a" * 51, Fault.BODY_TOO_LARGE),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 900, Fault.BODY_TOO_LARGE),
    ],
    ids=["target", "value", "name", "fields", "number", "no-host", "version", "announced", "chunk", "extension"],
)
def test_bounds(data: bytes, fault: Fault) -> None:
    """Every size and number has its bound and its status."""
    assert fed(data).fault is fault


@pytest.mark.parametrize("name", ["Authorization", "Content-Type", "Host", "User-Agent", "uSER-aGENT"])
def test_fields_that_occur_once(name: str) -> None:
    """Two of a field that decides something are refused, equal or not; two of another are not."""
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
    twice = f"{name}: a\r\n{name.lower()}: a\r\n\r\n".encode()
    assert fed(head + twice).fault is Fault.BAD
    assert fed(head + b"Accept: a\r\naccept: b\r\n\r\n").complete


@pytest.mark.parametrize("data", [GET, b"\0", GET[:20], UPGRADE], ids=["whole", "refused", "left", "upgrade"])
def test_no_work_for_the_collector(data: bytes) -> None:
    """A reader is gone with its last reference: thousands a second must not wait for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        made = reader()
        made.feed(data[:-2])
        made.feed(data[-2:])
        if not made.complete and made.fault is None:
            made.release()

        class Mark:
            pass

        mark = Mark()
        gone = weakref.ref(mark)
        made.fields.append(mark)  # type: ignore[arg-type]
        del made, mark
        assert gone() is None
    finally:
        gc.enable()
