"""The messages between the server and the controller: both ways for every value, and nothing but the one spelling."""

from __future__ import annotations

import random
import struct
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from agent.core.model import Cloud
from agent.snapshot import SnapshotError
from agent.snapshot.frames import (
    MOST_FROM_CONTROLLER,
    MOST_FROM_SERVER,
    Frames,
    frame_from_server,
    frame_of,
    frame_of_snapshot,
    from_controller,
    from_server,
)
from agent.snapshot.messages import (
    Counts,
    Crashed,
    Left,
    Mint,
    Minted,
    MintScoped,
    Pass,
    Passed,
    Refused,
    Taken,
    Tell,
    Uses,
    shortened,
)
from tests.fuzz.messages import fuzz
from tests.unit.snapshot.worlds import GOOGLE, ID_TOKENS, MAYBE, TEXT

NUMBERS = st.integers(1, 1 << 62)
FIELDS = st.lists(st.tuples(TEXT, TEXT), max_size=4).map(tuple)
SOME_TEXT = TEXT.filter(bool)
SERVER: st.SearchStrategy[Any] = st.one_of(
    st.builds(Taken, version=st.integers(0, 1 << 62)),
    st.builds(Mint, number=NUMBERS, audience=SOME_TEXT),
    st.builds(MintScoped, number=NUMBERS, scopes=st.lists(TEXT, max_size=4).map(tuple)),
    st.builds(
        Pass,
        number=NUMBERS,
        cloud=st.sampled_from(Cloud),
        method=st.text("ABCDEFG", max_size=8),
        target=SOME_TEXT,
        headers=FIELDS,
        body=st.none() | st.binary(max_size=64),
        seconds=st.floats(0, 3700),
    ),
    st.builds(Left, number=NUMBERS),
    st.builds(
        Counts, requests=st.lists(st.tuples(st.integers(0, 999), st.integers(1, 1 << 40)), max_size=4).map(tuple)
    ),
    st.builds(
        Uses,
        resident_bytes=st.integers(0, 1 << 50),
        cpu_seconds=st.floats(0, 1e9),
        descriptors=st.integers(0, 1 << 30),
    ),
    st.builds(
        Refused,
        method=TEXT,
        path=TEXT,
        status=st.integers(0, 999),
        seconds=st.floats(0, 1e6),
        size_bytes=st.integers(0, 1 << 40),
        user_agent=TEXT,
        peer=MAYBE,
    ),
    st.builds(Crashed, path=TEXT, error=TEXT, where=TEXT),
)
CONTROLLER: st.SearchStrategy[Any] = st.one_of(
    st.just(Tell()),
    st.builds(
        Minted,
        number=NUMBERS,
        id_token=st.none() | ID_TOKENS,
        access_token=st.none() | GOOGLE,
        denied=st.booleans(),
        why=MAYBE,
    ),
    st.builds(Passed, number=NUMBERS, status=st.integers(0, 999), headers=FIELDS, body=st.binary(max_size=64)),
)


def in_pieces(frames: Frames[Any], data: bytes, size: int) -> list[Any]:
    return [said for at in range(0, len(data), size) for said in frames.feed(data[at : at + size])]


@how(deadline=None, max_examples=60)
@given(st.lists(SERVER, max_size=5), st.integers(1, 50))
def test_what_a_server_says_is_read_the_same(said: list[Any], size: int) -> None:
    """Whatever is said, in whatever pieces it comes, the same is heard in the same order."""
    assert in_pieces(from_server(), b"".join(map(frame_from_server, said)), size) == said


@how(deadline=None, max_examples=60)
@given(st.lists(CONTROLLER | st.binary(max_size=30), max_size=5), st.integers(1, 50))
def test_what_the_controller_says_is_read_the_same(said: list[Any], size: int) -> None:
    """What the controller says is read as it was said; snapshots go by as they are."""
    data = b"".join(frame_of_snapshot(one) if isinstance(one, bytes) else frame_of(one) for one in said)
    assert in_pieces(from_controller(), data, size) == said


@pytest.mark.parametrize("most", [MOST_FROM_SERVER, MOST_FROM_CONTROLLER])
def test_a_length_is_refused_before_what_it_announces_is_read(most: int) -> None:
    """Nobody makes the other side keep more than it takes."""
    frames: Frames[Any] = from_server() if most == MOST_FROM_SERVER else from_controller()
    with pytest.raises(SnapshotError, match="at most"):
        list(frames.feed(struct.pack(">IB", most + 1, 1)))
    with pytest.raises(SnapshotError, match="at most"):
        list(from_server().feed(struct.pack(">IB", 0, 1)))


