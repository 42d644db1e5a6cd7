"""The conditions inside what the listener hides, refuses, tells and mints; each was found by a change nobody noticed."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from multidict import CIMultiDict

from agent.core.errors import Transient
from agent.core.view import Live, Origin
from agent.serve.early import Early
from agent.serve.gate import Gate, bare_host
from agent.serve.hiding import EC2_ROOT, GCE_ROOT, GuestWrites, Hiding
from agent.serve.mints import Mints, TooOften
from agent.wire.http import Request
from tests.fakes.clock import START
from tests.fakes.view import FakeView
from tests.unit.identity.worlds import aws_credential

MINUTE = timedelta(minutes=1)


def hiding(
    root: tuple[str, ...] = GCE_ROOT, *, hide: tuple[str, ...] = (), show: tuple[str, ...] = (), expects: bool = False
) -> Hiding:
    return Hiding(root, hide=hide, show=show, expects_bundle=lambda: expects)


def at(path: str) -> tuple[str, ...]:
    return tuple(path.split("/"))


class TestHiding:
    @pytest.mark.parametrize(
        ("expects", "decided", "hidden"), [(0, 0, False), (1, 0, True), (0, 1, True), (1, 1, True)]
    )
    def test_what_names_the_machine(self, expects: int, decided: int, hidden: bool) -> None:
        """Its signatures are hidden where bundles are taken, and where one decides though none is taken any more."""
        one = hiding(EC2_ROOT, expects=bool(expects))
        assert one.hides(at("dynamic/instance-identity/pkcs7"), decided=bool(decided)) is hidden
        assert not one.hides(at("dynamic/instance-identity/document"), decided=bool(decided))

    def test_a_path_of_the_other_cloud_hides_nothing_here(self) -> None:
        """The operator's paths are whole ones: those of EC2 say nothing of GCE, and a root alone says nothing at all."""
        one = hiding(hide=("/latest/meta-data/tags", "/computeMetadata/v1", "/other/v1/instance/zone"))
        assert not one.hides(at("meta-data/tags"), decided=False)
        assert not one.hides(at("instance/zone"), decided=False)
        assert hiding(hide=("/computeMetadata/V1/instance/ZONE",)).hides(at("instance/zone"), decided=False)

    def test_a_tree_without_anything_hidden_is_the_very_same(self) -> None:
        """Nothing is rendered anew: at every depth, in lists too."""
        tree = {"zone": "z", "disks": [{"index": 0}, {"index": 1}], "tags": ["a"]}
        assert hiding().pruned(tree, ("instance",), decided=True) is tree

    def test_what_is_hidden_is_gone_at_every_depth(self) -> None:
        """In a directory, below one, in a list and below a list; what stands beside it stays as it is."""
        tree = {
            "zone": "z",
            "list": [{"fine": 1}, {"fine": 2, "apiToken": "t"}],
            "deep": {"deeper": {"password": "p", "name": "n"}},
            "attributes": {"kube-env": "k", "startupScript": "s", "job": "j"},
        }
        assert hiding().pruned(tree, ("instance",), decided=False) == {
            "zone": "z",
            "list": [{"fine": 1}, {"fine": 2}],
            "deep": {"deeper": {"name": "n"}},
            "attributes": {"job": "j"},
        }

    def test_either_spelling_of_a_name_hides_it(self) -> None:
        """A directory is spelt in camel case in a tree, and a custom name as somebody spelt it."""
        one = hiding(hide=("/computeMetadata/v1/instance/attributes/myName", "/computeMetadata/v1/instance/other-name"))
        assert one.pruned({"myName": 1, "x": 2}, at("instance/attributes"), decided=False) == {"x": 2}
        assert one.pruned({"otherName": 1, "x": 2}, ("instance",), decided=False) == {"x": 2}

    def test_the_workers_own_are_looked_through_only_where_something_is_hidden(self) -> None:
        """Guest attributes of any name are shown; what the operator hides among them is hidden in their tree too."""
        tree = {"job": {"my-token": "x"}, "other": {"y": "z"}}
        below = at("instance/guest-attributes")
        assert hiding().pruned(tree, below, decided=True) is tree
        hidden = hiding(hide=("/computeMetadata/v1/instance/guest-attributes/job",))
        assert hidden.pruned(tree, below, decided=True) == {"other": {"y": "z"}}
        elsewhere = hiding(hide=("/computeMetadata/v1/instance/zone",))
        assert elsewhere.pruned(tree, below, decided=True) is tree

    def test_a_directory_in_which_something_may_be_hidden_is_known(self) -> None:
        """Above anything of the table or the operator's, and where names are anybody's; nowhere else."""
        one = hiding(hide=("/computeMetadata/v1/instance/disks/0",))
        for path in (
            (),
            ("instance",),
            at("instance/attributes"),
            at("instance/partner-attributes"),
            at("instance/disks"),
        ):
            assert one.lists(path), path
        for path in (at("instance/network-interfaces"), at("instance/disks/0"), at("instance/attributes/x/y")):
            assert not one.lists(path), path


