"""The dialects read what they write, and fail in one way on everything else."""

from __future__ import annotations

import contextlib
import json
import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.errors import TargetError, WireError
from agent.core.model import AwsCredential, GoogleToken
from agent.core.secret import Secret
from agent.core.text import instant
from agent.wire import container, ec2, gce
from agent.wire.http import Response, forwardable, path_of, segments_of

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
KEY = b"k" * 32
texts = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)
instants = st.integers(0, 4_000_000_000).map(lambda s: datetime.fromtimestamp(s, UTC))
credentials = st.builds(
    AwsCredential,
    access_key_id=texts,
    secret_access_key=texts.map(Secret),
    session_token=texts.map(Secret),
    issued_at=instants,
    expires_at=instants,
    account_id=st.none() | st.from_regex(r"[0-9]{12}", fullmatch=True),
)


@given(credentials)
def test_ec2_document_round_trip(credential: AwsCredential) -> None:
    """What the extended document says is read back as it was."""
    data = ec2.render_credential(credential, account_id=credential.account_id)
    assert ec2.parse_credential(data) == credential


@given(credentials)
def test_container_document_round_trip(credential: AwsCredential) -> None:
    """What the container document says is read back as it was; the instant of receipt stands for the issue."""
    data = container.render_credential(credential)
    assert container.parse_credential(data, received=credential.issued_at) == credential


@given(texts, st.integers(1, 86400))
def test_gce_token_round_trip(text: str, life: int) -> None:
    """A token is read back with the life it had."""
    token = GoogleToken(Secret(text), NOW, NOW + timedelta(seconds=life), "a@b", ("s",))
    assert gce.parse_token(gce.render_token(token, NOW), NOW, email="a@b", scopes=("s",)) == token


@given(st.integers(1, 5000))
def test_gce_token_never_has_no_life(milliseconds: int) -> None:
    """``expires_in`` is a whole number, at least 1 and otherwise never more than what is left."""
    token = GoogleToken(Secret("t"), NOW, NOW + timedelta(milliseconds=milliseconds), "a@b")
    again = gce.parse_token(gce.render_token(token, NOW), NOW)
    assert (again.expires_at - NOW).total_seconds() == max(1, milliseconds // 1000)


TARGETS: Callable[[bytes], Any] = lambda data: segments_of(data.decode("latin-1"))  # noqa: E731 - one of a list
PARSERS: list[Callable[[bytes], Any]] = [
    ec2.parse_credential,
    ec2.parse_role_list,
    ec2.parse_token,
    ec2.parse_identity,
    container.parse_credential,
    gce.parse_account,
    gce.parse_identity,
    lambda data: gce.parse_token(data, NOW),
    lambda data: ec2.parse_timestamp(data.decode("latin-1")),
    lambda data: gce.parse_query(data.decode("latin-1")),
    TARGETS,
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["Code", "Expiration", "Token", "expires_in", "access_token", "email", "region"]), inner
        )
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("number", range(len(PARSERS)))
@settings(max_examples=40)
@given(data=st.data())
def test_parsers_fail_in_one_way(number: int, data: st.DataObject) -> None:
    """Whatever the bytes, a parser returns or raises ``WireError``; that of targets its own."""
    content = data.draw(st.binary(max_size=80) | json_values.map(lambda value: json.dumps(value).encode()))
    with contextlib.suppress(TargetError if PARSERS[number] is TARGETS else WireError):
        PARSERS[number](content)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-24T12:00:00Z",
        "2026-11-24T12:00:00.5Z",
        "2026-11-24T13:00:00+01:00",
    ],
)
def test_timestamps_of_aws_services_are_read(text: str) -> None:
    """``Z``, a fraction and an offset are all read, as UTC."""
    assert ec2.parse_timestamp(text).replace(microsecond=0) == NOW


@pytest.mark.parametrize("text", ["", "soon", "2026-11-24T12:00:00", "0001-01-01T00:00:00+10:00", "1764000000"])
def test_other_timestamps_are_refused(text: str) -> None:
    """No zone, no timestamp: a naive one would be off by hours."""
    with pytest.raises(WireError):
        ec2.parse_timestamp(text)


def test_expiration_is_never_later_than_the_truth() -> None:
    """A fraction of a second is cut off, not rounded up."""
    assert instant(NOW + timedelta(milliseconds=999)) == "2026-11-24T12:00:00Z"


