"""What identifies the machine, or what it was set up with, is not the workers': by no spelling, no listing, no tag."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.model import Cloud
from agent.core.view import Absent, Origin
from agent.serve.hiding import GCE_ROOT, Hiding
from agent.snapshot import ServeSettings
from agent.wire import gce, names
from agent.wire.ec2 import TokenKey
from tests.fakes.clock import START, FakeClock
from tests.fakes.upstreams import CANARY, Gullible, Scripted, answer
from tests.fakes.view import KEY, FakeView, RunningEndpoint, running_endpoint

T = TypeVar("T")

GOOD = TokenKey(KEY).make(FakeClock().boottime() + 21600, b"nonce1")
GROUPS = tomllib.loads((Path(__file__).parents[2] / "vectors/serve/hidden.toml").read_text())["group"]
ROWS = [(path, tuple(seen)) for group in GROUPS for path, *seen in group["rows"]]
SEEN = "what the real service says"


class Everything(Scripted):
    """Has every path."""

    async def request(self, method: str, path_qs: str, *args: Any, **kwargs: Any) -> Any:
        await super().request(method, path_qs, *args, **kwargs)
        return answer(SEEN, Metadata_Flavor="Google")


class Changing(Scripted):
    """A directory of attributes that changes, with the real server's waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = {"fine": "1", "kube-env": "a"}
        self.changed = asyncio.Event()
        self.someone_waits = threading.Event()

    def change(self, name: str, value: str) -> None:
        self.tree[name] = value
        self.changed.set()

    async def request(self, method: str, path_qs: str, *args: Any, **kwargs: Any) -> Any:
        if "wait_for_change" in path_qs:
            assert f"last_etag={gce.etag(json.dumps(self.tree).encode())}" in path_qs
            self.changed.clear()
            self.someone_waits.set()
            await self.changed.wait()
        body = json.dumps(self.tree)
        return answer(body, Content_Type="application/json", Metadata_Flavor="Google", ETag=gce.etag(body.encode()))


def view_of(state: str) -> FakeView:
    view = FakeView()
    origin = Origin.BUNDLE if state == "bundle" else Origin.FALLBACK
    view.live_aws(START, origin=origin)
    view.live_gcp(START, origin=origin)
    return view


