"""What a metadata service holds for this worker, however the answer travels: no oddity on the way says that there is none."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agent import bundle, config
from agent.bundle.short_key import short_key
from agent.core.errors import SourceError, UnansweredError, UpstreamError
from agent.daemon.launched import Launched
from agent.providers.machine import ec2_machine
from agent.sources.ec2 import Ec2UserDataSettings, Ec2UserDataSource
from agent.sources.gce import GceAttributeSettings, GceAttributeSource
from agent.upstream import Ec2Metadata, GceMetadata
from agent.wire.names import EC2_IDENTITY_PATH, EC2_TAGS, EC2_TOKEN_PATH, EC2_USER_DATA_PATH, METADATA_URL
from tests.fakes.clock import FakeClock
from tests.fakes.net import Answer, Asked
from tests.fakes.wire import BROKEN, SAME, Pieces, Wire
from tests.unit.keys.test_kms import DIRECT

Oddity = Callable[[Answer], Pieces]
SIGNER = bundle.SigningKey.generate("Ed25519").verify_key()
TAG, KEY = "credential-agent-signer", "credential-bundle"
ATTRIBUTES = "/computeMetadata/v1/instance/attributes/"
DOCUMENT = {"accountId": "111122223333", "region": "eu-west-1", "instanceId": "i-0123456789abcdef0"}
EC2_HAS = {
    EC2_TOKEN_PATH: b"token",
    EC2_USER_DATA_PATH: DIRECT,
    EC2_IDENTITY_PATH: json.dumps(DOCUMENT).encode(),
    EC2_TAGS + TAG: short_key(SIGNER).encode(),
}
GCE_HAS = {
    ATTRIBUTES: f"{KEY}\n{TAG}\n".encode(),
    ATTRIBUTES + KEY: DIRECT,
    ATTRIBUTES + TAG: short_key(SIGNER).encode(),
}


class OnTheWay(Wire):
    """Both services, as each of them marks its answers; one path of them is answered oddly."""

    def __init__(self, path: str, oddity: Oddity) -> None:
        super().__init__({METADATA_URL: self._says}, oddity)
        self._path, self._odd = path, oddity
        self.ec2, self.gce = Ec2Metadata(self, FakeClock()), GceMetadata(self)  # type: ignore[arg-type]

    def _says(self, asked: Asked) -> Answer:
        self.oddity = self._odd if asked.path == self._path else SAME["as usual"]
        of_gce = asked.path.startswith("/computeMetadata/")
        marks = {"Metadata-Flavor": "Google"} if of_gce else {"Server": "EC2ws"}
        body = (GCE_HAS if of_gce else EC2_HAS).get(asked.path)
        return Answer(404, b"", marks) if body is None else Answer(200, body, marks)


async def user_data(way: OnTheWay) -> Any:
    source = Ec2UserDataSource(Ec2UserDataSettings(), metadata=way.ec2, clock=FakeClock(), rng=random.Random(1))
    return await source.fetch()


async def attribute(way: OnTheWay) -> Any:
    await way.gce.get(ATTRIBUTES)  # it has marked an answer before: who it is is known
    settings = GceAttributeSettings(key=KEY, scope="instance")
    return await GceAttributeSource(settings, metadata=way.gce, clock=FakeClock(), rng=random.Random(1)).fetch()


async def name(way: OnTheWay) -> Any:
    return await ec2_machine(way.ec2)


async def _signers(way: OnTheWay, entry: config.LaunchSignersEntry) -> Any:
    found = Launched([entry], ec2=way.ec2, gce=way.gce, credentials_directory=None, left={}, clock=FakeClock())
    await found.look()
    if found.silent:
        raise UnansweredError(found.silent)
    return found.trust.signers or None


async def tag(way: OnTheWay) -> Any:
    return await _signers(way, config.Ec2TagSigners(issuers=("laptop:*",), tag=TAG))


async def attribute_of_signers(way: OnTheWay) -> Any:
    await way.gce.get(ATTRIBUTES)
    return await _signers(way, config.GceAttributeSigners(issuers=("laptop:*",), key=TAG))


READERS: dict[str, tuple[Callable[[OnTheWay], Awaitable[Any]], str]] = {
    "ec2's session token": (user_data, EC2_TOKEN_PATH),
    "user-data": (user_data, EC2_USER_DATA_PATH),
    "ec2's name": (name, EC2_IDENTITY_PATH),
    "a tag": (tag, EC2_TAGS + TAG),
    "an attribute": (attribute, ATTRIBUTES + KEY),
    "an attribute of signers": (attribute_of_signers, ATTRIBUTES + TAG),
}

THEIR_WORD = {
    # Read as if it had not been compressed: tools compress user-data.
    ("user-data", "compressed unasked"): True,
    ("an attribute", "compressed unasked"): True,
    ("a tag", "compressed unasked"): False,
    ("an attribute of signers", "compressed unasked"): False,
    # Without a length that contradicts it, an empty value is the service's own.
    ("user-data", "nothing"): False,
    ("an attribute", "nothing"): False,
    ("a tag", "nothing"): False,
    ("an attribute of signers", "nothing"): False,
}
"""What is an answer all the same, and whether it finds what is there."""
TOO_LONG = {(reader, "a body without an end") for reader in ("ec2's session token", "user-data", "an attribute")}
"""Whoever has more there than any bundle may have, has none: a source says that it is broken, and is not waited for."""


def _read(reader: str, oddity: Oddity) -> Any:
    async def scenario() -> Any:
        read, path = READERS[reader]
        way = OnTheWay(path, oddity)
        try:
            return await asyncio.wait_for(read(way), 30)
        finally:
            await way.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize("reader", READERS)
def test_another_form_of_the_same_answer_is_read_the_same(reader: str) -> None:
    """In pieces, chunked, after an interim answer, by an older protocol."""
    assert {name: _read(reader, oddity) is not None for name, oddity in SAME.items()} == dict.fromkeys(SAME, True)


@pytest.mark.parametrize("oddity", BROKEN)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_odd_on_the_way_does_not_say_that_there_is_nothing(reader: str, oddity: str) -> None:
    """It is no answer: whoever waits for what is there waits on, and no worker is the machine meanwhile."""
    if (reader, oddity) in THEIR_WORD:
        assert (_read(reader, BROKEN[oddity]) is not None) == THEIR_WORD[reader, oddity]
        return
    with pytest.raises((UnansweredError, UpstreamError, *([SourceError] if (reader, oddity) in TOO_LONG else []))):
        _read(reader, BROKEN[oddity])
