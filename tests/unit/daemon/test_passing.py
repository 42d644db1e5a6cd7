"""What a server that a stranger has taken over reads of the machine's metadata: no more than any worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import pytest

from agent.core.errors import TargetError
from agent.core.model import Cloud
from agent.core.view import Absent, Answer, Ended, Live, Origin, Pending
from agent.daemon import passing
from agent.daemon.passing import Passing
from agent.serve.gce_answers import decided
from agent.serve.hiding import EC2_ROOT, GCE_ROOT
from agent.serve.proxy import ASKED_AT_ONCE, ASKED_PER_SECOND, MADE_AT_ONCE, MADE_PER_SECOND
from agent.snapshot import ServeSettings
from agent.snapshot.messages import Pass, Passed
from agent.wire import names
from agent.wire.http import path_of, segments_of
from tests.fakes.clock import START
from tests.fakes.upstreams import CANARY, Gullible, Scripted, answer
from tests.fakes.view import KEY
from tests.unit.identity.worlds import aws_credential
from tests.unit.serve.test_hiding import PLAIN, SEEN, Everything, view_of

T = TypeVar("T")
MACHINE = "/computeMetadata/v1/instance"


class Taken:
    """A server that says what it likes."""

    def __init__(self, real: Scripted, state: str = "bundle", **settings: Any) -> None:
        self.real = real
        self.view = view_of(state)
        self.passing = Passing(
            {Cloud.AWS: real, Cloud.GCP: real},
            ServeSettings(token_key=KEY, **settings),
            answer=lambda cloud: self.view.served.answer(cloud, START.timestamp()),
            expects_bundle=lambda: True,
        )

    async def ask(
        self,
        target: str,
        cloud: Cloud | None = None,
        *,
        method: str = "GET",
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes | None = None,
    ) -> Passed:
        if cloud is None:
            cloud = Cloud.GCP if names.GCE_ROOT.casefold() in target.casefold() else Cloud.AWS
        return await self.passing.ask(Pass(1, cloud, method, target, headers, body, 1.0))


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def refused(answered: Passed, real: Scripted) -> None:
    assert answered == Passed(1, 0)
    assert not real.asked


@pytest.mark.parametrize("path", PLAIN)
def test_what_is_hidden_is_not_asked(path: str) -> None:
    """What no worker sees while a bundle decides, no server is told, of either cloud, in any case, in any listing."""
    real = Everything()
    taken = Taken(real)
    try:
        spellings = {path, path.swapcase(), path_of(segments_of(path), slash=True)}
    except TargetError:
        spellings = {path}
    for target in spellings:
        for cloud in Cloud:
            refused(run(taken.ask(target, cloud)), real)


@pytest.mark.parametrize(
    "target",
    [
        "/latest/meta-data/iam/security-credentials/role",
        "/latest/meta-data/iam/info",
        "/latest/meta-data/IAM/info",
        "/latest/api/token/../user-data",
        "/latest/meta-data//hostname",
        "/latest/meta-data/%75ser-data",
        "http://169.254.169.254/latest/meta-data/hostname",
        "http://10.0.0.1/latest/meta-data/hostname",
        "/latest/meta-data/hostname?x=y",
        "/other/meta-data/hostname",
        "/latest/user-d\u0430ta",
        "/latest/meta-data/host%C5%84ame",
        f"{MACHINE}/host%C5%84ame",
        f"{MACHINE}/zone?wait_for_change=true&timeout_sec=soon",
        "latest",
        f"{MACHINE}/service-accounts/default/token",
        f"{MACHINE}/service-accounts/default/identity?audience=x",
        f"{MACHINE}/Service-Accounts/default/token",
        f"{MACHINE}/hostname?audience={quote(names.ENROL_AUDIENCE_PREFIX)}x",
        f"{MACHINE}/?recursive=true&alt=text",
        f"{MACHINE}/?recursive=TRUE",
        f"{MACHINE}/?Recursive=true",
        f"{MACHINE}/?recursive=false&recursive=true",
        f"{MACHINE}/?%72ecursive=true",
        f"{MACHINE}/?recursive=true;alt=json",
        f"{MACHINE}/hostname?other=1",
        "/computeMetadata/v1beta1/instance/hostname",
    ],
)
def test_another_spelling_or_another_question_is_not_asked(target: str) -> None:
    """Only what an honest server would ask, written as it writes it, goes out."""
    real = Everything()
    refused(run(Taken(real).ask(target)), real)


@pytest.mark.parametrize(
    ("target", "method", "headers", "body"),
    [
        ("/latest/meta-data/hostname", "PUT", (), None),
        ("/latest/api/token", "PUT", ((names.EC2_TTL_HEADER, "21600"),), None),
        ("/latest/meta-data/hostname", "GET", (("X-aws-ec2-metadata-token", "x"),), None),
        ("/latest/meta-data/hostname", "GET", (), b"x"),
        (f"{MACHINE}/hostname", "GET", (("Host", "elsewhere"),), None),
        (f"{MACHINE}/hostname", "GET", (), b"x"),
        (f"{MACHINE}/hostname", "HEAD", (), None),
        (f"{MACHINE}/guest-attributes/mine/key", "HEAD", (), None),
        (f"{MACHINE}/hostname", "PUT", (), b"x"),
        (f"{MACHINE}/guest-attributes/hostkeys/ssh-rsa", "PUT", (), b"x"),
        (f"{MACHINE}/guest-attributes/agent/key", "PUT", (), b"x"),
        (f"{MACHINE}/guest-attributes/mine/key", "PUT", (("Transfer-Encoding", "chunked"),), b"x"),
    ],
)
def test_no_other_method_header_or_body(
    target: str, method: str, headers: tuple[tuple[str, str], ...], body: bytes | None
) -> None:
    """It writes where workers may, and sends no header but a content type."""
    real = Everything()
    refused(run(Taken(real, own_namespaces=("agent",)).ask(target, method=method, headers=headers, body=body)), real)


@pytest.mark.parametrize("target", [f"{MACHINE}/", "/computeMetadata/v1/", f"{MACHINE}/attributes/"])
def test_a_tree_comes_without_what_is_hidden(target: str) -> None:
    """Whoever asks for a whole tree gets what workers may see of it, and no account of the machine."""
    real = Gullible()
    found = run(Taken(real).ask(f"{target}?recursive=true&alt=json"))
    assert found.status == 200
    assert CANARY.encode() not in found.body
    assert b"fine" in found.body


def test_a_listing_comes_without_what_is_hidden() -> None:
    """As text and as JSON; what cannot be read does not come."""
    listing = ["fine", "kube-env", "ssh-keys"]
    path = f"{MACHINE}/attributes/"
    real = Scripted(
        {
            path: answer("\n".join(listing)),
            f"{path}?alt=json": answer(json.dumps(listing), Content_Type="application/json"),
            f"{path}?recursive=true": answer("kube-env x\nfine y"),
        }
    )
    taken = Taken(real)
    assert run(taken.ask(path)).body == b"fine"
    assert json.loads(run(taken.ask(f"{path}?alt=json")).body) == ["fine"]
    assert run(taken.ask(f"{path}?recursive=true")).body == b""


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/latest/meta-data/hostname",
        "/latest/meta-data/spot/instance-action",
        "/2021-07-15/meta-data/",
        f"{MACHINE}/hostname",
        f"{MACHINE}/attributes/?alt=text",
        f"{MACHINE}/virtual-clock/?recursive=true&alt=text",
        f"{MACHINE}/zone?wait_for_change=true&timeout_sec=10&last_etag=x%2Fy",
        "/computeMetadata/v1/oslogin/users?" + urlencode({"username": "a b", "pagesize": "5"}),
    ],
)
def test_what_workers_may_ask_is_asked(target: str) -> None:
    """Everything else is the workers'."""
    real = Everything()
    found = run(Taken(real).ask(target))
    assert (found.status, found.body) == (200, SEEN.encode())
    assert [one.path_qs for one in real.asked] == [target]


