"""What the real services answer is taken as it is written, and nothing is taken for an identity that is not whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.core.errors import WireError
from agent.wire import container, ec2, gce
from agent.wire.http import Response

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
ENDS = NOW + timedelta(hours=1)

EC2 = {
    "Code": "Success",
    "LastUpdated": "2026-11-24T12:00:00Z",
    "AccessKeyId": "ASIAEXAMPLE",
    "SecretAccessKey": "secret/1",
    "Token": "token",
    "Expiration": "2026-11-24T13:00:00Z",
}
CONTAINER = {name: EC2[name] for name in ("AccessKeyId", "SecretAccessKey", "Token", "Expiration")}
GCE = {"access_token": "ya29.x", "expires_in": 3600, "token_type": "Bearer"}

READERS: dict[str, tuple[Callable[[bytes], Any], dict[str, Any]]] = {
    "ec2": (ec2.parse_credential, EC2),
    "container": (lambda data: container.parse_credential(data, received=NOW), CONTAINER),
    "gce": (lambda data: gce.parse_token(data, NOW), GCE),
    "a gce account": (gce.parse_account, {"email": "a@b.example"}),
}
LACKING = [
    (name, {key: value for key, value in whole.items() if key != part} | instead)
    for name, (_, whole) in READERS.items()
    for part in sorted(whole.keys() - {"Code", "LastUpdated"})
    for instead in ({}, {part: ""})
    if (part, instead) != ("token_type", {part: ""})  # of which kind it is goes nowhere
]


@pytest.mark.parametrize("name", READERS)
def test_what_is_whole_is_read(name: str) -> None:
    """The documents of this file are whole, so that what is refused of them is refused for what was changed."""
    read, whole = READERS[name]
    got = read(json.dumps(whole).encode())
    assert getattr(got, "expires_at", ENDS) == ENDS
    assert getattr(got, "issued_at", NOW) == NOW


@pytest.mark.parametrize(("name", "rest"), LACKING)
def test_what_lacks_a_part_is_no_credential(name: str, rest: dict[str, Any]) -> None:
    """A document without one of its parts, or with an empty one, is an error, and nobody's identity."""
    with pytest.raises(WireError) as caught:
        READERS[name][0](json.dumps(rest).encode())
    assert "secret/1" not in str(caught.value)


def test_a_document_that_says_it_failed_is_no_credential() -> None:
    """EC2 says so in ``Code``, with all other parts there, when the role was taken away."""
    with pytest.raises(WireError, match="AssumeRoleUnauthorizedAccess"):
        ec2.parse_credential(json.dumps(EC2 | {"Code": "AssumeRoleUnauthorizedAccess"}).encode())


def test_without_a_time_of_issue_the_end_is_taken_for_it() -> None:
    """A dialect or a server that does not say when it issued a credential makes it no older than it is."""
    assert ec2.parse_credential(json.dumps(EC2 | {"LastUpdated": ""}).encode()).issued_at == ENDS
    assert container.parse_credential(json.dumps(CONTAINER).encode()).issued_at == ENDS


@pytest.mark.parametrize(
    ("seconds", "is_read"),
    [(-1, False), (0, False), (1, True), (7 * 86400, True), (7 * 86400 + 1, False), (3600.5, False), ("3600", False)],
)
def test_a_token_has_a_life_that_one_can_believe(seconds: object, is_read: bool) -> None:
    """From a second to a week, as a whole number: nothing else says until when it is served."""
    data = json.dumps(GCE | {"expires_in": seconds}).encode()
    if is_read:
        assert gce.parse_token(data, NOW).expires_at == NOW + timedelta(seconds=int(str(seconds)))
        return
    with pytest.raises(WireError):
        gce.parse_token(data, NOW)


