"""Against what we did not write: moto as STS, botocore and google-auth as clients of the fakes, real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from agent.core.errors import Denied, Transient
from agent.core.model import (
    AwsAssumeRole,
    AwsCredential,
    AwsKeys,
    AwsWebIdentity,
    Cloud,
    Expect,
    GcpAuthorizedUser,
    GcpImpersonation,
    GcpServiceAccount,
    GoogleToken,
    HttpBroker,
    WebTokenInline,
)
from agent.core.secret import Secret
from agent.providers import GoogleEndpoints, Mint, MintSettings
from agent.upstream import Ec2Metadata, GceMetadata, Upstream, UpstreamSettings
from tests.fakes.clock import FakeClock
from tests.fakes.moto_server import available, moto
from tests.fakes.net import Fault, serve
from tests.fakes.sts import FakeSts, Weather
from tests.unit.providers.support import ACCOUNT, READER, REGION, ROBOT, World, pem, rsa_key

needs_moto = pytest.mark.skipif(not available(), reason="needs moto[server]")


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with moto() as url:
        yield url


def with_mint(settings: MintSettings, scenario: Callable[[Mint], Awaitable[Any]], **arguments: Any) -> Any:
    """Run ``scenario`` with a mint on real sockets."""

    async def main() -> Any:
        upstream = Upstream(UpstreamSettings(allow_private_addresses=True))
        try:
            return await scenario(Mint(upstream, settings, FakeClock(), **arguments))
        finally:
            await upstream.close()

    return asyncio.run(asyncio.wait_for(main(), 60))


# -- moto


@needs_moto
def test_moto_exchanges_keys_and_assumes_a_role(moto_url: str) -> None:
    """Keys become a session and the session a role, at an STS we did not write; the probe agrees with it."""
    now = datetime.now(UTC)
    keys = AwsKeys(id="k", access_key_id="AKIAIOSFODNN7EXAMPLE", secret_access_key=Secret("x" * 40))
    role = AwsAssumeRole(
        id="r",
        role_arn="arn:aws:iam::123456789012:role/reader",
        base="k",
        duration_seconds=7200,
        tags={"team": "data & more"},
        expect=Expect(account_id="123456789012", arn="arn:aws:iam::123456789012:role/reader"),
    )

    async def scenario(mint: Mint) -> AwsCredential:
        session = (await mint.issue(keys, None, now)).credential
        issued = await mint.issue(role, session, now)
        assert issued.server_time is not None
        assert abs(issued.server_time - now) < timedelta(minutes=1)
        assert isinstance(issued.credential, AwsCredential)
        return issued.credential

    credential = with_mint(MintSettings(sts_endpoint=moto_url, region=REGION), scenario)

    assert credential.access_key_id.startswith("ASIA")
    assert credential.account_id == "123456789012"
    assert timedelta(minutes=115) < credential.expires_at - now < timedelta(minutes=125)


@needs_moto
def test_moto_takes_a_web_identity(moto_url: str) -> None:
    """An unsigned exchange of an identity token is understood by an STS we did not write."""
    now = datetime.now(UTC)
    grant = AwsWebIdentity(
        id="w",
        role_arn="arn:aws:iam::123456789012:role/reader",
        token=WebTokenInline(token=Secret(World().google._jwt({"sub": "job"}))),
    )

    async def scenario(mint: Mint) -> Any:
        return (await mint.issue(grant, None, now)).credential

    credential = with_mint(MintSettings(sts_endpoint=moto_url, region=REGION), scenario)

    assert credential.role_arn == "arn:aws:sts::123456789012:assumed-role/reader/credential-agent"


@needs_moto
def test_moto_and_the_probe_disagree_with_a_wrong_expectation(moto_url: str) -> None:
    """An identity that is not the expected one is refused at an STS we did not write."""
    now = datetime.now(UTC)
    grant = AwsKeys(
        id="k",
        access_key_id="AKIAIOSFODNN7EXAMPLE",
        secret_access_key=Secret("x" * 40),
        expect=Expect(account_id="999999999999"),
    )

    async def scenario(mint: Mint) -> None:
        with pytest.raises(Denied) as caught:
            await mint.issue(grant, None, now)
        assert caught.value.code == "unexpected-identity"

    with_mint(MintSettings(sts_endpoint=moto_url, region=REGION), scenario)


# -- the fake STS, evaluated by botocore


def test_botocore_is_content_with_the_fake_sts() -> None:
    """The real client's requests verify at the fake, and its answers parse: the fake speaks the real protocol."""
    import botocore.config
    import botocore.exceptions
    import botocore.session

    sts = FakeSts(lambda: datetime.now(UTC))
    key, secret = sts.user()
    sts.role(READER, external_id="ext")

    def client(url: str, **credentials: str) -> Any:
        session = botocore.session.Session()
        config = botocore.config.Config(retries={"total_max_attempts": 1}, proxies={})
        return session.create_client("sts", region_name=REGION, endpoint_url=url, config=config, **credentials)

    def scenario(url: str) -> None:
        with closing(client(url, aws_access_key_id=key, aws_secret_access_key=secret)) as user:
            assert user.get_caller_identity()["Account"] == ACCOUNT
            made = user.get_session_token(DurationSeconds=900)["Credentials"]
        with closing(
            client(
                url,
                aws_access_key_id=made["AccessKeyId"],
                aws_secret_access_key=made["SecretAccessKey"],
                aws_session_token=made["SessionToken"],
            )
        ) as session:
            role = session.assume_role(RoleArn=READER, RoleSessionName="job", ExternalId="ext", Tags=[])
            assert role["AssumedRoleUser"]["Arn"].endswith("assumed-role/reader/job")
            assert role["Credentials"]["Expiration"] > datetime.now(UTC)
            with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
                session.assume_role(RoleArn=READER, RoleSessionName="job")

    async def main() -> None:
        async with serve(sts) as url:
            await asyncio.to_thread(scenario, url)

    asyncio.run(main())


