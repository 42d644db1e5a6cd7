"""The codec of snapshots: both ways for every value, and nothing but the one spelling of each is taken."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as how

from agent.core.model import AwsCredential, GoogleToken, IdToken
from agent.core.secret import Secret
from agent.core.view import Absent, Ended, Facts, Live, Origin, Pending
from agent.snapshot import (
    MAX_BYTES,
    ForAudience,
    ForScopes,
    ServeSettings,
    Snapshot,
    SnapshotError,
    Stretch,
    decode,
    encode,
)
from agent.snapshot.frames import frame_of_snapshot, from_controller
from agent.snapshot.messages import ControllerSays
from tests.fakes.clock import START
from tests.fakes.view import KEY, aws_credential, google_token
from tests.fuzz.snapshot import fuzz
from tests.unit.snapshot.worlds import SNAPSHOTS

HOUR = timedelta(hours=1)


def full() -> Snapshot:
    """One with something in every place."""
    token = IdToken(Secret("a.b.c"), "https://aud.example", START, START + HOUR)
    scoped = ForScopes(("a", "b"), google_token(START, serial=2), START + HOUR)
    return Snapshot(
        version=7,
        settings=ServeSettings(token_key=KEY, hide=("/latest/user-data",), extra_hosts=("bridge.internal",)),
        aws=(
            Stretch(Live(aws_credential(START), "reader", Origin.BUNDLE), START + HOUR),
            Stretch(Ended("bundle 7 ended", passing=False)),
        ),
        gcp=(
            Stretch(Pending("waiting"), START + HOUR),
            Stretch(Live(google_token(START), "x@y.example", Origin.FALLBACK), START + 2 * HOUR, ("a", "b", "c")),
            Stretch(Absent("none")),
        ),
        aws_names=("reader", "before"),
        gcp_names=("x@y.example",),
        facts=Facts(region="eu-west-1"),
        mints_id_tokens=True,
        id_tokens=(ForAudience(token, START + HOUR),),
        scoped=(scoped,),
        container_tokens=(Secret("new"), Secret("old")),
        container_ids=(Secret("id"),),
        refused="bundle.signer: not believed",
    )


@how(deadline=None, max_examples=80)
@given(SNAPSHOTS)
def test_what_is_encoded_is_decoded_the_same(snapshot: Snapshot) -> None:
    """Whatever a snapshot says, its bytes say the same, and its reader writes the same bytes again."""
    data = encode(snapshot)

    assert decode(data) == snapshot
    assert encode(decode(data)) == data


def bent(change: Any) -> bytes:
    """The bytes of a whole snapshot, with something of its plain values changed."""
    plain = msgspec.msgpack.decode(encode(full()))
    change(plain)
    return msgspec.msgpack.encode(plain)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(lambda s: s.update(format=2), "format 1, got 2", id="another format"),
        pytest.param(lambda s: s.update(grants=[]), "one spelling", id="a member that is not known"),
        pytest.param(lambda s: s["aws"][0]["answer"].update(x=1), "one spelling", id="the same, deeper"),
        pytest.param(lambda s: s["aws"][0]["answer"].update(type="grant"), "got something else", id="no answer"),
        pytest.param(lambda s: s.pop("settings"), "got something else", id="a member that is missing"),
        pytest.param(lambda s: s.pop("refused"), "one spelling", id="a default that is left out"),
        pytest.param(lambda s: s["aws"].clear(), "got something else", id="no answer at all"),
        pytest.param(lambda s: s["aws"].pop(), "order", id="an answer that ends and nothing after it"),
        pytest.param(lambda s: s["aws"].reverse(), "order", id="an end that is not the last"),
        pytest.param(lambda s: s["gcp"].insert(0, s["gcp"][1]), "order", id="ends that go back"),
        pytest.param(lambda s: s["gcp"].insert(0, s["gcp"][0]), "order", id="an end twice"),
        pytest.param(lambda s: s["gcp"].insert(1, s["gcp"][-1]), "order", id="no end, and another answer after it"),
        pytest.param(lambda s: s["gcp"].extend([s["gcp"][-1]] * 300), "got something else", id="stretches in number"),
        pytest.param(lambda s: s.update(aws_names=["x"] * 65), "got something else", id="names in number"),
        pytest.param(lambda s: s["settings"].update(token_key=b"x" * 65), "got something else", id="a long key"),
        pytest.param(lambda s: s["settings"]["limits"].update(head_seconds=1e9), "something else", id="no limit"),
        pytest.param(lambda s: s["settings"]["limits"].update(head_seconds=float("nan")), "something else", id="nan"),
        pytest.param(lambda s: s.update(version=1.0), "got something else", id="a number of another kind"),
        pytest.param(lambda s: s.update(version=True), "got something else", id="no number"),
    ],
)
def test_what_no_writer_writes_is_refused(change: Any, why: str) -> None:
    """A snapshot has one spelling, and is whole: anything else is no snapshot."""
    with pytest.raises(SnapshotError, match=why):
        decode(bent(change))


def test_times_of_other_zones_are_refused() -> None:
    """Every instant says that it is UTC: one that does not compares with none of ours."""
    data = bent(lambda s: s["aws"][0].update(until=datetime(2030, 1, 1, tzinfo=timezone(HOUR)).isoformat()))
    with pytest.raises(SnapshotError):
        decode(data)
    assert datetime(2030, 1, 1, tzinfo=UTC) > START


@pytest.mark.parametrize(
    "where",
    [
        pytest.param(lambda s: s["aws"][0], id="a stretch"),
        pytest.param(lambda s: s["gcp"][0], id="a stretch of the other cloud"),
        pytest.param(lambda s: s["id_tokens"][0], id="an identity token"),
        pytest.param(lambda s: s["scoped"][0], id="an access token for fewer scopes"),
    ],
)
def test_times_of_no_zone_are_refused(where: Any) -> None:
    """An instant without a zone has one spelling too, so that it is not taken must be a rule of its own."""
    with pytest.raises(SnapshotError, match="utc"):
        decode(bent(lambda s: where(s).update(until="2030-01-01T00:00:00")))


def test_too_much_is_refused_before_it_is_read() -> None:
    """Neither side makes or takes more than the bound, and a reader does not parse what is larger."""
    large = msgspec.structs.replace(full(), refused="x" * MAX_BYTES)
    with pytest.raises(SnapshotError, match="at most"):
        encode(large)
    with pytest.raises(SnapshotError, match="at most"):
        decode(b"\x93" * (MAX_BYTES + 1))


def test_the_largest_that_is_made_is_taken() -> None:
    """What its writer may make its reader takes, to the byte, and so does what carries it: or nobody were answered."""
    some = msgspec.structs.replace(full(), refused="x" * (1 << 16))
    largest = msgspec.structs.replace(full(), refused="x" * ((1 << 16) + MAX_BYTES - len(encode(some))))

    data = encode(largest)

    assert len(data) == MAX_BYTES
    assert list(from_controller().feed(frame_of_snapshot(data))) == [data]
    assert decode(data) == largest


def test_what_has_no_spelling_is_not_written() -> None:
    """A value that is neither plain nor a secret is a mistake of ours, not an empty place in what is served."""
    with pytest.raises(TypeError, match="object"):
        encode(msgspec.structs.replace(full(), refused=object()))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc0", id="another type"),
        pytest.param(b"\x91" * 100_000, id="brackets without end"),
        pytest.param(b"{}", id="not this format at all"),
        pytest.param(b"\x80", id="empty"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="a length that is a lie"),
        pytest.param(
            bent(lambda s: s.update(x="!")).replace(b"\xa1!", b"\x91" * 5000), id="brackets where none is read"
        ),
        pytest.param(encode(full()).replace(b"reader", b"\xff" * 6), id="no text"),
        pytest.param(bent(lambda s: s["aws"][0].update(until="0001-01-01T00:00:00+12:00")), id="before the first day"),
        pytest.param(bent(lambda s: s.update(container_tokens=[5])), id="a secret that is none"),
    ],
)
def test_no_bytes_are_more_than_refused(data: bytes) -> None:
    """Whatever the bytes are, they are refused with the one error, and nothing else happens."""
    with pytest.raises(SnapshotError):
        decode(data)


def test_a_version_is_new_only_if_it_says_something_new() -> None:
    """A server is told what differs in anything but the number of the version, and nothing else."""
    snapshot = full()

    assert snapshot.same_as(msgspec.structs.replace(snapshot, version=8))
    assert not snapshot.same_as(msgspec.structs.replace(snapshot, refused=None))
    assert not snapshot.same_as(None)


def test_a_snapshot_tells_no_secret() -> None:
    """Neither its ``repr`` nor a refusal of its bytes holds one: both end up in logs."""
    snapshot = full()
    secrets = [KEY.decode(), "a.b.c", "new", "old", "ya29.example-1", "secret/1"]
    assert [secret for secret in secrets if f"'{secret}" in repr(snapshot) or secret in repr(snapshot.settings)] == []
    with pytest.raises(SnapshotError) as caught:
        decode(encode(snapshot)[:-1])
    assert caught.value.__cause__ is None
    assert not any(secret in str(caught.value) for secret in secrets)


def test_it_has_no_room_for_what_a_server_must_not_know() -> None:
    """No grant, bundle, key of a recipient or refresh token has a type that a snapshot could hold."""
    seen: set[type] = set()

    def walk(kind: Any) -> None:
        for one in [kind, *getattr(kind, "__args__", ())]:
            if isinstance(one, type) and issubclass(one, msgspec.Struct) and one not in seen:
                seen.add(one)
                for field in msgspec.structs.fields(one):
                    walk(field.type)
            elif one is not kind:
                walk(one)
        if hasattr(kind, "__origin__") and kind.__origin__ is not kind:
            walk(kind.__origin__)

    walk(Snapshot)
    walk(ControllerSays)
    assert {kind.__name__ for kind in seen} == {
        "Absent", "AwsCredential", "Ended", "Facts", "ForAudience", "ForScopes", "GoogleToken", "IdToken", "Limits",
        "Live", "Minted", "Passed", "Pending", "ServeSettings", "Snapshot", "Stretch", "Tell", "Time",
    }  # fmt: skip
    assert {AwsCredential, GoogleToken} <= seen


def test_half_a_second_of_the_fuzzer() -> None:
    """Bytes that were changed are refused, or are the one spelling of what they say; nothing else is raised."""
    report = fuzz(0.5, random.Random(20261128))

    assert report.findings == []
    assert report.refused > 300
    assert report.taken > 3, "no change was small enough to be taken"
