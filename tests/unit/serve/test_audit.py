"""What is counted of what is given: each answer once, whoever made it, and nothing that could be used."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from agent.core.model import Cloud, IdToken
from agent.core.secret import Secret
from agent.core.served import MOST_AGENT_CHARACTERS, NOT_ASKED, Given, Serving, Who, plain
from agent.host.sockdiag import SocketDiagnosis
from agent.serve.audit import MOST_ROWS, PER_SECOND, Ledger, agent_in
from agent.server.asking import Asking
from agent.snapshot import Limits, ServeSettings
from agent.wire.ec2 import TokenKey
from tests.fakes.view import CONTAINER_TOKEN, KEY, FakeView, RunningEndpoint, running_endpoint

ROLE = "arn:aws:sts::123456789012:assumed-role/reader/laptop"
EMAIL = "reader@example-project.iam.gserviceaccount.com"
GOOGLE = "/computeMetadata/v1/instance/service-accounts/default"
ME = os.getuid()


class World:
    """A workers' endpoint with both clouds, and a ledger that asks the kernel."""

    def __init__(self, server: RunningEndpoint, ledger: Ledger) -> None:
        self.server = server
        self.ledger = ledger
        self.token = TokenKey(KEY).make(time.clock_gettime(time.CLOCK_BOOTTIME) + 21600, b"nonce1")

    def ask(self, path: str, *fields: str, method: str = "GET", host: str = "169.254.169.254") -> int:
        """The status of the answer."""
        text = "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *fields, "", ""])
        answer = self.server.send(text.encode("latin-1"))
        return int(answer.split(b" ")[1]) if answer else 0

    def ec2(self, *fields: str, **how: Any) -> int:
        document = "/latest/meta-data/iam/security-credentials/reader"
        return self.ask(document, f"X-aws-ec2-metadata-token: {self.token}", *fields, **how)

    def container(self, *fields: str) -> int:
        return self.ask("/v1/credentials", f"Authorization: {CONTAINER_TOKEN}", *fields)

    def google(self, what: str = "token", *fields: str) -> int:
        return self.ask(f"{GOOGLE}/{what}", "Metadata-Flavor: Google", *fields)

    def take(self) -> tuple[Serving, ...]:
        return self.server.run(self.ledger.take)[0]

    def refused(self) -> dict[str, int]:
        return dict(self.server.run(self.ledger.take)[1])


@contextmanager
def world(mode: Any = "full", **how: Any) -> Iterator[World]:
    now = datetime.now(UTC)
    view = FakeView()
    view.live_aws(now)
    view.live_gcp(now)
    view.mints = True
    view.id_tokens = {"a": IdToken(Secret("h.p.s"), "a", issued_at=now, expires_at=now.replace(year=now.year + 1))}
    view.touch()
    with closing(SocketDiagnosis()) as diagnosis:
        ledger = Ledger(mode, Asking(diagnosis))
        with running_endpoint(view, ledger=ledger, **how) as server:
            yield World(server, ledger)


def test_each_dialect_says_what_it_gave_to_whom() -> None:
    """A credential of each dialect is one row: what it is, its identity, the last four, the uid and the program."""
    with world() as it:
        assert it.ec2("User-Agent: Boto3/1") == it.container() == it.google() == it.google("identity?audience=a") == 200
        rows = it.take()
    assert [(one.given, one.who.uid, one.agent, one.count) for one in rows] == [
        (Given("ec2", Cloud.AWS, "credential", ROLE, "0001"), ME, "Boto3/1", 1),
        (Given("container", Cloud.AWS, "credential", ROLE, "0001"), ME, "", 1),
        (Given("gce", Cloud.GCP, "access-token", EMAIL), ME, "", 1),
        (Given("gce", Cloud.GCP, "id-token", EMAIL), ME, "", 1),
    ]


def test_what_is_no_credential_is_not_counted_as_one() -> None:
    """A list of roles, a token of a session, a head without a body, a refusal: nobody got anything."""
    with world() as it:
        assert it.ask("/latest/meta-data/iam/security-credentials/", f"X-aws-ec2-metadata-token: {it.token}") == 200
        ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60"
        assert it.ask("/latest/api/token", ttl, method="PUT") == 200
        assert [it.ec2(method="HEAD") for _ in range(3)] == [200] * 3
        assert it.ask("/v1/credentials", "Authorization: wrong") == 401
        assert it.google("email") == 200
        assert it.take() == ()


