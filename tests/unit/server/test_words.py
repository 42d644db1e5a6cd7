"""What the controller and the master say to each other is read strictly: the master is its servers' user."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import SnapshotError
from agent.server import words

_PIDS = st.integers(1, (1 << 22) - 1)


@given(st.sampled_from([words.LINK, words.ALIVE, words.ENDED, words.HAD, words.FAILING]), _PIDS)
def test_a_word_with_a_number_is_read_as_it_was_said(word: bytes, number: int) -> None:
    """Both ways the same."""
    assert words.read(words.number(word, number)) == words.Said(word, number)
    assert words.pid_of(words.number(words.END, number)) == number


@given(
    st.lists(
        st.tuples(
            st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda one: f"[{one}]")),
            st.integers(1, 65535),
        ).map(lambda one: f"{one[0]}:{one[1]}"),
        max_size=words.MOST_SOCKETS,
    )
)
def test_addresses_are_read_as_they_were_said(addresses: list[str]) -> None:
    """Both ways the same, and short enough for one message."""
    said = words.at(addresses)
    assert len(said) <= words.MOST_BYTES
    assert words.read(said).addresses == tuple(addresses)


@given(st.binary(max_size=200))
def test_whatever_is_said_is_read_or_refused(said: bytes) -> None:
    """There is no third."""
    with contextlib.suppress(SnapshotError):
        words.read(said)
    assert words.pid_of(said) >= 0


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"link",
        b"link 0",
        b"link 01",
        b"link -1",
        b"link 1 2",
        b"link 12345678901",
        b"link \xd9\xa1",
        b"snapshot 1",
        b"at 127.0.0.1",
        b"at localhost:80",
        b"at 127.0.0.1:0",
        b"at 127.0.0.1:65536",
        b"at ::1:80",
        b"at [127.0.0.1:80",
        b"at [::1%lo]:80",
        b"at 127.0.0.1:80 ",
        b" ".join([b"at", *[b"127.0.0.1:80"] * (words.MOST_SOCKETS + 1)]),
        b"listen",
    ],
)
def test_what_no_honest_master_says_is_refused(said: bytes) -> None:
    """One spelling each, and nothing beside it."""
    with pytest.raises(SnapshotError):
        words.read(said)
