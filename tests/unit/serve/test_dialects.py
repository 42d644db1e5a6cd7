"""What each dialect answers once a wait has ended, and of what it holds in memory only in the form that was asked for."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import pytest

from agent.core.model import Cloud
from agent.core.view import Absent, Ended, Facts, Origin, Pending
from tests.fakes.clock import START
from tests.fakes.upstreams import Scripted, answer
from tests.fakes.view import CONTAINER_TOKEN, FakeView, RunningEndpoint
from tests.unit.serve.test_pass_through import FLAVORED, get, machine, until

IAM = "/latest/meta-data/iam/"
ACCOUNT = "/computeMetadata/v1/instance/service-accounts/default/"
ZONE = "/computeMetadata/v1/instance/zone"


def bundle(view: FakeView) -> None:
    view.live_aws(START)
    view.live_gcp(START)


def machines_own(view: FakeView) -> None:
    view.live_aws(START, name="machine-role", origin=Origin.FALLBACK)
    view.live_gcp(START, origin=Origin.FALLBACK)


def over(view: FakeView) -> None:
    for cloud in Cloud:
        view.set(cloud, Ended("withdrawn", passing=False))


@pytest.mark.parametrize(
    ("path", "then", "status", "holds", "is_asked"),
    [
        (f"{IAM}security-credentials/", bundle, 200, "reader", False),
        (f"{IAM}security-credentials/reader", bundle, 200, "ASIAEXAMPLE000000001", False),
        (f"{IAM}security-credentials/machine-role", machines_own, 200, "ASIAEXAMPLE000000001", False),
        (f"{IAM}security-credentials/", over, 503, "", False),
        (f"{IAM}info", bundle, 200, "instance-profile/reader", False),
        (f"{IAM}info", machines_own, 503, "", False),  # two waits, one after the other, are longer than Go's patience
        (f"{IAM}info", over, 503, "", False),
        ("/v1/credentials", bundle, 200, "ASIAEXAMPLE000000001", False),
        ("/v1/credentials", over, 503, "CredentialsUnavailable", False),
        (f"{ACCOUNT}token", bundle, 200, "ya29.example-1", False),
        (f"{ACCOUNT}token", machines_own, 200, "ya29.example-1", False),
        (f"{ACCOUNT}token", over, 403, "withdrawn", False),
        (f"{ACCOUNT}email", bundle, 200, "reader@example-project", False),
        (f"{ACCOUNT}email", machines_own, 200, "the real service's", True),
    ],
)
def test_who_waited_is_answered_with_what_came(
    path: str, then: Callable[[FakeView], None], status: int, holds: str, is_asked: bool
) -> None:
    """A bundle's identity, the machine's own with what the real service says of it, or the end: as who comes now is."""
    view, got = FakeView(), list[tuple[int, bytes]]()
    for cloud in Cloud:
        view.set(cloud, Pending("waiting"))
    real = Scripted()
    real.always = answer("the real service's", **FLAVORED)
    holds_for: dict[str, Any] = {"ec2_hold_seconds": 60.0, "container_hold_seconds": 60.0, "gce_hold_seconds": 60.0}
    with machine(view, ec2=real, gce=real, **holds_for) as server:
        ask = partial(get, server, path, Authorization=CONTAINER_TOKEN)
        asking = threading.Thread(target=lambda: got.append(ask()[::2]))
        asking.start()
        until(lambda: server.endpoint.listener.held == 1, what="it waits")
        server.run(partial(then, view))
        asking.join(60)
    assert [(one, holds.encode() in body) for one, body in got] == [(status, True)]
    assert bool(real.asked) is is_asked


@pytest.mark.parametrize("query", ["?alt=json", "?wait_for_change=true&last_etag=0"])
def test_a_leaf_that_does_not_change_is_asked_for_in_another_form(query: str) -> None:
    """What is in memory is its plain form: as JSON, or by a wait, it is another answer, and the real server's."""
    real = Scripted({ZONE: answer("projects/1/zones/z", **FLAVORED)})
    real.always = answer('"another form"', **FLAVORED)
    with machine(FakeView(), gce=real) as server:
        for _ in range(2):
            assert get(server, ZONE)[2] == b"projects/1/zones/z"
            assert get(server, ZONE + query)[2] == b'"another form"'
    assert len(real.asked) == 3