@given(st.floats(0, 1e12), st.binary(min_size=6, max_size=6))
def test_session_token_says_its_end(ends: float, nonce: bytes) -> None:
    """A token of ours says its end; the same made with another key says nothing."""
    token = ec2.TokenKey(KEY).make(ends, nonce)
    assert ec2.TokenKey(KEY).ends(token) == -(-ends // 1)
    assert ec2.TokenKey(b"x" * 32).ends(token) is None


@given(st.integers(0, 47), st.sampled_from(string.ascii_letters + string.digits + "-_"))
def test_session_token_cannot_be_changed(at: int, letter: str) -> None:
    """Any other letter anywhere makes it nobody's token."""
    token = ec2.TokenKey(KEY).make(1000.0, b"nonce1")
    changed = token[:at] + letter + token[at + 1 :]
    assert changed == token or ec2.TokenKey(KEY).ends(changed) is None


@given(st.text(max_size=60))
def test_other_texts_are_no_session_token(text: str) -> None:
    """No other text is a token, and none is an error."""
    assert ec2.TokenKey(KEY).ends(text) is None


@given(st.lists(st.text(string.ascii_letters + string.digits + "-_@.+=,~:", min_size=1, max_size=12), max_size=6))
def test_canonical_path_reads_as_itself(names: list[str]) -> None:
    """What a pass-through sends is read as the segments it was made from."""
    segments = tuple(name for name in names if name not in {".", ".."})
    assert segments_of(path_of(segments, slash=True)) == segments


@pytest.mark.parametrize(
    "path",
    [
        *("/a/../b", "/a/%2e%2E/b", "/a%2fb", "/a%5cb", "/%00", "/%2561", "/a;b", "/a%20", "x"),
        *("", "/a%", "/a%2", "/a%zz", "/%ff", "/%c0%af", "/%3f", "/%23", "/%3b", "/%7f", "/%c2%85", "/./a", "/a\udcff"),
    ],
)
def test_ambiguous_paths_are_refused(path: str) -> None:
    """What two readers may read differently is not read at all."""
    with pytest.raises(TargetError):
        segments_of(path)


def test_a_path_has_one_spelling() -> None:
    """However a client spells it: what needs no code is decoded, and the slash at the end stays as it was."""
    segments = segments_of("/computeMetadata//v%31/inst%41nce/caf%c3%a9/")
    assert segments == ("computeMetadata", "v1", "instAnce", "caf\u00e9")
    assert path_of(segments, slash=True) == "/computeMetadata/v1/instAnce/caf%C3%A9/"
    assert path_of(segments, slash=False) == "/computeMetadata/v1/instAnce/caf%C3%A9"
    assert (path_of((), slash=True), path_of((), slash=False)) == ("/", "/")


@pytest.mark.parametrize(
    ("name", "value"), [("X", "x\r\nSet-Cookie: y"), ("X", "x\ny"), ("X", "x\0"), ("X: y\r\nZ", "z"), ("", "z")]
)
def test_no_header_can_split_an_answer(name: str, value: str) -> None:
    """A line break in a header of ours is a fault of ours, found before anything is sent; another's is not passed on."""
    with pytest.raises(AssertionError, match="internal error"):
        Response(200, ((name, value),))
    assert not forwardable(name, value)


def test_a_header_is_passed_on_and_sent_as_it_is() -> None:
    """What is no danger to an answer stands in it."""
    answer = Response(206, (("X-Y", "a: b"),), b"abc")
    assert forwardable("X-Y", "a: b")
    assert answer.head.startswith(b"HTTP/1.1 206 Partial Content\r\nX-Y: a: b\r\nContent-Length: 3\r\n")
    assert (answer.header("x-y"), answer.header("z")) == ("a: b", None)
    assert Response(414).head.startswith(b"HTTP/1.1 414 URI Too Long\r\n")


def test_container_tokens_are_compared_whole() -> None:
    """Each valid token is accepted, alone or after ``Bearer``; nothing, a part and an empty one are not."""
    tokens = (Secret("new"), Secret("old"), Secret(""))
    assert all(container.authorized(text, tokens) for text in ("new", "old", "Bearer new", "bearer old"))
    refused = (None, "", "ne", "neww", "NEW", "Bearer", "Bearer ", "Basic new")
    assert not any(container.authorized(text, tokens) for text in refused)
    assert not container.authorized("new", ())


@pytest.mark.parametrize(
    ("data", "expected"), [(b"role", "role"), (b"role\n", "role"), (b"one\ntwo", "one"), (b"", None), (b"\n", None)]
)
def test_the_first_line_of_a_list_is_the_role(data: bytes, expected: str | None) -> None:
    """The first line is the role; an empty list is none."""
    assert ec2.parse_role_list(data) == expected


@given(st.from_regex(r"[a-z]{2,6}(-[a-z]{2,6}){0,3}", fullmatch=True))
def test_kebab_and_camel_case_are_inverse(name: str) -> None:
    """Kebab and camel case are each other's inverse."""
    assert gce.kebab(gce.camel(name)) == name