@contextmanager
def machine(state: str, real: Any, **given: Any) -> Iterator[RunningEndpoint]:
    view = view_of(state)
    view.expects_bundle = state != "alone"
    with running_endpoint(
        view,
        settings=ServeSettings(token_key=KEY, **given),
        clock=FakeClock(),
        ec2=lambda: real,
        gce=lambda: real,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def machines() -> Iterator[dict[str, tuple[RunningEndpoint, Everything]]]:
    with ExitStack() as stack:
        found = {}
        for state in ("bundle", "fallback", "alone"):
            real = Everything()
            found[state] = (stack.enter_context(machine(state, real)), real)
        yield found


def ask(
    server: RunningEndpoint, target: str, *, method: str = "GET", body: bytes = b"", **more: str
) -> tuple[int, dict[str, str], bytes]:
    fields = {"Host": "169.254.169.254", "Metadata-Flavor": "Google", "X-aws-ec2-metadata-token": GOOD, **more}
    if body or method == "PUT":
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    head, _, rest = server.send(("\r\n".join(lines) + "\r\n\r\n").encode() + body).partition(b"\r\n\r\n")
    first, *others = head.decode("latin-1").split("\r\n")
    return int(first.split(" ")[1]), dict(line.split(": ", 1) for line in others), rest


@pytest.mark.parametrize(("path", "seen_by"), ROWS)
def test_row(
    machines: dict[str, tuple[RunningEndpoint, Everything]], path: str, seen_by: tuple[bool, bool, bool]
) -> None:
    """Each path is seen by those of the row, and by nobody else, and for the others the real service is not asked."""
    for state, seen in zip(("bundle", "fallback", "alone"), seen_by, strict=True):
        server, real = machines[state]
        before = len(real.asked)
        status, _, body = ask(server, path)
        assert (SEEN.encode() in body) is seen, (state, status, body)
        assert (len(real.asked) > before) is seen
        if not seen and cloud_path(path):
            assert status == 404
            assert ask(server, path, method="HEAD")[0] == 404


def cloud_path(path: str) -> bool:
    return "/service-accounts/" not in path  # there the dialect has its own answers


#: Hidden from a worker of a bundle, in one plain spelling.
PLAIN = [path for path, (bundle, *_) in ROWS if not bundle and "?" not in path and "%" not in path]


@st.composite
def spellings(draw: st.DrawFn) -> str:
    """A hidden path as somebody might write it who knows how servers read paths."""
    segments = draw(st.sampled_from(PLAIN)).strip("/").split("/")
    if segments[0] == "latest":
        segments[0] = draw(st.sampled_from(["latest", "1.0", "2016-09-02", "2024-04-11", "LATEST", "2009-04-04"]))
    written = []
    for segment in segments:
        letters = []
        for letter in segment:
            shown = draw(st.sampled_from([letter, letter.upper(), letter.lower()]))
            how = draw(st.integers(0, 11))
            letters.append(f"%{ord(shown):02x}" if how == 0 else f"%25{ord(shown):02X}" if how == 1 else quote(shown))
        written.append("".join(letters))
    between = st.sampled_from(["/", "/", "/", "//", "/./", "/x/../", "%2f", "/%2e/", "/.//", "\\", "/;a=b/"])
    path = "/" + written[0] + "".join(draw(between) + segment for segment in written[1:])
    return path + draw(
        st.sampled_from(["", "/", "//", "/.", ";", "%20", "%00", ".", "?", "?recursive=true", "?alt=json", "%09", "#"])
    )


@given(path=spellings())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_spelling_of_a_hidden_path_is_answered(gullible: RunningEndpoint, path: str) -> None:
    """However a hidden path is written, a service that reads paths in every way gives nothing away through us."""
    assert CANARY.encode() not in ask(gullible, path)[2]


@pytest.fixture(scope="module")
def gullible() -> Iterator[RunningEndpoint]:
    with machine("bundle", Gullible()) as server:
        yield server


class TestListings:
    @pytest.mark.parametrize(
        ("path", "real", "shown"),
        [
            ("/latest/dynamic/instance-identity/", "document\npkcs7\nrsa2048\nsignature", "document"),
            ("/2016-09-02/dynamic/instance-identity", "document\ndsa2048\npkcs7", "document"),
            ("/latest/meta-data/", "ami-id\niam/\nmanaged-ssh-keys/\npublic-keys/\ntags/", "ami-id\niam/\ntags/"),
            ("/latest/meta-data/tags/instance", "ApiToken\nTeam", "Team"),
            ("/computeMetadata/v1/instance/", "attributes/\ncredentials/\nid\n", "attributes/\nid\n"),
            ("/computeMetadata/v1/instance/attributes/", "fine\nkube-env\nsshKeys\n", "fine\n"),
            ("/computeMetadata/v1/project/attributes/", "fine\nssh-keys\n", "fine\n"),
        ],
    )
    def test_what_is_hidden_is_not_listed(self, path: str, real: str, shown: str) -> None:
        """A directory lists what can be read, and nothing beside it."""
        with machine("bundle", Scripted({path: answer(real, Metadata_Flavor="Google")})) as server:
            assert ask(server, path)[2].decode() == shown


PUBLISHED = {
    "/latest": """ami-id ami-launch-index ami-manifest-path ancestor-ami-ids autoscaling/target-lifecycle-state
        block-device-mapping/ebs1 elastic-inference/associations/eia events/maintenance/history
        events/recommendations/rebalance hostname instance-action instance-id instance-life-cycle instance-type ipv6
        kernel-id local-hostname local-ipv4 mac metrics/vhostmd placement/availability-zone-id placement/group-name
        placement/partition-number product-codes public-hostname public-ipv4 ramdisk-id reservation-id security-groups
        services/domain services/partition spot/termination-time system tags/instance/Name
        network/interfaces/macs/06:00/security-group-ids network/interfaces/macs/06:00/ipv4-associations/1.2.3.4""",
    "/computeMetadata/v1/instance": """cpu-platform description disks/0/device-name guest-attributes/x/y hostname id
        image licenses/0/id machine-type maintenance-event name network-interfaces/0/access-configs/0/external-ip
        network-interfaces/0/forwarded-ips/0 network-interfaces/0/target-instance-ips physical-host-topology preempted
        remaining-cpu-time scheduling/on-host-maintenance scheduling/automatic-restart shutdown-details tags
        upcoming-maintenance/can-reschedule virtual-clock/drift-token zone""",
    "/computeMetadata/v1": """project/project-id project/numeric-project-id universe/universe-domain oslogin/users
        project/attributes/google-compute-default-zone instance/attributes/google-logging-enabled""",
}
"""What the providers' pages list, without what is a credential or identifies the machine."""


@pytest.mark.parametrize("root", PUBLISHED)
def test_no_word_for_a_secret_hides_what_the_providers_publish(
    machines: dict[str, tuple[RunningEndpoint, Everything]], root: str
) -> None:
    """The words that hide names which anybody may choose hide none of the providers' own."""
    server, _ = machines["bundle"]
    for name in PUBLISHED[root].split():
        path = f"{root}/meta-data/{name}" if root == "/latest" else f"{root}/{name}"
        assert ask(server, path)[0] == 200, path


def test_who_is_refused_hears_how_an_operator_shows_it(
    machines: dict[str, tuple[RunningEndpoint, Everything]],
) -> None:
    """Where a client takes a body for a person's (Google's), a hidden name is told with the key that shows it."""
    status, _, body = ask(machines["bundle"][0], "/computeMetadata/v1/instance/attributes/docker-config")
    assert (status, b"pass_through.show" in body) == (404, True)


class TestOperator:
    def test_shows_what_he_must(self) -> None:
        """What the table or its name hides is seen, and listed, when the configuration says so."""
        path = "/latest/dynamic/instance-identity/"
        real = Scripted({path: answer("document\npkcs7\nrsa2048"), path + "pkcs7": answer("MIIC")})
        with machine("bundle", real, show=(path + "pkcs7",)) as server:
            assert ask(server, path + "pkcs7")[2] == b"MIIC"
            assert ask(server, path)[2] == b"document\npkcs7"

    def test_a_star_stands_for_any_name(self) -> None:
        """``*`` in a segment is any text of that segment."""
        path = "/computeMetadata/v1/instance/attributes/"
        real = Scripted({path + "api-token": answer("x", Metadata_Flavor="Google")})
        with machine("bundle", real, show=(path + "*-token",)) as server:
            assert ask(server, path + "api-token")[2] == b"x"

    def test_hiding_is_stronger_than_showing(self) -> None:
        """What is both hidden and shown is hidden."""
        with machine("bundle", Everything(), show=("/latest/user-data",), hide=("/latest/user-data",)) as server:
            assert ask(server, "/latest/user-data")[0] == 404

    @pytest.mark.parametrize(
        "path",
        [
            "/latest/meta-data/identity-credentials/ec2/info",
            "/latest/meta-data/iam/security-credentials/machine-role",
            "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
            "/computeMetadata/v1/instance/credentials/mds-client-certificate",
            "/computeMetadata/v1/instance/gce-workload-certificates/workload-identities",
            "/computeMetadata/v1/instance/workload-identities",
            "/computeMetadata/v1/instance/workload-trusted-root-certs",
            "/computeMetadata/v1/instance/workload-certificates-config-status",
            "/computeMetadata/v1/instance/service-accounts/machine@example.com/token",
        ],
    )
    def test_cannot_show_the_machines_credentials_beside_a_bundles(self, path: str) -> None:
        """While a bundle decides, no setting shows what the machine signs with."""
        real = Everything()
        with machine("bundle", real, show=("/latest/meta-data/*", "/computeMetadata/v1/instance/*")) as server:
            ask(server, path)
        assert not real.asked


class TestTags:
    """ETags and waits say nothing of what is hidden."""

    PATH = "/computeMetadata/v1/instance/attributes/"

    @pytest.mark.parametrize("query", ["?recursive=true", "?recursive=true&alt=text", "", "?alt=json"])
    def test_a_hidden_change_is_no_change(self, query: str) -> None:
        """The tag of a directory is that of what is seen in it."""
        real = Scripted()
        with machine("bundle", real) as server:
            tags = []
            for secret in ("one", "two"):
                tree = {"fine": "x", "kube-env": secret}
                listing = json.dumps([*tree]) if "alt=json" in query else "fine\nkube-env\n"
                body = json.dumps(tree) if "recursive" in query else listing
                found = answer(body, Content_Type="application/json", Metadata_Flavor="Google", ETag=secret)
                real.answers = {self.PATH + q: found for q in ("", "?alt=json", "?recursive=true&alt=json")}
                status, headers, _ = ask(server, self.PATH + query)
                assert status == 200
                tags.append(headers["ETag"])
        assert tags[0] == tags[1]

    def test_a_wait_sleeps_through_a_hidden_change(self) -> None:
        """``wait_for_change`` on a directory goes on waiting when only something hidden changed."""
        real = Changing()
        with machine("bundle", real) as server, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ask, server, f"{self.PATH}?recursive=true&wait_for_change=true&timeout_sec=60")
            for name, value in (("kube-env", "b"), ("fine", "2")):
                assert real.someone_waits.wait(10)
                real.someone_waits.clear()
                assert not waiting.done()
                server.run(partial(real.change, name, value))
            status, headers, body = waiting.result(10)
        assert (status, json.loads(body)) == (200, {"fine": "2"})
        assert headers["ETag"] == gce.etag(body)

    def test_a_wait_with_an_older_tag_is_answered_at_once(self) -> None:
        """Who has another tag than the present one hears what there is."""
        with machine("bundle", Changing()) as server:
            target = f"{self.PATH}?recursive=true&wait_for_change=true&timeout_sec=60&last_etag=0"
            assert json.loads(ask(server, target)[2]) == {"fine": "1"}

    def test_what_workers_wrote_is_not_looked_through(self) -> None:
        """Any number of guest attributes costs no search of the table: they are the workers' own."""
        path = "/computeMetadata/v1/instance/guest-attributes/"
        tree = {"hostkeys": {"ssh-ed25519": "AAAA"}, "job": {f"token-{n}": "x" for n in range(3000)}}
        body = json.dumps(tree)
        real = Scripted({path + "?recursive=true": answer(body, Content_Type="application/json", ETag="1")})
        with machine("bundle", real) as server:
            assert json.loads(ask(server, path + "?recursive=true")[2]) == tree

    def test_os_login_is_asked_as_it_was(self) -> None:
        """Who a user is, any program's C library asks with a query, which goes on."""
        real = Everything()
        with machine("bundle", real) as server:
            ask(server, "/computeMetadata/v1/oslogin/users?username=alice_example_com&evil=1")
            ask(server, "/computeMetadata/v1/oslogin/users?uid=1234")
        assert [asked.path_qs.partition("?")[2] for asked in real.asked] == ["username=alice_example_com", "uid=1234"]