@pytest.mark.parametrize("path", [f"{IAM}security-credentials/", f"{IAM}security-credentials/reader", f"{IAM}info"])
def test_who_shows_no_token_is_told_no_seconds(path: str) -> None:
    """Where version 1 is allowed: no answer speaks of the time that is left of a token, also after a wait."""
    view, got = FakeView(), list[bytes]()
    view.set(Cloud.AWS, Pending("waiting"))
    with machine(view, imdsv1=True, ec2_hold_seconds=60.0) as server:
        plain = f"GET {path} HTTP/1.1\r\nHost: metadata\r\n\r\n".encode()
        asking = threading.Thread(target=lambda: got.append(server.send(plain)))
        asking.start()
        until(lambda: server.endpoint.listener.held == 1, what="it waits")
        server.run(partial(view.live_aws, START))
        asking.join(60)
        got.append(server.send(plain))
    assert [(one.startswith(b"HTTP/1.1 200 "), b"token-ttl" in one.lower()) for one in got] == [(True, False)] * 2


def test_a_wait_ends_for_all_who_wait() -> None:
    """One change is told to each of them, in whatever dialect it asked."""
    view, got = FakeView(), list[int]()
    for cloud in Cloud:
        view.set(cloud, Pending("waiting"))
    holds_for: dict[str, Any] = {"ec2_hold_seconds": 60.0, "container_hold_seconds": 60.0, "gce_hold_seconds": 60.0}
    paths = (f"{IAM}security-credentials/", "/v1/credentials", f"{ACCOUNT}token", f"{ACCOUNT}email")
    with machine(view, **holds_for) as server:
        threads = [
            threading.Thread(target=lambda path=path: got.append(get(server, path, Authorization=CONTAINER_TOKEN)[0]))
            for path in paths
        ]
        for one in threads:
            one.start()
        until(lambda: server.endpoint.listener.held == len(paths), what="all wait")
        server.run(view.touch)  # something changed, but not this
        assert not got
        server.run(partial(bundle, view))
        for one in threads:
            one.join(60)
    assert got == [200] * len(paths)


@pytest.mark.parametrize("instance_id", ["i-0abc", "", "7001 "])
def test_an_id_that_google_could_not_have_is_none(instance_id: str) -> None:
    """A worker of another cloud with a Google bundle: where GCE has a number nothing else is shown, and nothing fails."""
    view = FakeView()
    view.live_gcp(START)
    view.set_facts(Facts(instance_id=instance_id, zone="europe-west1-b"))
    with machine(view) as server:
        listed = get(server, "/computeMetadata/v1/instance/")[2].decode().split()
        assert listed == ["attributes/", "region", "service-accounts/", "zone"]
        assert get(server, "/computeMetadata/v1/instance/id")[0] == 404
        assert get(server, "/computeMetadata/v1/instance/region")[2] == b"projects/0/regions/europe-west1"


def test_names_that_people_gave_are_spelt_as_they_gave_them() -> None:
    """In the text of a tree directories have the spelling of paths, and attributes their own."""
    attributes = '{"myName": "a", "other-name": "b", "deep": {"innerName": "c"}}'
    tree = f'{{"attributes": {attributes}, "machineType": "m", "disks": [{{"deviceName": "d"}}]}}'
    path = "/computeMetadata/v1/instance/"
    asked = "?recursive=true&alt=json"
    real = Scripted(
        {
            f"{path}attributes/{asked}": answer(attributes, **{**FLAVORED, "Content_Type": "application/json"}),
            f"{path}{asked}": answer(tree, **{**FLAVORED, "Content_Type": "application/json"}),
        }
    )
    with machine(FakeView(), gce=real) as server:
        below = get(server, f"{path}attributes/?recursive=true&alt=text")[2].decode().splitlines()
        assert below[:2] == ["myName a", "other-name b"]
        above = get(server, f"{path}?recursive=true&alt=text")[2].decode().splitlines()
        assert above[:2] == ["attributes/myName a", "attributes/other-name b"]
        assert above[-2:] == ["machine-type m", "disks/0/device-name d"]


def reachable(root: object, text: str) -> bool:
    """Whether anything that ``root`` holds, however deep, holds this text."""
    seen, waiting = set[int](), [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, bytes | bytearray | str):
            if text in (one if isinstance(one, str) else one.decode("latin-1")):
                return True
        elif isinstance(one, FunctionType):  # its module holds all that there is
            waiting.append((one.__closure__, one.__defaults__, one.__kwdefaults__))
        elif not isinstance(one, type | ModuleType):
            waiting.extend(gc.get_referents(one))
    return False


