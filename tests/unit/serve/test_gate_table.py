"""The gate table: raw bytes over a real socket, and what becomes of them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.view import Facts
from agent.snapshot import ServeSettings
from agent.wire.ec2 import TokenKey
from tests.fakes.clock import START, FakeClock
from tests.fakes.view import KEY, FakeView, RunningEndpoint, running_endpoint

TABLE = tomllib.loads((Path(__file__).parents[2] / "vectors/serve/gate.toml").read_text())
ROWS = [
    pytest.param(group["request"].replace("{}", row[0], 1), row[1], id=f"{number}-{index}-{row[2]}")
    for number, group in enumerate(TABLE["group"])
    for index, row in enumerate(group["rows"])
]
BARE = "{bare}"
GOOD = TokenKey(KEY).make(FakeClock().boottime() + 21600, b"nonce1")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningEndpoint]:
    view = FakeView()
    view.live_aws(START)
    view.live_gcp(START)
    view.set_facts(Facts(zone="europe-west1-b"))
    with running_endpoint(view, clock=FakeClock()) as running:
        yield running


def bytes_of(text: str) -> bytes:
    if text.startswith(BARE):
        return text.removeprefix(BARE).encode("latin-1")
    text = re.sub(r"\{long:(\d+)\}", lambda match: "a" * int(match[1]), text)
    text = re.sub(r"\{headers:(\d+)\}\n", lambda match: "".join(f"X-{i}: y\n" for i in range(int(match[1]))), text)
    text = text.replace("{good}", GOOD)
    return text.replace("\n", "\r\n").encode("latin-1")


@pytest.mark.parametrize(("text", "status"), ROWS)
def test_row(text: str, status: int, server: RunningEndpoint) -> None:
    """One answer with the status of the row, and then the end of the connection."""
    answer = server.send(bytes_of(text), half_close=False)

    assert answer.count(b"HTTP/1.1 ") == (1 if status else 0)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split(b" ", 2)[1]) == status
    fields = {name.lower(): value for name, _, value in (line.partition(b": ") for line in head.split(b"\r\n")[1:])}
    assert fields[b"connection"] == b"close"
    assert int(fields[b"content-length"]) == len(body)
    # A page may be told no, but never gets permission to read it.
    assert not any(name.startswith(b"access-control-") for name in fields)
    assert b"ASIAEXAMPLE" not in answer
    assert b"ya29" not in answer


def test_names_given_by_the_operator_are_ours() -> None:
    """A further host of the configuration is answered, in any case of letters, and its neighbours are not."""
    view = FakeView()
    view.live_gcp(START)
    settings = ServeSettings(token_key=KEY, extra_hosts=("Bridge.internal", "172.17.0.1"))
    with running_endpoint(view, settings=settings, clock=FakeClock()) as server:
        statuses = [
            int(server.send(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).split(b" ", 2)[1])
            for host in ("bridge.internal", "172.17.0.1:80", "172.17.0.2")
        ]
    assert statuses == [200, 200, 403]
