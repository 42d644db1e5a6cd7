"""What is not ours comes from the real service unchanged; what must not be seen does not come at all."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest

from agent.core.model import Cloud
from agent.core.view import Absent, Ended, Facts, Origin, Pending
from agent.serve.proxy import LARGE_BYTES, MADE_AT_ONCE_BY_ONE, relisted
from agent.snapshot import ServeSettings
from agent.wire.ec2 import TokenKey
from agent.wire.http import Response
from tests.fakes.clock import START, FakeClock
from tests.fakes.upstreams import CANARY, Answer, Gullible, Scripted, answer
from tests.fakes.view import KEY, FakeView, RunningEndpoint, running_endpoint

GOOD = TokenKey(KEY).make(FakeClock().boottime() + 21600, b"nonce1")
FLAVORED: dict[str, Any] = {"Metadata_Flavor": "Google", "Server": "Metadata Server for VM", "ETag": "411261ca6c9e4b8c"}


def until(look: Callable[[], bool], *, what: str) -> None:
    deadline = time.monotonic() + 10
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@contextmanager
def machine(
    view: FakeView, *, ec2: Scripted | None = None, gce: Scripted | None = None, **settings: Any
) -> Iterator[RunningEndpoint]:
    given = {"ec2_upstream_seconds": 0.2, "gce_upstream_seconds": 0.2, "gce_hold_seconds": 0.02, **settings}
    with running_endpoint(
        view,
        settings=ServeSettings(token_key=KEY, **given),
        clock=FakeClock(),
        ec2=(lambda: ec2) if ec2 else None,
        gce=(lambda: gce) if gce else None,
    ) as server:
        yield server


def get(
    server: RunningEndpoint, target: str, *, method: str = "GET", body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    fields = {"Host": "169.254.169.254", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if target.startswith("/computeMetadata"):
        fields["Metadata-Flavor"] = "Google"
    else:
        fields["X-aws-ec2-metadata-token"] = GOOD
    if body:
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    got = server.send(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
    head, _, rest = got.partition(b"\r\n\r\n")
    first, *more = head.decode("latin-1").split("\r\n")
    return int(first.split(" ")[1]), dict(line.split(": ", 1) for line in more), rest


def aws_bundle() -> FakeView:
    view = FakeView()
    view.live_aws(START)
    return view


def gcp_bundle() -> FakeView:
    view = FakeView()
    view.live_gcp(START)
    return view


class TestEc2:
    @pytest.mark.parametrize(
        ("target", "status", "body", "kind"),
        [
            ("/latest/meta-data/spot/instance-action", 404, "<html>no</html>", "text/html"),
            ("/latest/meta-data/spot/instance-action", 200, '{"action": "terminate"}', "application/json"),
            ("/latest/meta-data/tags/instance/", 200, "Name\nTeam", "text/plain"),
            ("/latest/meta-data/events/maintenance/scheduled", 200, "[]", "text/plain"),
            ("/2021-07-15/meta-data/hostname", 200, "ip-10-0-0-1", "text/plain"),
            ("/latest/meta-data/network/interfaces/macs/", 200, "0a:b1:c2:d3:e4:f5/", "text/plain"),
        ],
    )
    @pytest.mark.parametrize("make", [FakeView, aws_bundle])
    def test_unchanged(self, make: Callable[[], FakeView], target: str, status: int, body: str, kind: str) -> None:
        """Status, type and body are the real service's, with a bundle and without."""
        real = Scripted(
            {target: answer(body, status, Content_Type=kind, Last_Modified="Tue, 24 Nov 2026 11:00:00 GMT")}
        )
        with machine(make(), ec2=real) as server:
            got, headers, content = get(server, target)
        assert (got, content.decode(), headers["Content-Type"]) == (status, body, kind)
        assert headers["Last-Modified"] == "Tue, 24 Nov 2026 11:00:00 GMT"
        assert [asked.path_qs for asked in real.asked] == [target]

    def test_no_header_of_the_client_goes_on(self) -> None:
        """The client's session token, cookies and the like stay with us."""
        real = Scripted({"/latest/meta-data/hostname": answer("h")})
        with machine(aws_bundle(), ec2=real) as server:
            get(server, "/latest/meta-data/hostname", Cookie="x", Authorization="y")
        assert not real.asked[0].headers

    @pytest.mark.parametrize("state", ["bundle", "pending", "ended"])
    @pytest.mark.parametrize(
        "target",
        [
            "/latest/meta-data/iam/security-credentials/machine-role",
            "/latest/meta-data/iam/info",
            "/latest/meta-data/IAM/info",
            "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
            "/latest/meta-data/Identity-Credentials/ec2/info",
            "/1.0/meta-data/iam/security-credentials/machine-role",
            "/latest/user-data",
            "/latest/user-data/",
            "/2021-07-15/user-data",
        ],
    )
    def test_the_machines_secrets_stay(self, state: str, target: str) -> None:
        """While a bundle decides, no path reaches the machine's credentials or its user-data."""
        view = aws_bundle()
        if state == "pending":
            view.set(Cloud.AWS, Pending("waiting"))
        elif state == "ended":
            view.set(Cloud.AWS, Ended("over", passing=False))
        real = Gullible()
        with machine(view, ec2=real, ec2_hold_seconds=0.01) as server:
            got = server.send(
                f"GET {target} HTTP/1.1\r\nHost: localhost\r\nX-aws-ec2-metadata-token: {GOOD}\r\n\r\n".encode()
            )
        assert CANARY.encode() not in got
        assert not real.asked

    def test_fallback_serves_from_memory_and_passes_the_rest(self) -> None:
        """With the machine's own identity its credential comes from memory, its profile's description from the service."""
        view = FakeView()
        view.live_aws(START, name="machine-role", origin=Origin.FALLBACK)
        real = Scripted(
            {
                "/latest/meta-data/iam/info": answer('{"InstanceProfileArn": "arn"}'),
                "/latest/meta-data/": answer("ami-id\niam/\nplacement/"),
            }
        )
        with machine(view, ec2=real) as server:
            assert get(server, "/latest/meta-data/iam/security-credentials/")[2] == b"machine-role"
            assert b"ASIAEXAMPLE000000001" in get(server, "/latest/meta-data/iam/security-credentials/machine-role")[2]
            assert get(server, "/latest/meta-data/iam/info")[2] == b'{"InstanceProfileArn": "arn"}'
            assert get(server, "/latest/meta-data/")[2] == b"ami-id\niam/\nplacement/"
        assert [asked.path_qs for asked in real.asked] == ["/latest/meta-data/iam/info", "/latest/meta-data/"]

    def test_listings_tell_what_there_is(self) -> None:
        """With a bundle ``iam/`` is listed though the machine has no role, and what is hidden is not listed."""
        real = Scripted(
            {
                "/latest/meta-data/": answer("ami-id\nidentity-credentials/\nplacement/"),
                "/latest/": answer("dynamic\nmeta-data\nuser-data"),
            }
        )
        with machine(aws_bundle(), ec2=real) as server:
            assert get(server, "/latest/meta-data/")[2] == b"ami-id\niam/\nplacement/"
            assert get(server, "/latest/")[2] == b"dynamic\nmeta-data"

    def test_user_data_may_be_shown(self) -> None:
        """The operator may let workers read user-data."""
        real = Scripted({"/latest/user-data": answer("#cloud-config")})
        with machine(aws_bundle(), ec2=real, show=("/latest/user-data",)) as server:
            assert get(server, "/latest/user-data")[2] == b"#cloud-config"

    def test_the_operator_may_hide_more(self) -> None:
        """A further prefix of the configuration is hidden with all that is below it."""
        real = Scripted({"/latest/meta-data/tags/instance/Secret": answer("x")})
        with machine(aws_bundle(), ec2=real, hide=("/latest/meta-data/tags/",)) as server:
            assert get(server, "/latest/meta-data/tags/instance/Secret")[0] == 404
        assert not real.asked

    def test_static_leaves_are_asked_for_once(self) -> None:
        """The zone and the like come from memory after the first time, with or without a final slash."""
        real = Scripted({"/latest/meta-data/placement/availability-zone": answer("eu-west-1a")})
        with machine(aws_bundle(), ec2=real) as server:
            for slash in ("", "/", "", "/"):
                target = "/latest/meta-data/placement/availability-zone" + slash
                assert get(server, target)[2] == b"eu-west-1a"
        assert len(real.asked) == 1

    @pytest.mark.parametrize("fault", ["silent", "broken"])
    def test_service_gone(self, fault: str) -> None:
        """A static leaf still comes from memory or from what is known; the rest fails in time, and empty."""
        real = Scripted({"/latest/meta-data/instance-id": answer("i-1")})
        view = aws_bundle()
        view.set_facts(Facts(region="eu-west-1"))
        with machine(view, ec2=real) as server:
            assert get(server, "/latest/meta-data/instance-id")[2] == b"i-1"
            setattr(real, fault, True)
            assert get(server, "/latest/meta-data/instance-id")[2] == b"i-1"
            assert get(server, "/latest/meta-data/placement/region")[2] == b"eu-west-1"
            status, _, body = get(server, "/latest/meta-data/spot/instance-action")
            assert (status, body) == (503, b"")
            # The credential never depended on it.
            assert get(server, "/latest/meta-data/iam/security-credentials/")[2] == b"reader"

    @pytest.mark.parametrize("status", [401, 403, 301])
    def test_answers_about_our_own_session_are_not_for_workers(self, status: int) -> None:
        """401 and 403 of the real service are about the agent's own session, and this dialect has no redirects."""
        real = Scripted({"/latest/meta-data/hostname": answer("", status, Location="http://evil.example/")})
        with machine(aws_bundle(), ec2=real) as server:
            got, headers, _ = get(server, "/latest/meta-data/hostname")
        assert got == 503
        assert "Location" not in headers

    @pytest.mark.parametrize("path", ["iam/info", "identity-credentials/ec2/info"])
    def test_a_bundle_that_comes_meanwhile_is_who_answers(self, path: str) -> None:
        """What the real service says of the machine's identity is nobody's once a bundle decides AWS."""
        view, real, got = FakeView(), Scripted(), list[tuple[int, bytes]]()
        view.live_aws(START, origin=Origin.FALLBACK)
        real.always = answer("arn of the machine's own")
        with machine(
            view, ec2=real, show=("/latest/meta-data/identity-credentials/",), ec2_upstream_seconds=30.0
        ) as server:
            real.gate = server.run(asyncio.Event)
            asking = threading.Thread(target=lambda: got.append(get(server, "/latest/meta-data/" + path)[::2]))
            asking.start()
            until(lambda: real.under_way == 1, what="the service is asked")
            server.run(partial(view.live_aws, START))
            server.run(real.gate.set)
            asking.join(10)
        assert b"machine" not in got[0][1], got

    def test_a_herd_is_bounded(self) -> None:
        """Fifty workers asking at once are at most thirty-two requests to the real service at a time."""
        real = Scripted()
        with machine(aws_bundle(), ec2=real, ec2_upstream_seconds=30.0) as server:
            threads = [
                threading.Thread(target=get, args=(server, f"/latest/meta-data/tags/instance/{i}")) for i in range(50)
            ]
            real.gate = server.run(asyncio.Event)
            for thread in threads:
                thread.start()
            # What is held has been asked of the controller; what is under way it has begun.
            until(lambda: server.endpoint.listener.held == 50 and real.under_way == 32, what="all to be held")
            server.run(real.gate.set)
            for thread in threads:
                thread.join(30)
        assert len(real.asked) == 50
        assert real.most_under_way == 32

    def test_a_header_that_splits_the_answer_is_left_out(self) -> None:
        """A malformed header of the service behind us cannot make ours malformed."""
        broken = answer("h", ETag="x\r\nSet-Cookie: y")
        real = Scripted({"/latest/meta-data/hostname": broken})
        with machine(aws_bundle(), ec2=real) as server:
            got, headers, _ = get(server, "/latest/meta-data/hostname")
        assert got == 200
        assert "ETag" not in headers
        assert "Set-Cookie" not in headers