def test_what_is_remembered_is_counted_as_what_is_read() -> None:
    """Twenty programs that ask with the same bytes are twenty, each by the name it gives itself; one that sends none too."""
    with world() as it:
        for number in range(20):
            assert it.container(f"User-Agent: program/{number % 2}") == 200
        for _ in range(20):
            assert it.container() == 200
        memory = it.server.endpoint.listener.memory
        assert memory is not None
        assert len(it.server.accesses) == 40
        assert Counter({one.agent: one.count for one in it.take()}) == {"program/0": 10, "program/1": 10, "": 20}


def test_a_flood_is_counted_to_the_last_and_not_asked_about_each_time() -> None:
    """`summary` asks the kernel so often a second; what comes faster is counted without its asker, and none is lost."""
    moment = [0.0]
    asked = []

    def ask(peer: object, local: object) -> Who:
        asked.append(peer)
        return Who(uid=1000)

    ledger = Ledger("summary", ask, clock=lambda: moment[0])
    given = Given("ec2", Cloud.AWS, "credential", ROLE, "0001")
    for _ in range(1000):
        ledger.serve(given, lambda: (("127.0.0.1", 1), ("127.0.0.1", 2)), lambda: "x")
    moment[0] = 1.0
    ledger.serve(given, lambda: (("127.0.0.1", 1), ("127.0.0.1", 2)), lambda: "x")
    rows, _ = ledger.take()
    assert len(asked) == PER_SECOND + 1
    assert [(one.who, one.count) for one in rows] == [(Who(uid=1000), PER_SECOND + 1), (NOT_ASKED, 1000 - PER_SECOND)]
    assert ledger.take() == ((), ())


def test_off_asks_nobody_and_counts_all_the_same() -> None:
    """Without an audit the metrics still have how much was given."""
    with world("off") as it:
        assert it.container("User-Agent: x") == 200
        assert [(one.who, one.agent, one.count) for one in it.take()] == [(NOT_ASKED, "", 1)]


def test_a_worker_that_invents_names_fills_no_memory() -> None:
    """As many rows as there may be, and one more for each thing: what comes above loses its name, not its count."""
    ledger = Ledger("full", lambda _peer, _local: Who(uid=1000))
    given = Given("ec2", Cloud.AWS, "credential", ROLE, "0001")
    for number in range(3 * MOST_ROWS):
        ledger.serve(given, lambda: (("127.0.0.1", 1), ("127.0.0.1", 2)), lambda number=number: f"x/{number}")  # type: ignore[misc]
    rows, _ = ledger.take()
    assert len(rows) == MOST_ROWS + 1
    assert sum(one.count for one in rows) == 3 * MOST_ROWS
    assert {one.who.uid for one in rows} == {1000}, "whoever invents names hides nobody, not even himself"
    for number in range(3 * MOST_ROWS):
        other = msgspec.structs.replace(given, identity=f"role/{number}")
        ledger.serve(other, lambda: None, lambda: "")
    rows, _ = ledger.take()
    assert len(rows) <= 2 * MOST_ROWS
    assert sum(one.count for one in rows) == 3 * MOST_ROWS


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b[2J\x1b]0;owned\x07", 'x"}\\r\\n{"event":"credential.served","uid":0}', "\x85\xa0\xff", "a\tb", "x" * 5000, "\\u0000",
    ],
)  # fmt: skip
def test_what_a_client_calls_itself_is_plain_and_short(hostile: str) -> None:
    """No name makes a second line, a control sequence or a long line of the log."""
    made = plain(hostile)
    assert made.isascii()
    assert made.isprintable()
    assert len(made) <= MOST_AGENT_CHARACTERS
    for end in ("\n", "\r", "\u2028", "\x00"):
        assert plain(f"a{end}b") in {"a\\x0ab", "a\\x0db", "a\\u2028b", "a\\x00b"}


@pytest.mark.parametrize("repeated", [1, 3])
def test_a_hostile_name_over_a_socket(repeated: int) -> None:
    """A hostile name is told in the same plain words, whether the request is read or remembered."""
    name = "evil\t\x1b[2J\xff" + "y" * 400
    with world() as it:
        for _ in range(repeated):
            assert it.container(f"User-Agent: {name}") in {200, 400}
        for one in it.take():
            assert re.fullmatch(r"[ -~]{0,120}", one.agent)
    assert agent_in(b"GET / HTTP/1.1\r\nuser-agent:  x/1\r\n\r\n") == "x/1"
    assert agent_in(b"GET / HTTP/1.1\r\nX: User-Agent: x\r\n\r\n") == ""


