"""Our fake STS beside moto's: botocore asks both the same, and their answers have one shape on the wire."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.fakes.moto_server import available, moto
from tests.fakes.net import serve
from tests.fakes.sts import FakeSts

pytestmark = pytest.mark.skipif(not available(), reason="needs moto[server]")

REGION = "eu-west-1"
ROLE = "arn:aws:iam::123456789012:role/reader"
Call = Callable[[Any], dict[str, Any]]

CALLS: dict[str, Call] = {
    "GetCallerIdentity": lambda sts: sts.get_caller_identity(),
    "GetSessionToken": lambda sts: sts.get_session_token(DurationSeconds=900),
    "AssumeRole": lambda sts: sts.assume_role(RoleArn=ROLE, RoleSessionName="name", DurationSeconds=3600),
}


class Wire:
    """A botocore client of STS at ``url``, and the bytes of its last answer."""

    def __init__(self, url: str, key: tuple[str, str]) -> None:
        import botocore.session

        session = botocore.session.Session()
        session.set_credentials(*key)
        self.client = session.create_client("sts", region_name=REGION, endpoint_url=url)
        self.body = b""
        self.date: datetime | None = None
        self.client.meta.events.register("before-parse.sts.*", self._note)

    def _note(self, response_dict: dict[str, Any], **_: object) -> None:
        self.body = response_dict["body"]
        self.date = parsedate_to_datetime(response_dict["headers"]["Date"])


def skeleton(element: ET.Element) -> tuple[str, frozenset[Any]]:
    """An element's name and its children's, namespaces included, without text and order."""
    return element.tag, frozenset(skeleton(child) for child in element)


def both(call: Call) -> list[tuple[dict[str, Any], Wire]]:
    """What ``call`` gets from our fake and from moto."""
    answers = []

    def ask(url: str, key: tuple[str, str]) -> None:
        wire = Wire(url, key)
        answers.append((call(wire.client), wire))

    async def ours() -> None:
        fake = FakeSts(lambda: datetime.now(UTC), random.Random(1))
        fake.role(ROLE)
        key = fake.user()
        async with serve(fake) as url:
            await asyncio.to_thread(ask, url, key)

    asyncio.run(ours())
    with moto() as url:
        ask(url, ("AKIAEXAMPLEEXAMPLE00", "secret"))
    return answers


#: What moto says and STS does not always, or the other way round.
OPTIONAL = {"PackedPolicySize"}


@pytest.mark.parametrize("operation", CALLS)
def test_the_fake_sts_answers_in_the_shape_of_motos(operation: str) -> None:
    """The documents have the same elements, in the same namespace, and botocore reads the same members from both."""
    (mine, my_wire), (theirs, their_wire) = both(CALLS[operation])
    drop = "{https://sts.amazonaws.com/doc/2011-06-15/}"

    def pruned(body: bytes) -> Any:
        root = ET.fromstring(body)
        for parent in list(root.iter()):
            for child in list(parent):
                if child.tag.removeprefix(drop) in OPTIONAL:
                    parent.remove(child)
        return skeleton(root)

    assert pruned(my_wire.body) == pruned(their_wire.body)
    for answer in (mine, theirs):
        answer.pop("ResponseMetadata")
        for name in OPTIONAL:
            answer.pop(name, None)
    assert {name: type(value) for name, value in mine.items()} == {name: type(value) for name, value in theirs.items()}


@pytest.mark.parametrize(("operation", "seconds"), [("GetSessionToken", 900), ("AssumeRole", 3600)])
def test_a_session_ends_as_long_after_the_answers_date_as_was_asked(operation: str, seconds: int) -> None:
    """Both count the life of a session from about the instant of the answer."""
    for answer, wire in both(CALLS[operation]):
        assert wire.date is not None
        life = answer["Credentials"]["Expiration"] - wire.date
        assert abs(life - timedelta(seconds=seconds)) <= timedelta(seconds=5)