@pytest.mark.parametrize(
    ("read", "data", "expected"),
    [
        (ec2.parse_token, b"AQAE x", None),
        (ec2.parse_token, b"", None),
        (ec2.parse_token, b" \n", None),
        (ec2.parse_token, b"AQ\x00", None),
        (ec2.parse_token, b"AQ\xc4", None),
        (ec2.parse_token, b"x" * 1025, None),
        (ec2.parse_token, b"x" * 1024, "x" * 1024),
        (ec2.parse_token, b"AQAEx==\n", "AQAEx=="),
        (ec2.parse_role_list, b"<html>", None),
        (ec2.parse_role_list, "r\u00f6le".encode(), None),
        (ec2.parse_role_list, b"x" * 65, None),
        (ec2.parse_role_list, b"x" * 64 + b"\r\n", "x" * 64),
        (gce.parse_identity, b"a.b", None),
        (gce.parse_identity, b"a.b.c.d", None),
        (gce.parse_identity, b"a.b.c\nd", None),
        (gce.parse_identity, b"a.b." + b"x" * 16381, None),
        (gce.parse_identity, b"a.b." + b"x" * 16380, "a.b." + "x" * 16380),
        (gce.parse_identity, b"a.b.c\n", "a.b.c"),
    ],
)
def test_a_text_is_what_it_should_be_or_an_error(
    read: Callable[[bytes], Any], data: bytes, expected: str | None
) -> None:
    """A page of a proxy, or what could not stand in a header, is neither a token nor a role."""
    if expected is not None:
        assert read(data) == expected
        return
    with pytest.raises(WireError):
        read(data)


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", None),
        ("1", 1),
        ("21600", 21600),
        ("21601", None),
        ("00060", 60),
        ("000060", None),
        ("-1", None),
        ("1.5", None),
        ("\u0661", None),
        ("\u00b2", None),
    ],
)
def test_how_long_a_session_token_may_live(asked: str | None, seconds: int | None) -> None:
    """A whole number of seconds of ASCII, from one to six hours; anything else is answered with 400."""
    assert ec2.ttl_asked(asked) == seconds


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("", gce.Query()),
        ("recursive=True&alt=JSON", gce.Query(recursive=True, alt="json")),
        ("recursive=1", gce.Query()),
        ("alt=text&alt=json", gce.Query(alt="text")),
        (
            "wait_for_change=TRUE&last_etag=&timeout_sec=7",
            gce.Query(wait_for_change=True, last_etag="", timeout_seconds=7),
        ),
        ("timeout_sec=0", gce.Query(timeout_seconds=0)),
        ("timeout_sec=999999999", gce.Query(timeout_seconds=gce.MAX_HANG_SECONDS)),
        ("scopes=a,b+c,,d", gce.Query(scopes=("a", "b", "c", "d"))),
        ("audience=a&audience=b", gce.Query(audience="a")),
        ("&".join(f"x{n}=" for n in range(32)), gce.Query()),
    ],
)
def test_a_query_is_read_as_the_real_server_reads_it(raw: str, expected: gce.Query) -> None:
    """The first of a repeated name counts, case does not, and a wait has its bound."""
    assert gce.parse_query(raw) == expected


@pytest.mark.parametrize(
    "raw",
    [
        "alt=xml",
        "alt=",
        "timeout_sec=",
        "timeout_sec=-1",
        "timeout_sec=1.5",
        "timeout_sec=%D9%A1",
        "timeout_sec=1000000000",
        "audience=%ff",
        "&".join(f"x{n}=" for n in range(33)),
    ],
)
def test_a_query_that_means_nothing_is_refused(raw: str) -> None:
    """A value that has no meaning is said to be wrong, and not taken for one that was left out."""
    with pytest.raises(WireError):
        gce.parse_query(raw)


def test_below_a_leaf_there_is_nothing() -> None:
    """A path that goes on below a leaf, or leads to no name, is no node; a leaf of zero or of no text is one."""
    root = gce.Directory({"a": gce.Directory({"zero": 0, "none": "", "many": ("x", "y"), "token": gce.Action()})})
    assert gce.find(root, ()) is root
    assert gce.find(root, ("a", "zero")) == 0
    assert gce.find(root, ("a", "none")) == ""
    assert gce.find(root, ("a", "zero", "x")) is None
    assert gce.find(root, ("a", "many", "0")) is None
    assert gce.find(root, ("b",)) is None
    assert gce.find(root, ("b", "a")) is None