def test_a_write_goes_out_as_it_came() -> None:
    """A worker's guest attribute, with its content type."""
    real = Everything()
    field = ("Content-Type", "text/plain")
    target = f"{MACHINE}/guest-attributes/mine/key"
    assert run(Taken(real).ask(target, method="PUT", headers=(field,), body=b"x")).status == 200
    (asked,) = real.asked
    assert (asked.method, asked.path_qs, asked.headers, asked.body) == ("PUT", target, dict([field]), b"x")


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("iam", True),
        ("iam/info", True),
        ("IAM/info", False),
        ("iam/security-credentials", False),
        ("iam/security-credentials/role", False),
        ("iam/Security-Credentials/role", False),
        ("iam/security-credentials-of-old", False),
    ],
)
def test_of_the_machines_own_identity_only_what_is_no_credential(path: str, asked: bool) -> None:
    """While it is the workers', its name is asked for; its credentials come from the agent, and never by this way."""
    real = Everything()
    taken = Taken(real, "fallback")
    assert (run(taken.ask(f"/latest/meta-data/{path}")).status == 200) is asked
    assert bool(real.asked) is asked


def test_a_service_that_the_machine_does_not_have_is_not_asked() -> None:
    """Such a question is refused as any other is, and ends nothing."""
    real = Everything()
    settings = ServeSettings(token_key=KEY)
    aws = Passing({Cloud.AWS: real}, settings, answer=lambda _: Absent("none"), expects_bundle=lambda: True)
    refused(run(aws.ask(Pass(1, Cloud.GCP, "GET", f"{MACHINE}/hostname", (), None, 1.0))), real)


@pytest.mark.parametrize(
    ("served", "is_decided"),
    [
        (Absent("none"), False),
        (Live(aws_credential(START), "role", Origin.FALLBACK), False),
        (Live(aws_credential(START), "role", Origin.BUNDLE), True),
        (Pending("a bundle may come"), True),
        (Ended("it was withdrawn", passing=False), True),
    ],
)
def test_when_the_machines_own_identity_is_the_workers(served: Answer, is_decided: bool) -> None:
    """Only while it is served, or where there is none: not while a bundle may come, nor after one."""
    one = Passing({}, ServeSettings(token_key=KEY), answer=lambda _: served, expects_bundle=lambda: True)
    assert one.decided(Cloud.AWS) is is_decided


