"""Our fake EC2 metadata service beside AWS's own mock of it: what they say alike, and where they differ and why."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from agent.host.clock import SystemClock
from agent.providers.machine import ec2_machine
from agent.upstream import Ec2Metadata, Upstream
from tests.conformance.others import moto_clouds
from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.moto_server import available
from tests.system.harness import World

MOCK = Path(__file__).parent / "metadata" / ".build" / "aemm"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
ROLES = "/latest/meta-data/iam/security-credentials"

needs_mock = pytest.mark.skipif(not MOCK.exists(), reason="run tests/conformance/metadata/setup (needs Go)")


class Said(NamedTuple):
    """What of an answer the two must have in common: the status, and the shape of what a 200 carries."""

    status: int
    shape: str


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """AWS's mock in IMDSv2 mode, as a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("aemm")
    process = subprocess.Popen(
        [MOCK, "--imdsv2", "--hostname", "127.0.0.1", "--port", str(port)],
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the mock does not listen"
                assert process.poll() is None, "the mock has ended"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


#: method, path, headers ({token}: a live one); each must get the same status and shape from both.
ALIKE: list[tuple[str, str, dict[str, str]]] = [
    ("PUT", "/latest/api/token", {TTL: "60"}),
    ("PUT", "/latest/api/token", {TTL: "21600"}),
    ("PUT", "/latest/api/token", {}),
    ("PUT", "/latest/api/token", {TTL: "0"}),
    ("PUT", "/latest/api/token", {TTL: "21601"}),
    ("PUT", "/latest/api/token", {TTL: "soon"}),
    ("GET", "/latest/meta-data/", {}),
    ("GET", "/latest/meta-data/", {TOKEN: "wrong"}),
    ("GET", ROLES + "/baskinc-role", {}),
    ("GET", "/latest", {TOKEN: "{token}"}),
    ("GET", "/latest/", {TOKEN: "{token}"}),
    ("GET", "/latest/meta-data", {TOKEN: "{token}"}),
    ("GET", "/latest/meta-data/", {TOKEN: "{token}"}),
    ("GET", "/latest/meta-data/placement/", {TOKEN: "{token}"}),
    ("GET", "/latest/meta-data/placement/availability-zone", {TOKEN: "{token}"}),
    ("GET", "/latest/meta-data/placement/region", {TOKEN: "{token}"}),
    ("GET", "/latest/meta-data/instance-id", {TOKEN: "{token}"}),
    ("GET", "/latest/meta-data/mac", {TOKEN: "{token}"}),
    ("GET", "/latest/meta-data/services/domain", {TOKEN: "{token}"}),
    ("GET", "/latest/meta-data/iam/info", {TOKEN: "{token}"}),
    ("GET", ROLES, {TOKEN: "{token}"}),
    ("GET", ROLES + "/", {TOKEN: "{token}"}),
    ("GET", ROLES + "/other", {TOKEN: "{token}"}),
    ("GET", "/latest/dynamic/instance-identity/document", {TOKEN: "{token}"}),
    ("GET", "/latest/user-data", {TOKEN: "{token}"}),
    ("GET", "/latest/nothing", {TOKEN: "{token}"}),
    ("GET", "/latest/meta-data/nothing", {TOKEN: "{token}"}),
    ("GET", "/nothing", {TOKEN: "{token}"}),
]

#: What the mock does not do as EC2's user guide says; our fake follows the guide.
DIFFERENT: list[tuple[tuple[str, str, dict[str, str]], int, int, str]] = [
    (("PUT", "/latest/api/token", {TTL: "60", "X-Forwarded-For": "10.0.0.1"}), 403, 200, "the guide: refused"),
]


async def ask(url: str, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    async with aiohttp.ClientSession(url) as http:
        live = await (await http.put("/latest/api/token", headers={TTL: "60"})).text()
        sent = {name: value.replace("{token}", live) for name, value in headers.items()}
        async with http.request(method, path, headers=sent) as answer:
            return answer.status, (await answer.read()).decode()


def shape(body: str) -> str:
    """A JSON document by its members and their kinds, a listing of directories as that, anything else as text."""
    try:
        document = json.loads(body)
    except ValueError:
        return "lines" if re.search(r"\S\n\S", body) else "text"
    if not isinstance(document, dict):
        return "text"
    # The identity document grew over the years: what SDKs read must be there and of one kind.
    return "json with " + ", ".join(sorted(name for name, value in document.items() if isinstance(value, str)))


def known(shaped: str) -> set[str]:
    return set(shaped.removeprefix("json with ").split(", ")) if shaped.startswith("json with ") else set()


def our_service() -> Ec2MetadataService:
    ours = Ec2MetadataService(user_data=b"text")
    ours.attach("baskinc-role", Key("ASIAEXAMPLEEXAMPLE00", "the-secret", "the-session"))
    return ours


@needs_mock
@pytest.mark.parametrize(
    ("method", "path", "headers"), ALIKE, ids=[f"{m} {p} {'/'.join(h.values())}" for m, p, h in ALIKE]
)
def test_the_fake_answers_as_the_mock_of_aws_does(mock: str, method: str, path: str, headers: dict[str, str]) -> None:
    """The same question gets the same status from both, and a document has at least the text members of the other."""

    async def main() -> None:
        async with our_service() as ours:
            status, body = await ask(ours.url, method, path, headers)
            their_status, their_body = await ask(mock, method, path, headers)
            assert status == their_status
            if status != 200:
                return
            mine, theirs = shape(body), shape(their_body)
            assert mine.partition(" ")[0] == theirs.partition(" ")[0]
            assert known(theirs) <= known(mine)
            if path.rstrip("/") == "/latest":
                assert body.split() == their_body.split()  # the three trees, without a slash

    asyncio.run(main())


@needs_mock
@pytest.mark.parametrize(("question", "ours", "theirs", "why"), DIFFERENT)
def test_where_the_fake_and_the_mock_differ_is_written_down(
    mock: str, question: tuple[str, str, dict[str, str]], ours: int, theirs: int, why: str
) -> None:
    """A difference that is named still is one: when the mock learns better, the name goes."""

    async def main() -> None:
        async with our_service() as service:
            assert (await ask(service.url, *question))[0] == ours, why
            assert (await ask(mock, *question))[0] == theirs

    asyncio.run(main())


@needs_mock
def test_the_agent_knows_the_machine_that_the_mock_of_aws_describes(mock: str) -> None:
    """Our client of the metadata service learns name, region and zone from a service that we did not write."""

    async def main() -> None:
        out = Upstream()
        try:
            found = await ec2_machine(Ec2Metadata(out, SystemClock(), mock))
        finally:
            await out.close()
        assert found is not None
        assert found.instance_id == "aws:i-1234567890abcdef0"
        assert (found.facts.region, found.facts.availability_zone) == ("us-east-1", "us-east-1f")

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="needs moto[server]")
def test_the_agent_serves_the_role_that_moto_describes(tmp_path: Path) -> None:
    """A service that does not say of a credential that it is good, but gives it, is believed as SDKs believe it."""
    (tmp_path / "w").mkdir()
    world = World(tmp_path / "w")
    service = moto_clouds()
    try:
        service.begin()
        with world.agent({"upstream": {"ec2": service.url}, "identity": {"instance_id": "auto"}}) as agent:
            agent.ready()
            assert agent.role() == "default-role"
            credential = agent.credential()
            assert (credential["AccessKeyId"], credential["Code"]) == ("test-key", "Success")
            assert agent.imds("/latest/meta-data/placement/region").body == b"us-east-1"
            assert agent.stop() == 0
    finally:
        service.end()