def test_nothing_told_can_be_used() -> None:
    """The rows hold neither key nor token: the last four of an access key id, and of tokens nothing."""
    with world() as it:
        assert it.ec2() == it.container() == it.google() == it.google("identity?audience=a") == 200
        told = msgspec.json.encode(it.take()).decode() + repr(it.server.accesses)
    for secret in ("secret/1+", "FwoGZXIv", "ya29.", "h.p.s", CONTAINER_TOKEN, it.token, "ASIAEXAMPLE"):
        assert secret not in told


def test_each_refusal_has_its_reason() -> None:
    """Whoever is refused is counted under the one word that says why."""
    limits = Limits(line_bytes=200, head_bytes=400)
    with world(settings=ServeSettings(token_key=KEY, limits=limits)) as it:
        for fields, how in (
            ((), {"method": "POST"}),
            ((), {"host": "evil.example"}),
            (("X-Forwarded-For: 1.2.3.4",), {}),
            (("Origin: http://evil.example",), {}),
            (("User-Agent: Mozilla/5.0", "Cookie: a"), {}),
            (("User-Agent: credential-agent/1",), {}),
            ((), {}),
        ):
            assert it.ask("/latest/meta-data/", *fields, **how) >= 400
        assert it.ask("/v1/credentials", "Authorization: wrong") == 401
        assert it.ask("/computeMetadata/v1/") == 403
        assert it.ask("/%zz") == 400
        assert it.ask("/" + "x" * 300) in {414, 431}
        assert it.refused() == {
            "method": 1, "host": 1, "proxy": 1, "browser": 2, "loop": 1, "token": 2, "flavor": 1, "malformed": 1, "too-large": 1,
        }  # fmt: skip


def test_who_must_make_room_is_counted() -> None:
    """A connection that goes because there is no room for it is a refusal of its own kind."""
    limits = Limits(connections=8, held=4, spared_seconds=0.0)
    with world(settings=ServeSettings(token_key=KEY, limits=limits)) as it:
        held = [socket.create_connection(("127.0.0.1", it.server.port)) for _ in range(24)]
        # Those that came first make room for those that come after.
        ended = select.select(held, [], [], 10)[0]
        assert ended
        assert it.refused()["room"] >= len(ended)
        for one in held:
            one.close()


CLIENT = """
import encodings.idna, os, socket, sys
os.setgid(65534), os.setuid(65534)
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.sendall(sys.stdin.buffer.read())
while sock.recv(65536): pass
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_another_users_credential_is_that_users() -> None:
    """The uid is the kernel's: of the process that asked, for the first answer and for a remembered one."""
    with world() as it:
        text = f"GET /v1/credentials HTTP/1.1\r\nHost: localhost\r\nAuthorization: {CONTAINER_TOKEN}\r\n\r\n"
        for _ in range(3):
            subprocess.run([sys.executable, "-c", CLIENT, str(it.server.port)], input=text.encode(), check=True)
            assert it.server.send(text.encode()).startswith(b"HTTP/1.1 200")
        rows = it.take()
        assert {(one.who.uid, one.who.caller): one.count for one in rows} == {(65534, "system"): 3, (0, "root"): 3}
        assert all(one.who.cgroup > 0 for one in rows)


@pytest.mark.parametrize(
    ("who", "caller"),
    [
        (Who(uid=0), "root"), (Who(uid=999), "system"), (Who(uid=1000), "user"), (Who(uid=60513), "user"),
        (Who(uid=61184), "system"), (Who(uid=65534), "system"), (Who(uid=100_000), "subordinate"),
        (Who(address="172.17.0.2"), "forwarded"), (Who(), "unknown"), (NOT_ASKED, "unknown"),
    ],
)  # fmt: skip
def test_the_class_of_a_caller(who: Who, caller: str) -> None:
    """A metric has few classes and no uids: systemd's borders between users of the system, people and containers."""
    assert who.caller == caller


def test_a_flood_is_counted_as_what_it_is_and_not_as_another_s() -> None:
    """Each identity token has a note of its own: they are counted together, not for the credential before, nor all kept."""
    ledger = Ledger("off", None)
    role = Given("ec2", Cloud.AWS, "credential", ROLE, "ABCD")
    ledger.serve(role, lambda: None, str)
    tracemalloc.start()
    for _ in range(100 * MOST_ROWS):
        ledger.serve(Given("gce", Cloud.GCP, "id-token", EMAIL), lambda: None, str)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1 << 20
    counts = {(row.given.dialect, row.given.kind): row.count for row in ledger.take()[0]}
    assert counts == {("ec2", "credential"): 1, ("gce", "id-token"): 100 * MOST_ROWS}
    assert ledger.take() == ((), ())
