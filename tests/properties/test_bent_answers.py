"""Whatever is wrong with one answer of whoever is asked: a credential that can be used, or a told refusal or outage.

Each answer of a call that goes well (and of some that are refused) is bent in each of its parts: another type, nothing,
huge, nested, twice, cut off, in another encoding (:mod:`tests.fakes.bent`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from agent.core.errors import BundleError, Denied, KeyUnavailableError, SealError, SourceError, Transient, UpstreamError
from agent.core.issued import Issued
from agent.core.model import (
    AwsAssumeRole,
    AwsCredential,
    AwsWebIdentity,
    Cloud,
    Expect,
    GcpAuthorizedUser,
    GcpExternalAccount,
    GcpImpersonation,
    GoogleToken,
    HttpBroker,
    WebTokenUrl,
)
from agent.core.secret import Secret
from agent.providers.machine import ec2_machine, gce_machine
from agent.sources.ec2 import Ec2UserDataSettings, Ec2UserDataSource
from agent.sources.gce import GceAttributeSettings, GceAttributeSource
from agent.sources.https import HttpsSettings, HttpsSource
from agent.upstream import Ec2Metadata, GceMetadata, UpstreamResponse
from tests.fakes.bent import bent
from tests.fakes.clock import FakeClock
from tests.fakes.net import Answer, Asked, Handler, InProcess
from tests.unit.bundle.kit import NOW, TRUST, WORLD
from tests.unit.keys.test_kms import DIRECT, FOR_RSA, aws, gcp, gcp_key, p256_key
from tests.unit.keys.test_kms import rsa_key as aws_rsa_key
from tests.unit.providers.support import ACCOUNT, AWS_POOL, BROKER, READER, REGION, ROBOT, World

from agent.keys import Keyring  # isort: skip

PASSING = (Transient, UpstreamError, SourceError, KeyUnavailableError)
"""What is tried again by itself."""

Bend = Callable[[UpstreamResponse], UpstreamResponse]
Call = Callable[["Bending"], Awaitable[Any]]


class Bending(InProcess):
    """A way out on which the answer number ``at`` is bent.

    Attributes:
        seen: the answers, as they were.
    """

    def __init__(self, at: int = -1, bend: Bend | None = None) -> None:
        super().__init__({})
        self.seen: list[UpstreamResponse] = []
        self._at, self._bend = at, bend

    async def request(self, method: str, url: str, *, max_bytes: int | None = None, **more: Any) -> UpstreamResponse:
        answer = await super().request(method, url, **more)
        self.seen.append(answer)
        if len(self.seen) - 1 == self._at and self._bend is not None:
            answer = self._bend(answer)
        if max_bytes is not None and len(answer.body) > max_bytes:
            raise UpstreamError("more than that", code="too-large")
        return answer


def minting(act: Callable[[World], Awaitable[Any]], machine: Cloud | None = None, region: str | None = REGION) -> Call:
    async def call(net: Bending) -> Any:
        world = World()
        net.routes = world.net.routes
        world.go_out_by(net, region=region, allowed_origins=(BROKER,), machine=machine)
        return await act(world)

    return call


async def assume(world: World, **role: Any) -> Any:
    world.sts.role(READER, **role)
    grant = AwsAssumeRole(id="r", role_arn=READER, base="b", expect=Expect(account_id=ACCOUNT))
    return await world.mint.issue(grant, world.role_session(), world.now)


async def web_identity(world: World) -> Any:
    world.net.routes[BROKER] = lambda _: Answer(200, b'{"token": "a.b.c", "more": [1]}')
    grant = AwsWebIdentity(id="w", role_arn=READER, token=WebTokenUrl(url=f"{BROKER}/t", field="token"))
    return await world.mint.issue(grant, None, world.now)


async def impersonate(world: World, **account: Any) -> Any:
    world.google.account(ROBOT, **account)
    grant = GcpImpersonation(id="i", target_principal=ROBOT, base="b")
    return await world.mint.issue(grant, world.google_token(), world.now)


async def impersonated_id_token(world: World) -> Any:
    world.google.account(ROBOT)
    grant = GcpImpersonation(id="i", target_principal=ROBOT, base="b")
    return await world.mint.id_token(grant, world.google_token(), "aud", world.now)


async def federated(world: World) -> Any:
    world.google.account(ROBOT)
    world.google.pools[AWS_POOL] = "aws"
    grant = GcpExternalAccount(id="x", audience=AWS_POOL, base="instance", service_account=ROBOT)
    return await world.mint.issue(grant, world.role_session(), world.now)


async def refreshed(world: World, secret: str | None = None) -> Any:
    user = world.google.user()
    grant = GcpAuthorizedUser(
        id="u",
        client_id=user["client_id"],
        client_secret=Secret(secret or user["client_secret"]),
        refresh_token=Secret(user["refresh_token"]),
    )
    return await world.mint.issue(grant, None, world.now)


def opening(handler: Callable[[], Handler], make: Callable[..., Any], data: bytes) -> Call:
    service = handler()
    said: dict[bytes, Any] = {}  # the arithmetic is done once

    def answer(asked: Asked) -> Any:
        if asked.body not in said:
            said[asked.body] = service(asked)
        return said[asked.body]

    async def call(net: Bending) -> Any:
        net.routes = {"*": answer}
        keyring = Keyring([make(net, "https://kms.example")])
        return await keyring.open(data, trust=TRUST, audiences=WORLD["audiences"], now=NOW)

    return call


def from_https(document: bytes) -> Call:
    async def call(net: Bending) -> Any:
        net.routes = {"*": lambda _: Answer(200, document, {"ETag": '"one"'})}
        way_out: Any = net
        settings = HttpsSettings(url="https://control.example/bundle")
        return await HttpsSource(settings, upstream=way_out, clock=FakeClock(), rng=random.Random(1)).fetch()

    return call


def told_by(headers: dict[str, str], tree: dict[str, bytes]) -> Callable[[Any], Answer]:
    return lambda asked: Answer(200, tree[asked.path], headers) if asked.path in tree else Answer(404, b"", headers)


DOCUMENT = (
    b'{"accountId": "111122223333", "region": "eu-west-1", "instanceId": "i-0abc", "availabilityZone": "eu-west-1a"}'
)
EC2 = told_by(
    {"Server": "EC2ws"},
    {
        "/latest/api/token": b"token==",
        "/latest/user-data": DIRECT,
        "/latest/dynamic/instance-identity/document": DOCUMENT,
    },
)
GCE = "/computeMetadata/v1/"
GOOGLE = told_by(
    {"Metadata-Flavor": "Google", "ETag": "abcd"},
    {
        f"{GCE}instance/id": b"123456",
        f"{GCE}instance/zone": b"projects/77/zones/e-a",
        f"{GCE}project/project-id": b"proj",
        f"{GCE}project/numeric-project-id": b"77",
        f"{GCE}instance/attributes/there": DIRECT,
        f"{GCE}instance/attributes/": b'{"other": "b", "there": "x"}',
    },
)


async def user_data(net: Bending) -> Any:
    net.routes = {"*": EC2}
    way_out: Any = net
    metadata = Ec2Metadata(way_out, FakeClock())
    return await Ec2UserDataSource(
        Ec2UserDataSettings(), metadata=metadata, clock=FakeClock(), rng=random.Random(1)
    ).fetch()


def attribute(key: str) -> Call:
    async def call(net: Bending) -> Any:
        net.routes = {"*": GOOGLE}
        way_out: Any = net
        settings = GceAttributeSettings(key=key, scope="instance")
        source = GceAttributeSource(settings, metadata=GceMetadata(way_out), clock=FakeClock(), rng=random.Random(1))
        return await source.fetch()

    return call


async def on_ec2(net: Bending) -> Any:
    net.routes = {"*": EC2}
    way_out: Any = net
    return await ec2_machine(Ec2Metadata(way_out, FakeClock()))


async def on_gce(net: Bending) -> Any:
    net.routes = {"*": GOOGLE}
    way_out: Any = net
    return await gce_machine(GceMetadata(way_out))


CALLS: dict[str, Call] = {
    "imds": minting(lambda world: world.mint.instance(Cloud.AWS, world.now), Cloud.AWS),
    "gce metadata": minting(lambda world: world.mint.instance(Cloud.GCP, world.now), Cloud.GCP),
    "gce identity token": minting(lambda world: world.mint.id_token(None, None, "aud", world.now), Cloud.GCP),
    "sts session": minting(lambda world: world.mint.issue(world.keys(), None, world.now), region=None),
    "sts role": minting(assume),
    "sts web identity": minting(web_identity),
    "sts refuses": minting(lambda world: assume(world, trusts=frozenset())),
    "broker": minting(lambda world: world.mint.issue(HttpBroker(id="h", url=f"{BROKER}/credentials"), None, world.now)),
    "google iam": minting(impersonate),
    "google iam refuses": minting(lambda world: impersonate(world, token_creators=frozenset())),
    "google identity token": minting(impersonated_id_token),
    "google federation": minting(federated),
    "google user": minting(refreshed),
    "google refuses": minting(lambda world: refreshed(world, "other")),
    "google key": minting(lambda world: world.mint.issue(world.service_account(), None, world.now)),
    "aws kms agreement": opening(aws, p256_key, DIRECT),
    "aws kms decryption": opening(aws, aws_rsa_key, FOR_RSA),
    "gcp kms": opening(gcp, gcp_key, FOR_RSA),
    "https": from_https(DIRECT),
    "https, wrapped": from_https(msgspec.json.encode({"bundle": DIRECT.decode()})),
    "user-data": user_data,
    "gce attribute": attribute("there"),
    "gce attribute that is not there": attribute("not-there"),
    "ec2 machine": on_ec2,
    "gce machine": on_gce,
}
ALSO: dict[str, tuple[type, ...]] = {
    "imds": (type(None),),  # a list of roles without one is EC2's own word
    "user-data": (type(None),),  # other people's documents
    "gce attribute": (type(None),),  # an empty one
    "ec2 machine": (type(None),),  # a document without a name
    "aws kms decryption": (SealError,),  # anybody may seal a key of the wrong length
    "gcp kms": (SealError,),
}
"""What else a bent answer, that is a success and the service's own, may come to."""


