"""What every room relies on: a secret shows itself to nobody, an error keeps what it is told, and bytes are read strictly."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from agent.core import jwt
from agent.core.errors import (
    AgentError,
    Denied,
    EvidenceError,
    KeyUnavailableError,
    SealError,
    Transient,
    UpstreamError,
)
from agent.core.secret import Secret, reveal
from agent.core.strictjson import NotThatShapeError, decode
from agent.core.text import printable, reason_of, socket_address

NOW = datetime(2026, 11, 29, tzinfo=UTC)


class Inner(msgspec.Struct):
    """A shape to be read."""

    number: int


def test_a_secret_is_the_same_as_another_of_the_same_text_and_hidden() -> None:
    """Compared and hashed by its text, shown by none of the usual ways, copied as itself, pickled never."""
    one, same, other, empty = Secret("canary"), Secret("canary"), Secret("another"), Secret("")
    assert one == same
    assert one != other
    assert one != "canary"
    assert {one: 1}[same] == 1
    assert (bool(one), bool(empty)) == (True, False)
    assert "canary" not in f"{one!r} {one!s} {one} {one:>40} {[one]}"
    assert copy.copy(one) is copy.deepcopy(one) is one
    with pytest.raises(TypeError, match="does not pickle"):
        pickle.dumps(one)
    assert (one.reveal(), reveal(one)) == ("canary", "canary")
    for wrong in (7, b"canary", None):
        with pytest.raises(TypeError) as caught:
            Secret(wrong)  # type: ignore[arg-type]
        assert "canary" not in str(caught.value)
        with pytest.raises(TypeError):
            reveal(wrong)


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (AgentError("m", hint="h"), {}),
        (SealError("m", hint="h"), {"code": "seal", "doubtful": False}),
        (SealError("m", hint="h", code="unwrap"), {"code": "unwrap"}),
        (KeyUnavailableError("m", hint="h", pause_seconds=7.0), {"code": "key-unavailable", "pause_seconds": 7.0}),
        (EvidenceError("m", hint="h", code="date"), {"code": "date"}),
        (UpstreamError("m", hint="h"), {"code": "network", "server_time": None, "pause_seconds": 0.0}),
        (
            UpstreamError("m", hint="h", code="tls", server_time=NOW, pause_seconds=7.0),
            {"code": "tls", "server_time": NOW, "pause_seconds": 7.0},
        ),
        *(
            (
                kind("m", hint="h", code="x", server_time=NOW, pause_seconds=7.0),
                {"code": "x", "server_time": NOW, "pause_seconds": 7.0},
            )
            for kind in (Denied, Transient)
        ),
    ],
)
def test_an_error_keeps_what_it_is_told(error: Any, attributes: dict[str, Any]) -> None:
    """Whoever catches it decides by that: when to come again, whose clock is off, what to tell the sender."""
    assert (error.message, str(error), error.hint) == ("m", "m", "h")
    assert {name: getattr(error, name) for name in attributes} == attributes


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[1]", b'{"number":"1"}', b'{"number":1.5}', b'{"number":1}x', b"\xff", b'{"number":' + b"9" * 5000 + b"}",
     b"[" * 100_000, b'{"number":"\xff"}', b'"\\ud800"'],
)  # fmt: skip
def test_what_is_not_of_a_shape_is_one_error_that_quotes_nothing(data: bytes) -> None:
    """Whatever a stranger sends: too deep, too long a number, no text."""
    with pytest.raises(NotThatShapeError) as caught:
        decode(data, Inner)
    assert str(caught.value) == ""
    assert caught.value.__cause__ is None


def test_what_is_of_a_shape_is_read() -> None:
    """Members that nobody asked for are skipped; without a shape it is whatever it is."""
    assert decode(b'{"number":1,"more":[]}', Inner) == Inner(1)
    assert decode(b'{"number":[1]}') == {"number": [1]}


@pytest.mark.parametrize(
    ("token", "found"),
    [
        ("a.eyJudW1iZXIiOjF9.c", Inner(1)),
        ("a.eyJudW1iZXIiOjEyfQ.c", Inner(12)),  # padded by us
        ("a.eyJudW1iZXIiOiJ4In0.c", None),
        ("a.eyJudW1iZXIiOjF9", None),
        ("a.eyJudW1iZXIiOjF9.c.d", None),
        ("a.e.c", None),
        ("a.é.c", None),
        ("", None),
    ],
)
def test_claims_are_read_or_there_are_none(token: str, found: Inner | None) -> None:
    """A token of a stranger's raises nothing."""
    assert jwt.claims(token, Inner) == found


def test_what_others_wrote_is_shown_without_what_a_terminal_obeys() -> None:
    """A line of a log ends where we end it; what is to be kept is kept."""
    assert printable("a\x1b[0m\nb\u202e", "\n") == "a?[0m\nb?"
    assert printable("a\nb") == "a?b"


def test_an_address_is_written_as_people_do() -> None:
    """An IPv6 one in brackets."""
    assert socket_address("127.0.0.1", 80) == "127.0.0.1:80"
    assert socket_address("::1", 80) == "[::1]:80"


def test_only_our_own_words_are_repeated() -> None:
    """What others say may hold anything."""
    assert reason_of(AgentError("our words")) == "our words"
    assert reason_of(ValueError("canary")) == "internal error: ValueError"