def test_what_was_decided_meanwhile_is_not_told() -> None:
    """A bundle that takes Google over while the machine's own token is being asked for keeps it from the server."""

    async def overtaken() -> Passed:
        real = Everything()
        real.gate = asyncio.Event()
        taken = Taken(real, "fallback")
        asked = asyncio.create_task(taken.ask(f"{MACHINE}/service-accounts/default/identity?audience=x"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert real.under_way
        taken.view.live_gcp(START)
        assert decided(taken.view.served.answer(Cloud.GCP, START.timestamp()))
        real.gate.set()
        return await asked

    assert run(overtaken()).status == 0


@pytest.mark.parametrize(("connections", "plain", "polls"), [(1, 4, 2), (2, 4, 2), (10, 18, 10), (200, 72, 176)])
def test_so_many_are_under_way_at_once(connections: int, plain: int, polls: int) -> None:
    """Twice what an honest server has, by its settings, and long polls apart, some more; what has ended counts no more."""

    async def storm(target: str, most: int) -> list[int]:
        real = Everything()
        taken = Taken(real, passed_connections=connections)
        found = []
        for _ in range(2):
            real.gate, real.most_under_way = asyncio.Event(), 0
            many = [asyncio.create_task(taken.ask(target)) for _ in range(most + 3)]
            for _ in range(5):
                await asyncio.sleep(0)
            found.append(real.most_under_way)
            real.gate.set()
            await asyncio.gather(*many)
        return found

    assert run(storm("/latest/meta-data/hostname", plain)) == [plain, plain]
    assert run(storm(f"{MACHINE}/zone?wait_for_change=true&timeout_sec=10", polls)) == [polls, polls]


@pytest.mark.parametrize(
    ("target", "most"),
    [("/latest/meta-data/hostname", 18), (f"{MACHINE}/zone?wait_for_change=true&timeout_sec=10", 10)],
)
def test_what_waits_to_be_written_is_under_way(target: str, most: int) -> None:
    """A server that asks on and reads no answer has as many in our memory as it may have asked at once, and no others."""

    async def storm() -> list[int]:
        real, room = Everything(), asyncio.Semaphore(0)
        taken = Taken(real, passed_connections=10)

        async def in_turn(answer: Passed) -> Passed:
            await room.acquire()
            return answer

        cloud = Cloud.GCP if MACHINE in target else Cloud.AWS
        found = []
        many = []
        for written in (0, 1, most):
            for _ in range(written):
                room.release()
            many += [asyncio.create_task(taken.passing.ask(Pass(1, cloud, "GET", target, (), None, 1.0), in_turn))
                     for _ in range(most + 3)]  # fmt: skip
            for _ in range(5):
                await asyncio.sleep(0)
            found.append(len(real.asked))
        for one in many:
            one.cancel()
        return found

    assert run(storm()) == [most, most + 1, 2 * most + 1]


@pytest.mark.parametrize(
    ("target", "method", "most"),
    [
        ("/latest/meta-data/hostname", "GET", ASKED_AT_ONCE + 0.5 * ASKED_PER_SECOND),
        (f"{MACHINE}/hostname", "GET", ASKED_AT_ONCE + 2 * ASKED_PER_SECOND),
        (f"{MACHINE}/service-accounts/default/email", "GET", ASKED_AT_ONCE + 2 * ASKED_PER_SECOND),
        (f"{MACHINE}/guest-attributes/mine/token", "GET", ASKED_AT_ONCE + 2 * ASKED_PER_SECOND),
        (f"{MACHINE}/guest-attributes/mine/key", "PUT", MADE_AT_ONCE + 2 * MADE_PER_SECOND),
        (f"{MACHINE}/service-accounts/default/identity?audience=x", "GET", MADE_AT_ONCE + 2 * MADE_PER_SECOND),
        (f"{MACHINE}/service-accounts/default/token", "GET", MADE_AT_ONCE + 2 * MADE_PER_SECOND),
        (f"{MACHINE}/Service-Accounts/default/Token", "GET", MADE_AT_ONCE + 2 * MADE_PER_SECOND),
    ],
)
def test_all_its_questions_are_bounded(monkeypatch: pytest.MonkeyPatch, target: str, method: str, most: float) -> None:
    """However much it asks, as much as all workers together, and what may have waited; less of what the real service makes."""
    monkeypatch.setattr(passing, "time", SimpleNamespace(monotonic=lambda: 0.0))  # all of it at one moment

    async def storm() -> int:
        real = Everything()
        taken = Taken(real, "fallback", ec2_upstream_seconds=0.5, gce_upstream_seconds=2.0)
        for _ in range(int(most) + 5):
            await taken.ask(target, method=method, body=b"x" if method == "PUT" else None)
        return len(real.asked)

    assert run(storm()) == most


def test_the_roots_are_those_of_the_table() -> None:
    """The two trees are looked at by their own tables."""
    assert EC2_ROOT == ("latest",)
    assert GCE_ROOT == ("computeMetadata", "v1")
