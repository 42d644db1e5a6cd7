"""However an answer travels: another form of the same is the same, and no oddity on the way is anybody's verdict."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agent.core.errors import KeyUnavailableError, SourceError, Transient, UpstreamError
from agent.core.model import AwsAssumeRole, Cloud, GcpImpersonation, HttpBroker
from agent.sources.https import HttpsSettings, HttpsSource
from tests.fakes.clock import FakeClock
from tests.fakes.net import Answer
from tests.fakes.wire import BROKEN, SAME, Pieces, Wire
from tests.unit.bundle.kit import NOW, TRUST, WORLD
from tests.unit.keys.test_kms import DIRECT, FOR_RSA, aws, gcp, gcp_key, p256_key
from tests.unit.providers.support import BROKER, READER, ROBOT, World

from agent.keys import Keyring  # isort: skip

Oddity = Callable[[Answer], Pieces]
PASSING = (Transient, UpstreamError, SourceError, KeyUnavailableError)
"""What is tried again by itself: none of them is final, and none takes anything away."""


def minting(
    act: Callable[[World], Awaitable[Any]], machine: Cloud | None = None
) -> Callable[[Oddity, str], Awaitable[Any]]:
    async def call(oddity: Oddity, host: str) -> Any:
        world = World()
        wire = Wire(world.net.routes, oddity, host=host)
        world.go_out_by(wire, allowed_origins=(BROKER,), machine=machine)
        try:
            return await act(world)
        finally:
            await wire.close()

    return call


async def impersonate(world: World) -> Any:
    world.google.account(ROBOT)
    grant = GcpImpersonation(id="i", target_principal=ROBOT, base="b")
    return await world.mint.issue(grant, world.google_token(), world.now)


async def aws_kms(oddity: Oddity, host: str) -> Any:
    wire: Any = Wire({"*": aws()}, oddity, host=host)
    keyring = Keyring([p256_key(wire, "https://kms.example")])
    try:
        return await keyring.open(DIRECT, trust=TRUST, audiences=WORLD["audiences"], now=NOW)
    finally:
        await wire.close()


async def gcp_kms(oddity: Oddity, host: str) -> Any:
    wire: Any = Wire({"*": gcp()}, oddity, host=host)
    keyring = Keyring([gcp_key(wire, "https://kms.example")])
    try:
        return await keyring.open(FOR_RSA, trust=TRUST, audiences=WORLD["audiences"], now=NOW)
    finally:
        await wire.close()


async def https_source(oddity: Oddity, host: str) -> Any:
    held = Answer(200, DIRECT, {"ETag": '"one"', "Content-Type": "application/jose"})
    wire: Any = Wire({"*": lambda _: held}, oddity, host=host)
    settings = HttpsSettings(url="https://control.example/bundle")
    try:
        return await HttpsSource(settings, upstream=wire, clock=FakeClock(), rng=random.Random(1)).fetch()
    finally:
        await wire.close()


CALLS: dict[str, Callable[[Oddity, str], Awaitable[Any]]] = {
    "imds": minting(lambda world: world.mint.instance(Cloud.AWS, world.now), Cloud.AWS),
    "gce metadata": minting(lambda world: world.mint.instance(Cloud.GCP, world.now), Cloud.GCP),
    "sts": minting(
        lambda world: world.mint.issue(
            AwsAssumeRole(id="r", role_arn=READER, base="b"), world.role_session(), world.now
        )
    ),
    "google iam": minting(impersonate),
    "google token": minting(lambda world: world.mint.issue(world.service_account(), None, world.now)),
    "broker": minting(lambda world: world.mint.issue(HttpBroker(id="h", url=f"{BROKER}/credentials"), None, world.now)),
    "aws kms": aws_kms,
    "gcp kms": gcp_kms,
    "https source": https_source,
}


UNDERSTOOD = {
    ("https source", "compressed unasked"),  # tools compress what they put into a bucket
}


@pytest.mark.parametrize("who", CALLS)
def test_another_form_of_the_same_answer_is_the_same(who: str) -> None:
    """In pieces, chunked, after an interim answer, by an older protocol, over IPv6: it is understood."""
    for name, oddity in SAME.items():
        for host in ("127.0.0.1", "::1") if name == "as usual" else ("127.0.0.1",):
            found = asyncio.run(asyncio.wait_for(CALLS[who](oddity, host), 20))
            assert found is not None, name


@pytest.mark.parametrize("oddity", BROKEN)
@pytest.mark.parametrize("who", CALLS)
def test_what_is_odd_on_the_way_is_tried_again(who: str, oddity: str) -> None:
    """It ends in time, crashes nothing, and is neither a refusal nor "there is none"."""
    if (who, oddity) in UNDERSTOOD:
        asyncio.run(asyncio.wait_for(CALLS[who](BROKEN[oddity], "127.0.0.1"), 20))
        return
    with pytest.raises(PASSING):
        asyncio.run(asyncio.wait_for(CALLS[who](BROKEN[oddity], "127.0.0.1"), 20))