class TestWrites:
    @pytest.mark.parametrize(
        "name",
        [
            "senders/worker-key",
            "Senders/other",
            "senders/",
            "senders",
            "%73enders/worker-key",
            "senders//worker-key",
            "senders/worker-key/",
            "senders/worker-key?x=1",
            "hostkeys/ssh-ed25519",
            "HostKeys/ssh-ed25519",
            "guestInventory/Hostname",
            "credential-agent/key",
            "credential-agent-2/key",
            "x/y/z",
            "x/y%2fz",
            "x/../senders/worker-key",
            "x/%2e%2e/senders/worker-key",
            "",
        ],
    )
    @pytest.mark.parametrize("method", ["PUT", "DELETE"])
    def test_a_namespace_that_is_not_theirs(self, method: str, name: str) -> None:
        """Nobody writes where the agent, or Google's, publish what others believe, nor anything but one key."""
        real = Everything()
        with machine("bundle", real, own_namespaces=("senders",)) as server:
            status, _, _ = ask(
                server, f"/computeMetadata/v1/instance/guest-attributes/{name}", method=method, body=b"evil"
            )
        assert status in {400, 403}
        assert not real.asked

    @pytest.mark.parametrize(
        "path", ["attributes/x", "service-accounts/default/token", "Guest-Attributes/senders/x", "tags"]
    )
    def test_nothing_else_is_written(self, path: str) -> None:
        """Guest attributes are the one thing that is written through us."""
        real = Everything()
        with machine("bundle", real, own_namespaces=("senders",)) as server:
            assert ask(server, f"/computeMetadata/v1/instance/{path}", method="PUT", body=b"x")[0] in {403, 405}
        assert not real.asked

    def test_their_own_pass(self) -> None:
        """A worker's own namespace is its own."""
        real = Everything()
        with machine("bundle", real, own_namespaces=("senders",)) as server:
            path = "/computeMetadata/v1/instance/guest-attributes/my-job/progress"
            assert ask(server, path, method="PUT", body=b"7")[0] == 200
            assert ask(server, path, method="DELETE")[0] == 200
        assert [(asked.method, asked.path_qs, asked.body) for asked in real.asked] == [
            ("PUT", path, b"7"),
            ("DELETE", path, b""),
        ]