async def outcome(name: str, net: Bending) -> Any:
    try:
        return await CALLS[name](net)
    except (Denied, BundleError, *PASSING) as error:
        return error


def unusable(found: Any) -> bool:
    """Whether it is a credential with a part of the wrong type."""
    value = found.credential if isinstance(found, Issued) else found
    if not isinstance(value, AwsCredential | GoogleToken):
        return False
    texts = [getattr(value, name) for name in value.__struct_fields__ if not name.endswith("_at")]
    return not all(isinstance(one, str | Secret | tuple | None) for one in texts)


@pytest.mark.parametrize("name", CALLS)
def test_no_part_of_an_answer_may_be_wrong_unseen(name: str) -> None:
    """It ends in what was asked for, whole, or in an error that is told; and no garbage is a verdict."""

    async def scenario() -> None:
        plain = Bending()
        good = await outcome(name, plain)
        for at, answer in enumerate(plain.seen):
            for body in bent(answer.body):
                net = Bending(at, lambda said, body=body: replace(said, body=body))  # type: ignore[misc]
                found = await outcome(name, net)
                # Whoever was asked afterwards, with what the bent answer gave, may well refuse it.
                refused = (Denied,) if answer.status >= 400 or len(net.seen) > at + 1 else ()
                assert isinstance(found, (*PASSING, type(good), *ALSO.get(name, ()), *refused)), (at, body[:200], found)
                assert not unusable(found), (at, body[:200], found)

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("status", [200, 204, 302, 403, 404])
@pytest.mark.parametrize(
    "name", ["imds", "gce metadata", "gce identity token", "user-data", "ec2 machine", "gce machine"]
)
def test_a_stranger_between_two_answers_of_the_metadata_service_says_nothing(name: str, status: int) -> None:
    """Once the service has answered, a page or a refusal without its mark is an outage: not "there is none"."""
    unmarked = CIMultiDictProxy(CIMultiDict({"Content-Type": "text/plain", "Content-Length": "1"}))

    async def scenario() -> None:
        plain = Bending()
        await outcome(name, plain)
        for at in range(1, len(plain.seen)):
            net = Bending(at, lambda said: replace(said, status=status, body=b"x", headers=unmarked))
            found = await outcome(name, net)
            assert not isinstance(found, Denied | None), (at, found)

    asyncio.run(asyncio.wait_for(scenario(), 60))