def test_nothing_is_kept_of_what_was_served() -> None:
    """Once something else is served no document, token or copy of one is left in what answers workers."""
    secrets = ("secret/1+abcdefghijklmnopqrstuvwxyz", "ya29.example-1")
    view = FakeView()
    paths = (f"{IAM}security-credentials/reader", "/v1/credentials", f"{ACCOUNT}token", f"{ACCOUNT}email")

    def held(server: RunningEndpoint) -> list[bool]:
        parts = server.endpoint, server.endpoint.listener
        return [any(reachable(part, secret) for part in parts) for secret in secrets]

    for served in (bundle, machines_own):
        with machine(view) as server:
            server.run(partial(served, view))
            role = "reader" if served is bundle else "machine-role"
            for _ in range(3):  # what comes again is remembered
                for path in (*paths, f"{IAM}security-credentials/{role}"):
                    get(server, path, Authorization=CONTAINER_TOKEN)
            assert server.run(partial(held, server)) == [True, True]
            server.run(partial(over, view))
            until(lambda server=server: server.endpoint.listener.connections == 0, what="all have left")  # type: ignore[misc]
            assert server.run(partial(held, server)) == [False, False]


@pytest.mark.parametrize("path", ["instance-id/i", "instance-id/i-0abc", "placement/region/eu", "instance-id/a/b"])
def test_below_a_leaf_there_is_nothing(path: str) -> None:
    """Of what is known without the real service: a value is no directory of its letters."""
    view = FakeView()
    view.live_aws(START)
    view.set_facts(Facts(region="eu-west-1", instance_id="i-0abc"))
    with machine(view) as server:
        assert get(server, f"/latest/meta-data/{path}")[0] == 404
        assert get(server, "/latest/meta-data/instance-id")[2] == b"i-0abc"


@pytest.mark.parametrize(
    ("facts", "region", "zone"),
    [
        (Facts(availability_zone="eu-west-1b"), "eu-west-1", "eu-west-1b"),
        (Facts(availability_zone="us-west-2-lax-1a"), "us-west-2", "us-west-2-lax-1a"),
        (Facts(availability_zone="rack12c"), "rack12", "rack12c"),
        (Facts(region="eu-west-1"), "eu-west-1", "eu-west-1a"),
        (Facts(region="eu-west-1", availability_zone="eu-west-1b"), "eu-west-1", "eu-west-1b"),
        (Facts(region="eu-west-1", availability_zone="us-east-1b"), "eu-west-1", "eu-west-1a"),
        (Facts(instance_id="i-0abc"), None, None),
    ],
)
def test_a_zone_and_its_region_fit_each_other(facts: Facts, region: str | None, zone: str | None) -> None:
    """Clients cut the last letter off a zone to find the region; a cloud of its own names may have another form."""
    view = FakeView()
    view.live_aws(START)
    view.set_facts(facts)
    with machine(view) as server:
        said = [get(server, f"/latest/meta-data/placement/{one}")[::2] for one in ("region", "availability-zone")]
    told = [body.decode() if status == 200 else status for status, body in said]
    assert told == [region or 404, zone or 404]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("instance/service-accounts/default/token", 403),
        ("instance/service-accounts/someone@example.com/token", 403),
        ("instance/service-accounts/default/email", 404),
        ("instance/service-accounts/token", 404),
        ("instance/attributes/mine/token", 404),
        ("project/attributes/mine/token", 404),
        ("instance/guest-attributes/mine/token", 404),
        ("instance/disks/0/token", 404),
    ],
)
def test_only_an_account_s_token_is_forbidden_where_there_is_none(path: str, status: int) -> None:
    """What else the real server does not have is its to say, whatever the name: it is no word of an identity."""
    view = FakeView()
    view.set(Cloud.GCP, Absent("no service account"))
    with machine(view, gce=Scripted()) as server:
        got, _, body = get(server, f"/computeMetadata/v1/{path}")
    assert got == status
    assert (b"service account" in body) is (status == 403)


@pytest.mark.parametrize(
    ("path", "status", "told"), [("disks", 301, 301), ("disks/", 301, 404), ("disks", 302, 404), ("disks/", 307, 404)]
)
def test_nobody_is_led_elsewhere_by_the_real_server(path: str, status: int, told: int) -> None:
    """To a directory's own name with its slash, as we would say it ourselves; whatever else it says leads nowhere."""
    target = f"/computeMetadata/v1/instance/{path}"
    real = Scripted({target: answer("go there", status, Location="http://192.0.2.1/elsewhere", **FLAVORED)})
    with machine(FakeView(), gce=real) as server:
        got, headers, body = get(server, target)
    assert (got, [one.path_qs for one in real.asked]) == (told, [target])
    assert b"192.0.2.1" not in body + str(headers).encode()
    assert ("Location" in headers) is (told == 301)
