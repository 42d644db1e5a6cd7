"""The request table: every row is sent over a real socket, alone on its connection, and answered exactly as it says."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.core.errors import Denied, Transient
from agent.core.model import AwsCredential, Cloud, GoogleToken, IdToken
from agent.core.secret import Secret
from agent.core.view import Ended, Facts, Live, Origin, Pending
from agent.snapshot import ServeSettings
from agent.wire.ec2 import TokenKey
from tests.fakes.clock import START, FakeClock
from tests.fakes.view import CONTAINER_TOKEN, KEY, FakeView, RunningEndpoint, running_endpoint

TABLE = tomllib.loads((Path(__file__).parents[2] / "vectors/serve/requests.toml").read_text())
ROWS = [
    pytest.param(group, row, id=f"{group['state']}-{row[0]}-{row[1]}-{index}")
    for group in TABLE["group"]
    for index, row in enumerate(group["rows"])
]
BOOTTIME = FakeClock().boottime()
TOKENS = {
    "@good": TokenKey(KEY).make(BOOTTIME + 21600, b"nonce1"),
    "@graced": TokenKey(KEY).make(BOOTTIME - 119, b"nonce2"),
    "@last": TokenKey(KEY).make(BOOTTIME - 120, b"nonce6"),
    "@ended": TokenKey(KEY).make(BOOTTIME - 121, b"nonce3"),
    "@reboot": TokenKey(KEY).make(BOOTTIME + 30000, b"nonce4"),
    "@forged": TokenKey(b"another key of the same length!!").make(BOOTTIME + 21600, b"nonce5"),
}
AUTHORIZATIONS = {"@good": CONTAINER_TOKEN, "@older": "older-but-valid", "@bearer": f"Bearer {CONTAINER_TOKEN}"}
SHORTHANDS = {
    "t": "X-aws-ec2-metadata-token",
    "ttl": "X-aws-ec2-metadata-token-ttl-seconds",
    "f": "Metadata-Flavor",
    "a": "Authorization",
    "host": "Host",
}


PLACES = {
    "region": Facts(region="ap-southeast-2"),
    "zone": Facts(availability_zone="us-west-2-lax-1a"),
    "elsewhere": Facts(region="us-gov-east-1", availability_zone="eu-west-1a"),
}


async def demand(audience: str) -> IdToken | None:
    if audience == "on-demand":
        return IdToken(Secret("e30.ZGVtYW5k.c2ln"), audience, START, START + timedelta(hours=1))
    if audience == "denied":
        raise Denied("the account may not")
    raise Transient("unreachable")


def view_of(state: str) -> FakeView:
    view = FakeView()
    view.container_tokens = () if state == "aws-no-container" else ("older-but-valid", CONTAINER_TOKEN)
    cloud, _, rest = state.partition("-")
    name = {"aws": Cloud.AWS, "gcp": Cloud.GCP}.get(cloud)
    waiting, ended = Pending("waiting for a first bundle"), Ended("bundle 7 has ended; send another", passing=False)
    if name is None:
        return view
    if name is Cloud.GCP and rest != "pending":
        view.set_facts(
            Facts(project_id="example-project", numeric_project_id="424242", zone="europe-west1-b", instance_id="7001")
        )
    if rest == "renamed":
        live = view.live_aws(START, name="before") if name is Cloud.AWS else view.live_gcp(START)
        if isinstance(live, GoogleToken):
            view.set(name, Live(live, "before@example.com", Origin.BUNDLE))
    if rest == "pending":
        view.set(name, waiting)
        return view
    live = view.live_aws(START) if name is Cloud.AWS else view.live_gcp(START)
    if rest == "no-account":
        assert isinstance(live, AwsCredential)
        view.set(name, Live(msgspec.structs.replace(live, account_id=None, role_arn=None), "reader", Origin.BUNDLE))
    elif rest == "facts":
        view.set_facts(
            Facts(region="eu-west-1", availability_zone="eu-west-1a", account_id="123456789012", instance_id="i-0abc")
        )
    elif rest in PLACES:
        view.set_facts(PLACES[rest])
    elif rest == "ended":
        view.set(name, ended)
    elif rest == "passing":
        view.set(name, Ended("google does not answer; retrying", passing=True))
    elif rest == "identity":
        view.mints = True
        view.id_tokens["https://aud.example"] = IdToken(
            Secret("e30.e30.c2ln"), "https://aud.example", START, START + timedelta(hours=1)
        )
    return view


def settings_of(state: str) -> ServeSettings:
    return ServeSettings(
        token_key=KEY,
        imdsv1=state == "aws-v1",
        ec2_hold_seconds=0.02,
        container_hold_seconds=0.02,
        gce_hold_seconds=0.02,
    )


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, RunningEndpoint]]:
    with ExitStack() as stack:
        yield {
            state: stack.enter_context(
                running_endpoint(view_of(state), settings=settings_of(state), clock=FakeClock(), demand=demand)
            )
            for state in {group["state"] for group in TABLE["group"]}
        }


def request_of(row: list[Any]) -> bytes:
    method, target, given = row[:3]
    headers = {"Host": "169.254.169.254"}
    for name, value in given.items():
        full = SHORTHANDS.get(name, name)
        secrets = {"t": TOKENS, "a": AUTHORIZATIONS}.get(name, {})
        headers[full] = secrets.get(value, value)
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read(answer: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version == "HTTP/1.1"
    return int(status), [tuple(line.split(": ", 1)) for line in lines], body  # type: ignore[misc]


@pytest.mark.parametrize(("group", "row"), ROWS)
def test_row(group: dict[str, Any], row: list[Any], servers: dict[str, RunningEndpoint]) -> None:
    """The answer has the status, the headers and the body of the row, and nothing else."""
    method, _, _, status, like, body = row
    if body.startswith("@"):
        body = TABLE["bodies"][body[1:]]
    assert group["source"], "each row says where its expectation comes from"

    answer = servers[group["state"]].send(request_of(row))

    if status == 0:
        assert answer == b""
        return
    got_status, got_headers, got_body = read(answer)
    names = [name for name, _ in got_headers]
    assert len(names) == len(set(names)), "a header is sent once"
    fields = dict(got_headers)
    length = int(fields.pop("Content-Length"))
    assert fields.pop("Connection") == "close"
    assert fields.pop("Date") == "Tue, 24 Nov 2026 12:00:00 GMT"
    expected = dict(TABLE["headers"][like])
    for name in [name for name, value in expected.items() if value == "*"]:
        assert fields.pop(name)
        del expected[name]
    assert (got_status, fields) == (status, expected)
    if method == "HEAD":
        assert got_body == b""
        # As long as the answer to GET would be (RFC 9110 section 9.3.2).
        assert body.startswith("~") or length == len(body)
        return
    assert length == len(got_body)
    if body.startswith("~"):
        assert body[1:] in got_body.decode()
    else:
        assert got_body.decode() == body


def test_redirect_keeps_authority_and_query(servers: dict[str, RunningEndpoint]) -> None:
    """A directory without its slash moves to the one with it, under the authority asked for and with the query."""
    row = [
        "GET",
        "/computeMetadata/v1/instance?recursive=true&alt=json",
        {"f": "Google", "host": "metadata.google.internal:80"},
    ]
    _, headers, _ = read(servers["gcp"].send(request_of(row)))
    location = "http://metadata.google.internal:80/computeMetadata/v1/instance/?recursive=true&alt=json"
    assert dict(headers)["Location"] == location


def test_session_token_works_at_once_and_is_never_the_same(servers: dict[str, RunningEndpoint]) -> None:
    """What PUT gives opens the tree, and two clients never share one."""
    row = ["PUT", "/latest/api/token", {"ttl": "60"}]
    first, second = (read(servers["aws"].send(request_of(row)))[2].decode() for _ in range(2))
    assert first != second
    assert len(first) == 48
    status, headers, body = read(
        servers["aws"].send(request_of(["GET", "/latest/meta-data/iam/security-credentials/", {"t": first}]))
    )
    assert (status, body) == (200, b"reader")
    assert dict(headers)["X-Aws-Ec2-Metadata-Token-Ttl-Seconds"] == "60"


def test_etag_is_the_contents(servers: dict[str, RunningEndpoint]) -> None:
    """Equal content has an equal ETag of sixteen hexadecimal digits, other content another."""
    tags = [
        dict(read(servers["gcp"].send(request_of(["GET", f"/computeMetadata/v1/{path}", {"f": "Google"}])))[1])["ETag"]
        for path in ("project/project-id", "project/project-id", "project/numeric-project-id")
    ]
    assert tags[0] == tags[1] != tags[2]
    assert all(len(tag) == 16 and int(tag, 16) >= 0 for tag in tags)


def test_table_is_large_enough() -> None:
    """The table keeps at least the number of rows that were promised."""
    assert len(ROWS) >= 150