# -- the fake Google, evaluated by google-auth


def test_google_auth_is_content_with_the_fake_google() -> None:
    """google-auth's own flows succeed at the fake endpoints: what our exchanges are held to is the real protocol."""
    import google.auth.aws
    import google.auth.impersonated_credentials
    import google.oauth2.credentials
    import google.oauth2.service_account
    import urllib3
    from google.auth.transport.urllib3 import Request

    world = World()
    world.google.now = world.sts.now = lambda: datetime.now(UTC)
    user = world.google.user()
    world.google.account(ROBOT, keys={"key-1": rsa_key().public_key()})

    def scenario(url: str) -> None:
        with urllib3.PoolManager(retries=False) as pool:
            request = Request(pool)
            mine = google.oauth2.credentials.Credentials(
                None,
                refresh_token=user["refresh_token"],
                client_id=user["client_id"],
                client_secret=user["client_secret"],
                token_uri=f"{url}/token",
            )
            mine.refresh(request)
            assert world.google.tokens[str(mine.token)].principal == user["email"]

            info = {
                "type": "service_account",
                "client_email": ROBOT,
                "private_key": pem(rsa_key()),
                "private_key_id": "key-1",
                "token_uri": f"{url}/token",
            }
            robot = google.oauth2.service_account.Credentials.from_service_account_info(info, scopes=["s"])
            robot.refresh(request)
            assert world.google.tokens[robot.token].principal == ROBOT

            acting = google.auth.impersonated_credentials.Credentials(
                mine,
                ROBOT,
                ["s"],
                iam_endpoint_override=f"{url}/v1/projects/-/serviceAccounts/{ROBOT}:generateAccessToken",
            )
            acting.refresh(request)
            assert world.google.tokens[str(acting.token)].principal == ROBOT

    async def main() -> None:
        async with serve(world.google) as url:
            await asyncio.to_thread(scenario, url)

    asyncio.run(main())


# -- everything at once, on sockets


