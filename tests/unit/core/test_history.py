"""What happened lately: bounded, in order, and nothing hides anything else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from agent.core.history import KEPT, KEPT_RENEWALS, Entry, History
from agent.core.strictjson import NotThatShapeError, decode

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def at(seconds: int) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_renewals_push_out_no_refusal() -> None:
    """However many renewals there are, what happened once stays; both are bounded."""
    history = History()
    history.add(at(0), "refused", "push", "signer: unknown")
    for second in range(1000):
        history.add(at(second), "renewed", "aws", f"until {second}")
    kinds = [one.kind for one in history.entries]
    assert kinds.count("refused") == 1
    assert kinds.count("renewed") == KEPT_RENEWALS
    for second in range(1000):
        history.add(at(second), "bundle", "file", f"seq {second}")
    assert len(history.entries) == KEPT + KEPT_RENEWALS


def test_the_same_again_is_counted() -> None:
    """What flaps is one entry with a number and the last time; another source's is its own."""
    history = History()
    for second in range(5):
        history.add(at(second), "refused", "file", "expired")
        history.add(at(second), "refused", "https", "expired")
    assert [(one.about, one.times, one.at) for one in history.entries] == [("file", 5, at(4)), ("https", 5, at(4))]


def test_what_was_left_twice_is_told_once() -> None:
    """A handover and the disk may both have an entry; it comes back once, in the order of time, beside what is new."""
    left = Entry(at=at(1), kind="bundle", about="file", said="seq 1")
    history = History()
    history.add(at(5), "started", "agent", "version 1")
    history.restore([left, Entry(at=at(3), kind="identity", about="aws", said="served")])
    history.restore([left])
    assert [one.kind for one in history.entries] == ["bundle", "identity", "started"]


def test_no_sentence_is_long() -> None:
    """Whoever names a thing cannot fill the memory."""
    history = History()
    history.add(at(0), "refused", "push", "x" * 10_000)
    assert len(history.entries[0].said) == 300


def test_an_instant_without_a_zone_is_no_entry() -> None:
    """It could not be put in order beside the others, and would end the agent at its start."""
    text = b'[{"at": "2030-01-01T00:00:00", "kind": "started", "about": "agent", "said": "x"}]'
    with pytest.raises(NotThatShapeError):
        decode(text, tuple[Entry, ...])
    assert decode(text.replace(b'00"', b'00Z"'), tuple[Entry, ...])


def test_whatever_is_said_can_be_written_down() -> None:
    """Bytes of a header that are no text come as half a character, which JSON does not take: the handover would fail."""
    history = History()
    history.add(at(0), "source-failed", "https\udcff", "got a web page (\udcff, Größe)")
    (one,) = history.entries
    assert one.said == "got a web page (\\udcff, Größe)"
    assert msgspec.json.decode(msgspec.json.encode(history.entries), type=tuple[Entry, ...]) == history.entries
