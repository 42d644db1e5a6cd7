"""The smaller rules of the providers: what is kept for the agent itself, whose word goes, what is asked once."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Any, cast

import pytest

from agent.core.errors import Denied
from agent.core.model import AwsWebIdentity, Cloud, GcpExternalAccount, GcpServiceAccount, WebTokenGce
from agent.core.secret import Secret
from agent.enrol import Evidence, Missing
from agent.providers.attest import KEPT, Attestor
from agent.providers.google_answers import id_token_of
from agent.providers.settings import GoogleEndpoints
from agent.providers.sts import Sts
from agent.providers.webtoken import ask_gce_identity, fetch_gce_identity
from agent.upstream import Ec2Metadata, GceMetadata
from agent.wire.names import EC2_REGION_PATH, ENROL_AUDIENCE_PREFIX
from tests.fakes.net import Answer, Asked, Fault
from tests.unit.providers.support import OIDC_POOL, READER, REGION, ROBOT, World, run

RESERVED = f"{ENROL_AUDIENCE_PREFIX}x"


def test_a_bundle_gets_no_token_that_says_that_a_key_is_this_machines() -> None:
    """That audience is kept for the agent itself: whoever signs bundles could else enrol a key of its own as the machine's."""
    world = World(on_gce=True)
    world.sts.role(READER, trusts=frozenset({"12345"}))
    token = WebTokenGce(audience=RESERVED)
    for grant in (
        AwsWebIdentity(id="w", role_arn=READER, token=token),
        GcpExternalAccount(id="x", audience=OIDC_POOL, token=token),
    ):
        with pytest.raises(Denied) as caught:
            world.issue(grant)
        assert caught.value.code == "unsupported"
    gce = GceMetadata(cast(Any, world.net), "http://gce.metadata")
    with pytest.raises(Denied):
        run(fetch_gce_identity(gce, RESERVED))
    assert [asked for asked in world.gce.asked if asked.path.endswith("/identity")] == []
    run(ask_gce_identity(gce, RESERVED))  # the agent's own


def attestor(world: World, *, sts: bool = True, region: str | None = REGION) -> Attestor:
    upstream: Any = world.net
    return Attestor(
        Ec2Metadata(upstream, world.clock, "http://ec2.metadata"),
        None,
        cloud=Cloud.AWS,
        region=region,
        sts=Sts(upstream, None, 5, world.clock.boottime) if sts else None,
    )


def collected(world: World, of: Attestor) -> dict[str, str]:
    """By kind: ``had``, or the word for why there is none."""
    found: tuple[tuple[Evidence, ...], tuple[Missing, ...]] = run(of.collect("t" * 43, "n" * 43, world.now))
    kinds = {"AwsSts": "aws-sts", "AwsWebIdentity": "aws-web-identity"}
    return {kinds[type(one).__name__]: "had" for one in found[0]} | {one.kind: one.code for one in found[1]}


def test_evidence_that_is_switched_off_is_not_asked_for() -> None:
    """The other kind is had all the same."""
    world = World(on_ec2=True)
    assert collected(world, attestor(world, sts=False)) == {
        "aws-sts": "had", "aws-web-identity": "off", "gcp-identity": "no-machine"
    }  # fmt: skip
    assert world.sts.calls == []


def test_why_a_machine_has_no_evidence_is_told_by_a_word() -> None:
    """A machine without a role has none tomorrow either; one whose service is not well may have some in a moment."""
    world = World(on_ec2=True)
    world.ec2.role = None
    of = attestor(world)
    for _ in range(2):  # and the second time by what is remembered
        assert collected(world, of)["aws-sts"] == collected(world, of)["aws-web-identity"] == "no-role"
    for fault in (Fault.DOWN, None):
        world.ec2.fault, world.ec2.status = fault, None if fault else 500
        assert collected(world, attestor(world))["aws-sts"] == "unavailable"
    none = Attestor(None, None, cloud=None, region=REGION, sts=Sts(cast(Any, world.net), None, 5, world.clock.boottime))
    assert set(collected(world, none).values()) == {"no-machine"}