@pytest.mark.parametrize(
    "content",
    [
        msgspec.msgpack.encode({"type": "taken", "version": 1, "more": 1}),
        msgspec.msgpack.encode({"version": 1, "type": "taken"}),
        msgspec.msgpack.encode({"type": "taken"}),
        msgspec.msgpack.encode({"type": "taken", "version": -1}),
        msgspec.msgpack.encode({"type": "minted", "number": 1}),
        b"\x82\xa4type\xa5taken\xa7version\xcd\x00\x01",  # 1 in two bytes
        b"\x82\xa4type\xa5taken\xa7version\x01\x00",
        b"\xc1",
        b"",
    ],
)
def test_another_spelling_is_refused(content: bytes) -> None:
    """What two readers might read differently, and what only the other side may say, is refused."""
    with pytest.raises(SnapshotError):
        list(from_server().feed(struct.pack(">IB", len(content) + 1, 1) + content))


@pytest.mark.parametrize(
    "until",
    [
        pytest.param("2030-01-01T00:00:00", id="of no zone"),
        pytest.param("2030-01-01T00:00:00+01:00", id="of another zone"),
        pytest.param("0001-01-01T00:00:00+12:00", id="before the first day"),
    ],
)
def test_no_other_instant_than_of_utc_is_taken(until: str) -> None:
    """The end of what was minted says that it is UTC, or the message is none: it could not be compared with ours."""
    at = datetime(2030, 1, 1, tzinfo=UTC)

    def minted(ends: str | datetime) -> bytes:
        token = {"token": "a.b.c", "audience": "x", "issued_at": at, "expires_at": ends}
        said = {"type": "minted", "number": 1, "id_token": token, "access_token": None, "denied": False, "why": None}
        content = msgspec.msgpack.encode(said)
        return struct.pack(">IB", len(content) + 1, 1) + content

    assert [type(said) for said in from_controller().feed(minted(at))] == [Minted]
    with pytest.raises(SnapshotError):
        list(from_controller().feed(minted(until)))


def test_brackets_where_none_is_read_end_no_reader() -> None:
    """What is passed over is no deeper than the reader can go: it is refused as anything else that is no message."""
    content = msgspec.msgpack.encode({"type": "taken", "version": 1, "more": "!"}).replace(b"\xa1!", b"\x91" * 5000)
    with pytest.raises(SnapshotError):
        list(from_server().feed(struct.pack(">IB", len(content) + 1, 1) + content))


def test_a_server_sends_no_snapshot() -> None:
    """What a server says is never taken for what is served."""
    with pytest.raises(SnapshotError, match="kind"):
        list(from_server().feed(frame_of_snapshot(b"x")))


@pytest.mark.parametrize(
    "said",
    [
        Mint(1, "x" * 2049),
        Pass(1, Cloud.AWS, "GET", "/" + "x" * 16384, (), None, 1.0),
        Pass(1, Cloud.AWS, "M" * 33, "/", (), None, 1.0),
        Pass(1, Cloud.GCP, "PUT", "/", (("Content-Type", "x" * 4097),), b"", 1.0),
        Pass(1, Cloud.GCP, "PUT", "/\udc80", (), b"", 1.0),
    ],
)
def test_what_would_end_the_connection_is_not_said(said: Any) -> None:
    """What a worker asks, however long and whatever it is made of, never makes an honest server look like another."""
    with pytest.raises(SnapshotError):
        frame_from_server(said)


def test_words_are_shortened_to_what_a_message_takes() -> None:
    """A worker's words go into the log as far as they may be said."""
    said = Refused("GET", shortened("/" + "\udc80" * 2000, 1024), 403, 0.0, 0, shortened("x" * 999, 512), None)
    assert list(from_server().feed(frame_from_server(said))) == [said]


def test_a_fuzzer_finds_nothing() -> None:
    """Bent frames, of both sides: refused with one error that quotes nothing, or understood exactly."""
    report = fuzz(1.0, random.Random(11))
    assert not report.findings
    assert report.taken
    assert report.refused