class TestGuestWrites:
    @pytest.mark.parametrize(
        ("path", "slash", "query", "passes"),
        [
            ("instance/guest-attributes/job/key", False, "", True),
            ("instance/guest-attributes/job/key", True, "", False),
            ("instance/guest-attributes/job/key", False, "recursive=true", False),
            ("instance/guest-attributes/job", False, "", False),
            ("instance/guest-attributes/job/key/more", False, "", False),
            ("instance/guest-attributes/job/k y", False, "", False),
            ("instance/guest-attributes/j b/key", False, "", False),
            ("instance/guest-attributes/mine/key", False, "", False),
            ("instance/attributes/job/key", False, "", False),
        ],
    )
    def test_one_key_of_a_namespace_of_its_own(self, path: str, slash: bool, query: str, passes: bool) -> None:
        """Both names are plain, there is nothing behind them, and the namespace is nobody else's."""
        refusal = GuestWrites(("mine",)).refusal(at(path), slash=slash, query=query)
        assert (refusal is None) is passes


def request(host: str = "169.254.169.254", **headers: str) -> Request:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request("GET", "/", "", (), False, CIMultiDict(given), host=host)


class TestGate:
    @pytest.mark.parametrize(
        ("authority", "host"),
        [
            ("[::1]", "::1"),
            ("[::1]:80", "::1"),
            ("[::1]:http", None),
            ("[::1]80", None),
            ("[::1]:", None),
            ("[::1", None),
            ("localhost:80", "localhost"),
            ("localhost:x", None),
            ("LOCALHOST.", "localhost"),
            (".", None),
            ("fd00:ec2::254", "fd00:ec2::254"),
        ],
    )
    def test_an_authority_is_read_to_its_end(self, authority: str, host: str | None) -> None:
        """What is no host with a port, if any, is malformed; nothing behind the bracket is passed over."""
        assert bare_host(authority) == host

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"User_Agent": "Mozilla/5.0 (WindowsPowerShell)"}, None),
            ({"User_Agent": "node", "Accept_Language": "en"}, None),
            ({"User_Agent": "Java/21", "Accept": "text/html, image/gif"}, None),
            ({"User_Agent": "Mozilla/5.0", "Accept_Language": "en"}, 403),
            ({"User_Agent": "Mozilla/5.0", "Accept": "text/html"}, 403),
            ({"Accept_Language": "en", "Accept": "text/html"}, None),
            ({"Origin": "null"}, 403),
            ({"X_Forwarded_For": ""}, 403),
        ],
    )
    def test_each_sign_of_a_browser_alone_is_none(self, headers: dict[str, str], status: int | None) -> None:
        """PowerShell calls itself Mozilla, Node names languages, Java asks for pages: two signs make a browser."""
        refusal = Gate().refusal(request(**headers))
        assert (refusal.status if refusal is not None else None) == status

    def test_names_that_are_ours(self) -> None:
        """However an address is written, the configured one too, and however many others were asked for before."""
        gate = Gate(("FD00:0:0::7", "172.17.0.1"))
        for n in range(2000):
            assert gate.refusal(request(f"h{n}.example")) is not None
        for host in ("[fd00::7]", "[fd00:0::7]:80", "172.17.0.1", "[::ffff:172.17.0.1]", "127.9.9.9", "[::1]"):
            for _ in range(2):
                assert gate.refusal(request(host)) is None, host
        for host in ("172.17.0.2", "[fd00::8]", "x" * 300, ""):
            for _ in range(2):
                assert gate.refusal(request(host, Host=host)) is not None, host

    def test_both_words_for_the_host_must_be_ours(self) -> None:
        """An absolute target names one host and the header another: each is evaluated."""
        assert Gate().refusal(request("localhost", Host="evil.example")) is not None
        assert Gate().refusal(request("evil.example", Host="localhost")) is not None
        assert Gate().refusal(request("localhost", Host="metadata")) is None