class TestGce:
    def test_unchanged(self) -> None:
        """Status, type, flavor, ETag and body are the real server's, also of its failures."""
        real = Scripted(
            {
                "/computeMetadata/v1/instance/preempted": answer("FALSE", Content_Type="application/text", **FLAVORED),
                "/computeMetadata/v1/instance/x": answer("<html>404</html>", 404, Content_Type="text/html", **FLAVORED),
            }
        )
        with machine(gcp_bundle(), gce=real) as server:
            status, headers, body = get(server, "/computeMetadata/v1/instance/preempted")
            assert (status, body, headers["ETag"]) == (200, b"FALSE", "411261ca6c9e4b8c")
            assert headers["Content-Type"] == "application/text"
            assert headers["Metadata-Flavor"] == "Google"
            status, headers, body = get(server, "/computeMetadata/v1/instance/x")
            assert (status, body, headers["Content-Type"]) == (404, b"<html>404</html>", "text/html")

    def test_an_encoded_answer_says_so(self) -> None:
        """A body that the real server encoded, asked or not, comes with the field that says how."""
        real = Scripted({"/computeMetadata/v1/instance/x": answer(b"\x1f\x8b...", Content_Encoding="gzip", **FLAVORED)})
        with machine(gcp_bundle(), gce=real) as server:
            _, headers, body = get(server, "/computeMetadata/v1/instance/x")
        assert (headers["Content-Encoding"], body) == ("gzip", b"\x1f\x8b...")

    def test_no_content_has_its_phrase_and_no_length(self) -> None:
        """A 204 goes on under its own name, and without a length, which is forbidden with it."""
        real = Scripted({"/computeMetadata/v1/instance/x": answer(b"", 204, **FLAVORED)})
        with machine(gcp_bundle(), gce=real) as server:
            got = server.send(
                b"GET /computeMetadata/v1/instance/x HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata-Flavor: Google\r\n\r\n"
            )
        assert got.startswith(b"HTTP/1.1 204 No Content\r\n")
        assert b"content-length" not in got.lower()

    def test_query_goes_on_as_it_was_understood(self) -> None:
        """Known parameters go on in one spelling, unknown ones do not."""
        real = Scripted()
        with machine(FakeView(), gce=real) as server:
            get(server, "/computeMetadata/v1/instance/disks/?Recursive=true&recursive=TRUE&alt=JSON&evil=1&recursive=x")
        assert real.asked[0].path_qs == "/computeMetadata/v1/instance/disks/?recursive=true&alt=json"

    def test_credentials_are_ours_and_the_tree_is_the_machines(self) -> None:
        """A recursive listing has the bundle's account in place of the machine's, no machine credential, no bundle."""
        real = Gullible()
        with machine(gcp_bundle(), gce=real) as server:
            tree = json.loads(get(server, "/computeMetadata/v1/?recursive=true")[2])
            instance = json.loads(get(server, "/computeMetadata/v1/instance/?recursive=true&alt=json")[2])
            attributes = json.loads(get(server, "/computeMetadata/v1/instance/attributes/?recursive=true")[2])
            text = get(server, "/computeMetadata/v1/instance/?recursive=true&alt=text")[2].decode()
        email = "reader@example-project.iam.gserviceaccount.com"
        assert set(instance) == {"id", "attributes", "serviceAccounts"}
        assert instance["attributes"] == {"fine": "x"} == attributes
        assert set(instance["serviceAccounts"]) == {"default", email}
        assert tree == {"instance": instance, "project": {"attributes": {}, "projectId": "p"}}
        assert CANARY not in text
        assert f"service-accounts/{email}/email {email}\n" in text
        assert "attributes/fine x\n" in text

    def test_hidden_attributes_are_not_listed(self) -> None:
        """The attribute that carries the bundle is 404, and in no listing of either form."""
        names = ["credential-bundle", "fine", "user-data"]
        real = Scripted(
            {
                "/computeMetadata/v1/instance/attributes/": answer("\n".join(names) + "\n", **FLAVORED),
                "/computeMetadata/v1/instance/attributes/?alt=json": answer(
                    json.dumps(names), Content_Type="application/json", **FLAVORED
                ),
            }
        )
        with machine(FakeView(), gce=real) as server:
            assert get(server, "/computeMetadata/v1/instance/attributes/credential-bundle")[0] == 404
            assert get(server, "/computeMetadata/v1/instance/attributes/")[2] == b"fine\n"
            assert json.loads(get(server, "/computeMetadata/v1/instance/attributes/?alt=json")[2]) == ["fine"]

    @pytest.mark.parametrize("state", ["bundle", "pending", "ended"])
    @pytest.mark.parametrize(
        "path",
        [
            "service-accounts/machine@example.com/token",
            "service-accounts/machine@example.com/identity?audience=a",
            "Service-Accounts/default/token",
            "credentials/mds-client-certificate",
            "gce-workload-certificates/workload-identities",
            "attributes/Credential-Bundle",
        ],
    )
    def test_the_machines_secrets_stay(self, state: str, path: str) -> None:
        """While a bundle decides, no path reaches the machine's tokens and keys."""
        view = gcp_bundle()
        if state == "pending":
            view.set(Cloud.GCP, Pending("waiting"))
        elif state == "ended":
            view.set(Cloud.GCP, Ended("over", passing=False))
        real = Gullible()
        with machine(view, gce=real) as server:
            _, _, body = get(server, "/computeMetadata/v1/instance/" + path)
        assert CANARY.encode() not in body
        assert not real.asked

    def test_fallback(self) -> None:
        """With the machine's own identity the token comes from memory, and everything else from the server."""
        view = FakeView()
        view.live_gcp(START, origin=Origin.FALLBACK)
        accounts = "/computeMetadata/v1/instance/service-accounts/"
        real = Scripted(
            {
                accounts: answer("a@b/\ndefault/\n", **FLAVORED),
                accounts + "second@example.com/token": answer('{"access_token":"second"}', **FLAVORED),
                accounts + "default/identity?format=full&audience=a": answer("e30.e30.e30", **FLAVORED),
            }
        )
        with machine(view, gce=real) as server:
            assert b"ya29.example-1" in get(server, accounts + "default/token")[2]
            assert get(server, accounts)[2] == b"a@b/\ndefault/\n"
            assert get(server, accounts + "second@example.com/token")[2] == b'{"access_token":"second"}'
            assert get(server, accounts + "default/identity?format=full&audience=a")[2] == b"e30.e30.e30"
        assert accounts + "default/token" not in [asked.path_qs for asked in real.asked]

    def test_token_is_never_not_found(self) -> None:
        """A GCE machine without a service account says 403 for a token, where the real server says 404."""
        view = FakeView()
        view.set(Cloud.GCP, Absent("no service account"))
        with machine(view, gce=Scripted()) as server:
            status, headers, body = get(server, "/computeMetadata/v1/instance/service-accounts/default/token")
        assert status == 403
        assert headers["Metadata-Flavor"] == "Google"
        assert b"no service account" in body

    def test_guest_attributes(self) -> None:
        """A worker's PUT of a guest attribute reaches the server with its body, and its answer comes back."""
        real = Scripted({"/computeMetadata/v1/instance/guest-attributes/ns/key": answer("", 200, **FLAVORED)})
        with machine(gcp_bundle(), gce=real) as server:
            status, _, _ = get(
                server, "/computeMetadata/v1/instance/guest-attributes/ns/key", method="PUT", body=b"value"
            )
        assert status == 200
        assert [(asked.method, asked.body) for asked in real.asked] == [("PUT", b"value")]

    def test_what_the_server_makes_leaves_it_time_for_what_it_tells(self) -> None:
        """Of identity tokens and writes four are under way at once, however spelt, and the machine's tags pass them by."""
        accounts, guest = (
            "/computeMetadata/v1/instance/Service-Accounts",
            "/computeMetadata/v1/instance/guest-attributes",
        )
        tags = "/computeMetadata/v1/instance/tags"
        real = Scripted({tags: answer("[]", 200, **FLAVORED)})
        with machine(FakeView(), gce=real, gce_upstream_seconds=5.0) as server:
            wanted = [(f"{accounts}/default/identity?audience=https://a{n}.example", "GET") for n in range(8)]
            wanted += [(f"{guest}/ns/key{n}", "PUT") for n in range(8)]
            threads = [
                threading.Thread(target=get, args=(server, path), kwargs={"method": how}) for path, how in wanted
            ]
            real.gate = server.run(asyncio.Event)
            for thread in threads:
                thread.start()
            until(lambda: server.endpoint.listener.held == len(wanted) and real.under_way >= 4, what="all wait")
            assert real.under_way == 4
            passing = threading.Thread(target=get, args=(server, tags))
            passing.start()
            until(lambda: real.asked[-1].path_qs == tags, what="the tags are asked for")
            server.run(real.gate.set)
            for thread in (*threads, passing):
                thread.join(10)
        assert len(real.asked) == len(wanted) + 1

    def test_one_worker_has_only_so_many_made(self) -> None:
        """What one asks for beyond its share is not asked of the server at all: 503, which clients of this dialect try again."""
        path = "/computeMetadata/v1/instance/service-accounts/default/identity?audience=https://a{}.example"
        real = Scripted()
        with machine(FakeView(), gce=real) as server:
            statuses = [get(server, path.format(n))[0] for n in range(MADE_AT_ONCE_BY_ONE + 60)]
            assert 503 in statuses
            assert statuses[:MADE_AT_ONCE_BY_ONE] == [404] * MADE_AT_ONCE_BY_ONE
            assert get(server, "/computeMetadata/v1/instance/tags")[0] == 404  # by the server
        assert len(real.asked) < MADE_AT_ONCE_BY_ONE + 60

    @pytest.mark.parametrize(
        "path",
        [
            "service-accounts/default/identity?audience=https://a.example",
            "service-accounts/other@machine.example/token?wait_for_change=true",
            "Service-Accounts/default/token",
        ],
    )
    def test_a_bundle_that_comes_meanwhile_is_who_answers(self, path: str) -> None:
        """What the real server makes while a bundle decides Google is the machine's, and is nobody's any more."""
        path = "/computeMetadata/v1/instance/" + path
        view, real, got = FakeView(), Scripted(), list[tuple[int, bytes]]()
        real.always = answer("the machine's own", **FLAVORED)
        with machine(view, gce=real) as server:
            real.gate = server.run(asyncio.Event)
            asking = threading.Thread(target=lambda: got.append(get(server, path)[::2]))
            asking.start()
            until(lambda: real.under_way == 1, what="the server is asked")
            server.run(partial(view.live_gcp, START))
            server.run(real.gate.set)
            asking.join(10)
        assert got[0][0] == 404, got
        assert b"machine" not in got[0][1]

    def test_long_poll_waits_for_the_server(self) -> None:
        """``wait_for_change`` goes on with its parameters, and is not cut off by the ordinary deadline."""
        target = "/computeMetadata/v1/instance/maintenance-event?wait_for_change=true&timeout_sec=30&last_etag=0"
        real = Scripted({target: answer("NONE", **FLAVORED)})
        with machine(gcp_bundle(), gce=real) as server:
            status, _, body = get(server, target.replace("timeout_sec=30&last_etag=0", "last_etag=0&timeout_sec=30"))
        assert (status, body) == (200, b"NONE")
        timeout = real.asked[0].timeout_seconds
        assert timeout is not None
        assert timeout > 30

    def test_a_large_directory_is_shown_anew_when_time_changes_it(self) -> None:
        """What was made of a large answer is kept for whoever asks next, and not beyond the end of what is served."""
        tree = json.dumps({"zone": "z" * (LARGE_BYTES + 1)})
        real = Scripted()
        real.always = answer(tree, **FLAVORED | {"Content_Type": "application/json"})
        clock, target = FakeClock(), "/computeMetadata/v1/instance/?recursive=true"
        with running_endpoint(gcp_bundle(), clock=clock, gce=lambda: real) as server:
            for _ in range(2):
                assert "default" in json.loads(get(server, target)[2])["serviceAccounts"]
            asyncio.run_coroutine_threadsafe(clock.advance(86400.0), server.loop).result(10)
            assert json.loads(get(server, target)[2])["serviceAccounts"] == {}

    def test_who_waits_keeps_no_answer(self) -> None:
        """While many wait for a change of a large directory, nothing is kept of what each of them saw before."""

        class Large(Scripted):
            async def request(self, method: str, path_qs: str, *args: Any, **kwargs: Any) -> Answer:
                await super().request(method, path_qs, *args, **kwargs)
                if "wait_for_change" in path_qs:
                    await gate.wait()
                tree = json.dumps({"zone": "z" * size}).encode()
                return answer(tree, **FLAVORED | {"Content_Type": "application/json"})

        size, polls = 900_000, 20
        real = Large()
        target = "/computeMetadata/v1/instance/?recursive=true&wait_for_change=true"
        request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nMetadata-Flavor: Google\r\n\r\n".encode()
        with machine(gcp_bundle(), gce=real, gce_upstream_seconds=60.0) as server, ExitStack() as sockets:
            gate = server.run(asyncio.Event)
            tracemalloc.start()
            sockets.callback(tracemalloc.stop)
            for number in range(polls):
                sock = sockets.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
                sock.sendall(request)
                # One after the other: who looks at the same time sees one answer.
                until(lambda: len(real.asked) == 2 * (number + 1), what="it waits")  # noqa: B023 - called at once
            kept, _ = tracemalloc.get_traced_memory()
            assert kept < polls * size / 2
            server.run(gate.set)

    def test_redirect_leads_back_to_us(self) -> None:
        """A redirect of the real server names its own address; ours names the one that was asked."""
        real = Scripted(
            {
                "/computeMetadata/v1/instance/disks?alt=text": answer(
                    "", 301, Location="http://169.254.169.254/computeMetadata/v1/instance/disks/", **FLAVORED
                ),
                "/computeMetadata/v1/instance/odd/": answer("", 302, Location="http://evil.example/", **FLAVORED),
            }
        )
        with machine(gcp_bundle(), gce=real) as server:
            status, headers, _ = get(server, "/computeMetadata/v1/instance/disks?alt=text", Host="127.0.0.1:16925")
            assert (status, headers["Location"]) == (
                301,
                "http://127.0.0.1:16925/computeMetadata/v1/instance/disks/?alt=text",
            )
            status, headers, _ = get(server, "/computeMetadata/v1/instance/odd/")
            assert status == 404
            assert "Location" not in headers

    @pytest.mark.parametrize("fault", ["silent", "broken"])
    def test_server_gone(self, fault: str) -> None:
        """Static leaves come from memory or from what is known, tokens as ever; the rest is 503 with its cause."""
        view = gcp_bundle()
        view.set_facts(Facts(project_id="known-project"))
        real = Scripted({"/computeMetadata/v1/instance/zone": answer("projects/1/zones/z", **FLAVORED)})
        with machine(view, gce=real) as server:
            assert get(server, "/computeMetadata/v1/instance/zone")[2] == b"projects/1/zones/z"
            setattr(real, fault, True)
            assert get(server, "/computeMetadata/v1/instance/zone")[2] == b"projects/1/zones/z"
            assert get(server, "/computeMetadata/v1/project/project-id")[2] == b"known-project"
            assert b"ya29" in get(server, "/computeMetadata/v1/instance/service-accounts/default/token")[2]
            status, headers, body = get(server, "/computeMetadata/v1/instance/preempted")
        assert status == 503
        assert headers["Metadata-Flavor"] == "Google"
        assert b"does not answer" in body

    @pytest.mark.parametrize("fault", ["silent", "broken"])
    def test_still_a_gce_machine_when_the_server_is_gone(self, fault: str) -> None:
        """Node's probe, ``instance`` without a slash, is led to the listing that we know, and finds it."""
        real = Scripted()
        setattr(real, fault, True)
        with machine(gcp_bundle(), gce=real) as server:
            status, headers, _ = get(server, "/computeMetadata/v1/instance")
            assert status == 301
            assert headers["Metadata-Flavor"] == "Google"
            assert headers["Location"] == "http://169.254.169.254/computeMetadata/v1/instance/"
            status, headers, body = get(server, "/computeMetadata/v1/instance/")
        assert status == 200
        assert headers["Metadata-Flavor"] == "Google"
        assert b"service-accounts/" in body

    def test_garbage_from_the_server(self) -> None:
        """A recursive answer that is not JSON is not passed on, since nobody could look into it."""
        real = Scripted({"/computeMetadata/v1/instance/?recursive=true&alt=json": answer(CANARY, **FLAVORED)})
        with machine(gcp_bundle(), gce=real) as server:
            status, _, body = get(server, "/computeMetadata/v1/instance/?recursive=true")
        assert status == 503
        assert CANARY.encode() not in body