def test_what_is_minted_is_in_no_recursive_answer() -> None:
    """A token is given to whoever asks for it, and not with all the rest."""
    root = gce.Directory({"service-accounts": gce.account_directory("my-sa@b.example", ("s",))})
    tree = gce.to_json(root)
    account = {"aliases": ["default"], "email": "my-sa@b.example", "scopes": ["s"]}
    assert tree == {"serviceAccounts": {"my-sa@b.example": account, "default": account}}
    assert gce.listing(root) == b"service-accounts/\n"
    assert b"token" not in gce.render(root, gce.Query(recursive=True, alt="text"))[0]


@pytest.mark.parametrize(("status", "has_length"), [(200, True), (404, True), (204, False), (304, False)])
def test_an_answer_says_how_long_it_is_where_it_may(status: int, has_length: bool) -> None:
    """A length is on each answer but on those that must not have one, and each ends its connection."""
    head = Response(status, (), b"").head
    assert (b"Content-Length: 0\r\n" in head) is has_length
    assert head.endswith(b"Connection: close\r\n")


TREE = gce.Directory(
    {
        "host-name": "h",
        "disks": gce.Directory({"0": gce.Directory({"disk-size": 7})}),
        "attributes": gce.Directory({"my-Key": "v"}, literal=True),
        "tags": ("x", "y"),
        "token": gce.Action(),
    }
)


@pytest.mark.parametrize(
    ("path", "query", "body", "is_json"),
    [
        ((), "", "host-name\ndisks/\nattributes/\ntags\ntoken\n", False),
        ((), "alt=json", '["host-name","disks/","attributes/","tags","token"]', True),
        (
            (),
            "recursive=true",
            '{"hostName":"h","disks":{"0":{"diskSize":7}},"attributes":{"my-Key":"v"},"tags":["x","y"]}',
            True,
        ),
        (
            (),
            "recursive=true&alt=text",
            "host-name h\ndisks/0/disk-size 7\nattributes/my-Key v\ntags/0 x\ntags/1 y\n",
            False,
        ),
        (("attributes",), "recursive=true&alt=text", "my-Key v\n", False),
        (("host-name",), "recursive=true", "h", False),
        (("host-name",), "alt=json", '"h"', True),
        (("disks", "0", "disk-size"), "alt=text", "7", False),
        (("tags",), "", "x\ny\n", False),
        (("tags",), "alt=json", '["x","y"]', True),
    ],
)
def test_a_node_in_each_of_its_forms(path: tuple[str, ...], query: str, body: str, is_json: bool) -> None:
    """A node is a listing, a text or JSON as the query says; names that are data keep their spelling, others do not."""
    node = gce.find(TREE, path)
    assert node is not None
    assert gce.render(node, gce.parse_query(query)) == (body.encode(), is_json)


def test_what_a_real_server_flattened_is_flattened_alike() -> None:
    """A tree that came as JSON has its lists numbered and its truths in capitals, however deep they are."""
    tree = {"disks": [{"autoDelete": True, "mode": "RW"}, {"autoDelete": False}], "attributes": {"aB": {"cD": 1}}}
    lines = ["disks/0/auto-delete TRUE", "disks/0/mode RW", "disks/1/auto-delete FALSE", "attributes/aB/c-d 1"]
    assert list(gce.flatten(tree)) == lines
    assert list(gce.flatten([["x"]])) == ["0/0 x"]


def test_the_document_of_a_machine_both_ways() -> None:
    """What is told of the machine is read as it was told; anything else is no machine."""
    machine = ec2.InstanceIdentity("eu-west-1", "123456789012", "eu-west-1a", "i-1", "m5.large", "ami-1", "10.0.0.1")
    assert ec2.parse_identity(ec2.render_identity(machine)) == machine
    for data in (b"", b"<html>", b"{}", b'{"region": 1}', b"[" * 70_000):
        with pytest.raises(WireError):
            ec2.parse_identity(data)