def test_spellings_that_meet_a_wall_are_not_all() -> None:
    """The property is worth its name: plain spellings of what is seen do reach the service behind."""
    view = view_of("bundle")
    view.set(Cloud.AWS, Absent("none"))
    real = Everything()
    with machine("bundle", real) as server:
        assert SEEN.encode() in ask(server, f"/{names.GCE_ROOT}/v1/instance/attributes/fine")[2]
    assert real.asked


def calls_of(work: Callable[[], T]) -> tuple[int, T]:
    """How many functions are called by that, and what comes of it."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        found = work()
    finally:
        sys.setprofile(before)
    return calls, found


def test_a_tree_is_compared_with_the_table_once() -> None:
    """However often it is asked for; what may change is looked at each time, and only short paths are kept."""
    expects = True
    hiding = Hiding(GCE_ROOT, hide=(), show=(), expects_bundle=lambda: expects)
    fine = {f"fine-{number}": "1" for number in range(100)}
    tree = {"attributes": {**fine, "db-password": "2"}, "workload-x": "3"}

    def shown() -> object:
        return hiding.pruned(tree, ("instance",), decided=False)

    first, found = calls_of(shown)
    assert found == {"attributes": fine}
    for expects in (False, True, False):
        again, found = calls_of(shown)
        assert found == {"attributes": fine} | ({} if expects else {"workload-x": "3"})
        assert again < first // 10
    long = [calls_of(lambda: hiding.hides(("x" * 10000,), decided=False))[0] for _ in range(2)]
    assert long[0] == long[1] > 100
