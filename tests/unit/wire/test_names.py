"""The words of the dialects are written once, and they are the clouds' own.

The fakes spell each from the clouds' manuals and import nothing of ours: a slip in :mod:`agent.wire.names` asks them
for what they do not have.
"""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from agent.wire import names
from tests.fakes import ec2_metadata, gce_metadata
from tests.fakes.machine_metadata import FakeEc2Metadata, FakeGceMetadata
from tests.fakes.net import Answer, Asked

AGENT = Path(names.__file__).parents[1]
EC2_PATHS = sorted(value for name, value in vars(names).items() if re.fullmatch(r"EC2_\w+_PATH", name))
GCE_PATHS = sorted(value for name, value in vars(names).items() if re.fullmatch(r"GCE_\w+_PATH", name))
NOT_IN_ALL_FAKES = {names.EC2_USER_DATA_PATH, names.EC2_INSTANCE_ID_PATH}


async def statuses(url: str, paths: list[str], headers: dict[str, str]) -> dict[str, int]:
    found = {}
    async with aiohttp.ClientSession() as session:
        for path in paths:
            async with session.get(url + path, headers=headers) as answer:
                found[path] = answer.status
    return found


def test_ec2s_words_are_those_of_its_service() -> None:
    """Under each of our names for something of EC2 the service has it."""

    async def main() -> None:
        async with ec2_metadata.Ec2MetadataService(user_data=b"x") as ec2:
            ec2.attach("role", ec2_metadata.Key("A", "s", "t"))
            async with (
                aiohttp.ClientSession() as session,
                session.put(ec2.url + names.EC2_TOKEN_PATH, headers={names.EC2_TTL_HEADER: "60"}) as answer,
            ):
                assert answer.status == 200
                assert (names.EC2_TTL_ECHO, "60") in answer.headers.items()
                headers = {names.EC2_TOKEN_HEADER: await answer.text()}
            paths = [path for path in EC2_PATHS if path != names.EC2_TOKEN_PATH]
            assert await statuses(ec2.url, paths, headers) == dict.fromkeys(paths, 200)
            assert set(await statuses(ec2.url, paths, {})) == set(paths)

    asyncio.run(main())


def test_gces_words_are_those_of_its_server() -> None:
    """Under each of our names for something of GCE the server has it, for either of its headers and no other."""

    async def main() -> None:
        async with gce_metadata.GceMetadataServer(
            attributes={"key": "x", "enable-guest-attributes": "TRUE"}, guest_attributes={"ours/key": "x"}
        ) as gce:
            asked = [path + "?audience=a" if path == names.GCE_IDENTITY_PATH else path for path in GCE_PATHS]
            asked += [names.gce_attributes("instance") + "key", names.gce_attributes("project")]
            asked += [names.GCE_GUEST_ATTRIBUTES + "ours/key"]
            for headers in ({names.GCE_FLAVOR_HEADER: names.GCE_FLAVOR}, {names.GCE_LEGACY_HEADER: "True"}):
                assert await statuses(gce.url, asked, headers) == dict.fromkeys(asked, 200)
            assert await statuses(gce.url, asked, {}) == dict.fromkeys(asked, 403)

    asyncio.run(main())


def test_the_fakes_agree() -> None:
    """What the one fake of each cloud calls its things, the other calls them too."""

    def now() -> datetime:
        return datetime(2026, 11, 24, tzinfo=UTC)

    def ask(fake: FakeEc2Metadata | FakeGceMetadata, method: str, path: str, headers: dict[str, str]) -> Answer:
        answer = fake(Asked(method, path, {name.lower(): value for name, value in headers.items()}, b"", ""))
        assert isinstance(answer, Answer)
        return answer

    ec2 = FakeEc2Metadata(
        now, lambda: dict.fromkeys(("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration"), "x")
    )
    token = ask(ec2, "PUT", names.EC2_TOKEN_PATH, {names.EC2_TTL_HEADER: "60"})
    assert (names.EC2_TTL_ECHO, "60") in token.headers.items()
    for path in set(EC2_PATHS) - NOT_IN_ALL_FAKES - {names.EC2_TOKEN_PATH}:
        assert ask(ec2, "GET", path, {names.EC2_TOKEN_HEADER: token.body.decode()}).status == 200, path
    gce = FakeGceMetadata(now, lambda: ("x", 60), str)
    for path in (names.GCE_ACCOUNT_PATH, names.GCE_TOKEN_PATH, names.GCE_IDENTITY_PATH + "?audience=a"):
        answer = ask(gce, "GET", path, {names.GCE_FLAVOR_HEADER: names.GCE_FLAVOR})
        assert (answer.status, answer.headers[names.GCE_FLAVOR_HEADER]) == (200, names.GCE_FLAVOR), path