class TestEarly:
    LIVE = Origin.FALLBACK

    def early(self, *, expects: bool = True) -> Early:
        view = FakeView()
        view.expects_bundle = expects
        return Early(view.served, timedelta)

    def test_what_the_real_service_hands_out_ended_is_extended_for_those_who_would_not(self) -> None:
        """As AWS goes on to take it; with and without bundles, from the very second of its end. Else it says its end."""
        ended = aws_credential(START - 60 * MINUTE)
        live = Live(ended, "m", Origin.FALLBACK)
        for expects in (True, False):
            one = self.early(expects=expects)
            assert one.aws(live, ended, START, extends=True).expires_at >= START + 18 * MINUTE
            assert one.aws(live, ended, START) is ended
        bundles = Live(ended, "b", Origin.BUNDLE)
        assert self.early().aws(bundles, ended, START, extends=True) is ended

    def test_an_end_that_comes_first_is_told_as_it_is(self) -> None:
        """An early end never prolongs what is alive, whoever asks."""
        short = aws_credential(START, minutes=7)
        live = Live(short, "m", Origin.FALLBACK)
        assert self.early().aws(live, short, START) is short
        assert self.early().aws(live, short, START, extends=True) is short

    def test_another_credential_or_another_end_is_another_document(self) -> None:
        """What was told of one is not told of its successor, nor an end that is over of a later one."""
        one = self.early()
        first, second = (
            aws_credential(START, minutes=360),
            aws_credential(START, minutes=360, key="ASIASECOND0000000000"),
        )
        told = one.aws(Live(first, "m", Origin.FALLBACK), first, START)
        assert one.aws(Live(first, "m", Origin.FALLBACK), first, START) is told
        assert one.aws(Live(second, "m", Origin.FALLBACK), second, START).access_key_id == second.access_key_id
        later = one.aws(Live(first, "m", Origin.FALLBACK), first, START + 10 * MINUTE)
        assert later.expires_at == told.expires_at + 10 * MINUTE


class TestMints:
    def test_the_wait_that_is_told_is_whole_seconds_and_at_least_one(self) -> None:
        """A client that is told nothing comes again at once."""
        assert [TooOften(seconds).seconds for seconds in (0.0, 0.2, 1.0, 1.1)] == [1, 1, 1, 2]

    def test_a_failure_is_kept_for_five_seconds(self) -> None:
        """Until then it is not tried again; and one that works again is no failure any more."""

        async def scenario() -> None:
            now, calls, broken = 0.0, [], True

            async def demand(audience: str) -> str:
                calls.append(audience)
                if broken:
                    raise Transient("down")
                return audience

            mints: Mints[str] = Mints(demand, clock=lambda: now)

            async def failed(audience: str) -> None:
                with pytest.raises(Transient):
                    await mints.mint(audience, None, name="")

            await failed("a")
            now = 4.9
            await failed("a")
            assert calls == ["a"]
            now, broken = 5.0, False
            assert await mints.mint("a", None, name="") == "a"
            broken = True
            now = 5.1
            await failed("a")
            assert calls == ["a", "a", "a"]

        asyncio.run(scenario())