class TestBothClouds:
    def test_aws_bundle_on_a_gce_machine(self) -> None:
        """A GCE worker with an AWS bundle serves the bundle's AWS and the machine's Google identity."""
        view = aws_bundle()
        view.live_gcp(START, origin=Origin.FALLBACK)
        with machine(view, gce=Scripted()) as server:
            assert get(server, "/latest/meta-data/iam/security-credentials/")[2] == b"reader"
            assert b"ya29" in get(server, "/computeMetadata/v1/instance/service-accounts/default/token")[2]

    def test_google_bundle_on_an_ec2_machine(self) -> None:
        """An EC2 worker with a Google bundle serves the bundle's Google and the machine's AWS identity."""
        view = gcp_bundle()
        view.live_aws(START, name="machine-role", origin=Origin.FALLBACK)
        real = Scripted({"/latest/meta-data/hostname": answer("h")})
        with machine(view, ec2=real) as server:
            assert get(server, "/latest/meta-data/iam/security-credentials/")[2] == b"machine-role"
            assert get(server, "/latest/meta-data/hostname")[2] == b"h"
            assert b"ya29" in get(server, "/computeMetadata/v1/instance/service-accounts/default/token")[2]


def test_relisted_keeps_what_is_not_changed() -> None:
    """A listing that needs no change is the very same answer."""
    same = Response(200, (), b"a\nb/")
    assert relisted(same, "c".__eq__) is same
    assert relisted(same, "c".__eq__, add=("b/",)) is same
    assert relisted(same, "b".__eq__).body == b"a"
    assert isinstance(answer("x"), Answer)