# -- written once -----------------------------------------------------------------------------------------------------

TOO_PLAIN = {names.GCE_FLAVOR, names.GCE_VERSION, names.USER_AGENT_PREFIX}
WORDS = sorted({v for k, v in vars(names).items() if k.isupper() and isinstance(v, str)} - TOO_PLAIN)
RETYPED = re.compile(
    "|".join([*map(re.escape, WORDS), r"^/latest(?:/|\Z)", f"^{names.USER_AGENT_PREFIX}"]), re.IGNORECASE
)
SCHEMA = re.compile(r"credential-agent/(?:\Z|doctor|status)")
"""The names of documents that commands print; no user agent."""
A_GRAMMAR = ("config",)
"""What an operator may write is checked there by patterns, in which the words cannot be told apart."""


def retyped(source: str) -> Iterator[str]:
    """The texts of ``source`` in which a word of the dialects stands, apart from docstrings and prose."""
    tree = ast.parse(source)
    said = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant | ast.JoinedStr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple):
            parts = tuple(getattr(element, "value", None) for element in node.elts)
            if parts == names.EC2_IAM:
                yield f"{node.lineno}: {parts}"
        if not isinstance(node, ast.Constant) or id(node) in said:
            continue
        text = node.value.decode("latin-1") if isinstance(node.value, bytes) else node.value
        if not isinstance(text, str) or SCHEMA.match(text):
            continue
        prose = " " in text.strip() and "\r\n" not in text
        if RETYPED.search(text) and not prose:
            yield f"{node.lineno}: {text!r}"


def test_no_word_of_a_dialect_is_typed_twice() -> None:
    """A path, a header or an address of a metadata service stands in one file."""
    found = {
        str(path.relative_to(AGENT)): list(retyped(path.read_text()))
        for path in sorted(AGENT.rglob("*.py"))
        if path != Path(names.__file__) and not str(path.relative_to(AGENT)).startswith(A_GRAMMAR)
    }
    assert {path: where for path, where in found.items() if where} == {}


@pytest.mark.parametrize(
    "line",
    [
        'PATH = "/latest/meta-data/instance-id"',
        'url = f"{base}/computeMetadata/v1/instance/id"',
        'headers = {"metadata-flavor": "Google"}',
        'HOSTS = ("169.254.170.2",)',
        'head = b"GET / HTTP/1.1\\r\\nHost: 169.254.169.254\\r\\n"',
        'if below == ("meta-data", "iam"): ...',
    ],
)
def test_a_word_typed_anew_is_found(line: str) -> None:
    """The search sees a word in a path, in an f-string, in other letters, among bytes and as segments."""
    assert list(retyped(line))


def test_the_rules_close_what_the_names_say() -> None:
    """The closed gate, whose file stands alone, refuses the addresses at which SDKs look and no others."""
    rules = (AGENT / "host/closed.nft").read_text()
    sets = re.findall(r"set metadata_ip6? \{ .* elements = \{ (.*) \}; \}", rules)

    listed = {address for found in sets for address in found.split(", ")}
    assert listed == {value for name, value in vars(names).items() if name.endswith(("_IPV4", "_IPV6"))}
    assert listed == set(names.METADATA_ADDRESSES)