@pytest.mark.parametrize("token", [None, "é", "a\nb"], ids=["none", "no ascii", "two lines"])
def test_what_is_no_token_is_no_evidence(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    """It would go into an answer to a sender as it is."""
    world = World(on_ec2=True)

    async def call(*_: Any, **__: Any) -> Any:
        return type("Answer", (), {"result": {} if token is None else {"WebIdentityToken": token}})

    monkeypatch.setattr(Sts, "call", call)
    assert collected(world, attestor(world))["aws-web-identity"] == "unavailable"


@pytest.mark.parametrize("said", ["", "evil.example/", "eu-west-1.evil.example", "eu west 1", "<html>"])
def test_a_region_that_is_none_names_no_host(said: str) -> None:
    """The region becomes part of the address that signed evidence is for."""
    world = World(on_ec2=True)
    ec2 = world.ec2

    def answered(asked: Asked) -> Any:
        return Answer(200, said.encode()) if asked.path == EC2_REGION_PATH else ec2(asked)

    world.net.routes["http://ec2.metadata"] = answered
    assert collected(world, attestor(world, region=None)) == {
        "aws-sts": "unavailable", "aws-web-identity": "unavailable", "gcp-identity": "no-machine"
    }  # fmt: skip
    world.net.routes["http://ec2.metadata"] = ec2
    assert collected(world, attestor(world, region=None))["aws-sts"] == "had"


def test_the_machines_role_is_read_once_for_many_questions() -> None:
    """Within a minute; not once its credential is about to end, and not by a clock that was set back."""
    world = World(on_ec2=True)
    of = attestor(world, sts=False)

    def reads() -> int:
        before = len([asked for asked in world.ec2.asked if "/security-credentials/" in asked.path])
        assert collected(world, of)["aws-sts"] == "had"
        return len([asked for asked in world.ec2.asked if "/security-credentials/" in asked.path]) - before

    once = reads()
    assert once > 0
    run(world.clock.advance(KEPT.total_seconds()))
    assert reads() == 0
    run(world.clock.advance(1))
    assert reads() == once
    world.clock.set_utc(world.now - timedelta(hours=1))
    assert reads() == once

    mint, end = world.ec2.mint, world.now + timedelta(seconds=61 + 119)
    world.ec2.mint = lambda: {**mint(), "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ")}
    run(world.clock.advance(61))
    assert [reads(), reads()] == [once, once]


@pytest.mark.parametrize(
    ("configured", "named", "asked"),
    [
        (None, None, "https://oauth2.googleapis.com"),
        (None, "https://accounts.google.com/o/oauth2/token", "https://accounts.google.com"),
        ("http://127.0.0.1:9", None, "http://127.0.0.1:9"),
        ("http://127.0.0.1:9", "https://accounts.google.com/o/oauth2/token", "http://127.0.0.1:9"),
        ("http://127.0.0.1:9", "https://token.evil.example/token", "http://127.0.0.1:9"),
    ],
)
def test_an_operators_endpoint_is_asked_whatever_a_grant_names(
    configured: str | None, named: str | None, asked: str
) -> None:
    """It replaces Google's, and what a key of a service account names; without one, what is named must be allowed."""
    settings: dict[str, Any] = {"google": GoogleEndpoints.at(configured)} if configured else {}
    world = World(**settings)
    key = world.service_account()
    more: dict[str, Any] = {} if named is None else {"token_uri": named}
    grant = GcpServiceAccount(
        id="s", client_email=ROBOT, private_key_id=key.private_key_id, private_key=key.private_key, **more
    )
    found: list[str] = []
    google = world.google

    def answered(origin: str) -> Any:
        def answer(request: Asked) -> Any:
            found.append(origin)
            return google(request)

        return answer

    origins = ("https://oauth2.googleapis.com", "https://accounts.google.com", "http://127.0.0.1:9")
    world.net.routes = {origin: answered(origin) for origin in origins}
    with contextlib.suppress(Denied):  # the fake knows no other path
        world.issue(grant)
    assert found == [asked]


@pytest.mark.parametrize("hours", [-1, 1])
def test_an_identity_token_was_issued_when_it_says_and_never_later_than_now(hours: int) -> None:
    """Its age decides when it is renewed: a server's clock that is ahead makes none that is younger than it is."""
    world = World()
    issued, end = world.now + timedelta(hours=hours), world.now + timedelta(minutes=30)
    token = Secret(world.google._jwt({"iat": int(issued.timestamp()), "exp": int(end.timestamp())}))
    found = id_token_of(token, "a", "asked for", world.now)
    assert (found.issued_at, found.expires_at) == (min(issued, world.now), end)


@pytest.mark.parametrize("path", ["/latest/dynamic/instance-identity/document"])
@pytest.mark.parametrize("answer", [Answer(500), Answer(404), Answer(200, b"<html>")])
def test_the_machines_identity_does_not_hang_on_what_is_good_to_know(path: str, answer: Answer) -> None:
    """The account is named if the service says it, and its credential is served all the same."""
    world = World(on_ec2=True)
    ec2 = world.ec2
    world.net.routes["http://ec2.metadata"] = lambda asked: answer if asked.path == path else ec2(asked)
    issued: Any = run(world.mint.instance(Cloud.AWS, world.now))
    assert (issued.credential.role_name, issued.credential.account_id) == ("machine-role", None)