def test_every_exchange_on_sockets() -> None:
    """The machine's identity, a role on it, a broker and Google's exchanges, each over a real loopback socket."""
    world = World()
    world.google.account(ROBOT)
    user = world.google.user()
    key = world.service_account()
    now = world.now

    async def main() -> None:
        upstream = Upstream(UpstreamSettings(allow_private_addresses=True))
        async with (
            serve(world.sts) as sts,
            serve(world.google) as google,
            serve(world.broker) as broker,
            serve(world.ec2) as ec2,
            serve(world.gce) as gce,
        ):
            settings = MintSettings(
                sts_endpoint=sts, region=REGION, google=GoogleEndpoints.at(google), allowed_origins=(broker,)
            )
            mint = Mint(
                upstream,
                settings,
                world.clock,
                ec2=Ec2Metadata(upstream, world.clock, ec2),
                gce=GceMetadata(upstream, gce),
            )
            machine = await mint.instance(Cloud.AWS, now)
            assert machine is not None
            role = await mint.issue(AwsAssumeRole(id="r", role_arn=READER), machine.credential, now)
            assert role.credential.expires_at == now + timedelta(hours=1)
            brokered = await mint.issue(HttpBroker(id="b", url=f"{broker}/x"), None, now)
            assert brokered.credential.expires_at > now
            grant = GcpAuthorizedUser(
                id="u",
                client_id=user["client_id"],
                client_secret=Secret(user["client_secret"]),
                refresh_token=Secret(user["refresh_token"]),
            )
            token = (await mint.issue(grant, None, now)).credential
            acting = await mint.issue(GcpImpersonation(id="i", target_principal=ROBOT, base="u"), token, now)
            assert isinstance(acting.credential, GoogleToken)
            assert acting.credential.email == ROBOT
            assert (await mint.issue(key, None, now)).credential.expires_at > now
            own = await mint.instance(Cloud.GCP, now)
            assert own is not None
            assert (await mint.id_token(None, None, "aud", now)).expires_at > now
            await upstream.close()

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("allow", [True, False])
def test_allowed_origin_at_a_private_address(allow: bool) -> None:
    """An allow-listed broker whose address turns out to be private is refused, unless private addresses are allowed."""
    world = World()

    async def main() -> None:
        upstream = Upstream(UpstreamSettings(allow_private_addresses=allow))
        async with serve(world.broker) as url:
            grant = HttpBroker(id="b", url=f"{url.replace('127.0.0.1', 'localhost')}/x")
            origin = url.replace("127.0.0.1", "localhost")
            mint = Mint(upstream, MintSettings(allowed_origins=(origin,)), world.clock)
            if allow:
                assert (await mint.issue(grant, None, world.now)).credential.expires_at > world.now
            else:
                with pytest.raises(Denied) as caught:
                    await mint.issue(grant, None, world.now)
                assert caught.value.code == "refused"
            await upstream.close()

    asyncio.run(asyncio.wait_for(main(), 60))
    assert bool(world.broker.asked) == allow


def test_faults_on_sockets() -> None:
    """Closed connections and silence come out as Transient within the time limit."""
    world = World()
    grant = world.keys()

    async def main() -> None:
        upstream = Upstream()
        async with serve(world.sts) as url:
            mint = Mint(
                upstream,
                MintSettings(sts_endpoint=url, region=REGION, request_timeout_seconds=0.2),
                world.clock,
            )
            for fault, code in ((Fault.DOWN, "network"), (Fault.HANG, "timeout")):
                world.weather(Weather(fault=fault))
                with pytest.raises(Transient) as caught:
                    await mint.issue(grant, None, world.now)
                assert caught.value.code == code
            world.weather(Weather())
            assert (await mint.issue(grant, None, world.now)).credential.expires_at > world.now
            await upstream.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_subject_token_is_what_google_documents() -> None:
    """The subject token for federation is the JSON that Google documents, with the target resource signed."""
    from urllib.parse import unquote

    from agent.providers.google_proofs import aws_subject_token
    from agent.providers.sts import warm

    warm()
    world = World()
    token = json.loads(unquote(aws_subject_token(world.role_session(), "//iam/x", "eu-west-1", world.now)))

    headers = {pair["key"]: pair["value"] for pair in token["headers"]}
    assert token["method"] == "POST"
    assert token["url"] == "https://sts.eu-west-1.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15"
    assert headers.keys() == {
        "authorization",
        "host",
        "x-amz-date",
        "x-amz-security-token",
        "x-goog-cloud-target-resource",
    }
    assert "SignedHeaders=host;x-amz-date;x-amz-security-token;x-goog-cloud-target-resource" in headers["authorization"]


def test_values_are_safe_to_log() -> None:
    """What a mint hands out shows no secret when it is printed."""
    world = World()
    issued = world.issue(world.keys())
    assert isinstance(issued.credential, AwsCredential)

    assert issued.credential.session_token.reveal() not in repr(issued)
    with pytest.raises(TypeError):
        msgspec.json.encode(issued)


def test_service_account_grant_shows_no_key() -> None:
    """A key grant shows no key when it is printed."""
    grant = World().service_account()
    assert isinstance(grant, GcpServiceAccount)

    assert "PRIVATE" not in repr(grant)
