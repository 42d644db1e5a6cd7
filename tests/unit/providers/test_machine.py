"""Which machine this is: a name, or "ask again"; never what a failing service happened to say."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from aiohttp import web

from agent import bundle
from agent.providers.machine import ec2_machine, gce_machine
from agent.upstream import Ec2Metadata, GceMetadata, Upstream, UpstreamError
from tests.fakes.clock import FakeClock
from tests.fakes.ec2_metadata import Ec2MetadataService
from tests.fakes.gce_metadata import GceMetadataServer

PAGE = (200, "<html>upstream error</html>")
BARE = (200, "i-0abc12345")


def document(instance_id: str) -> tuple[int, str]:
    return 200, f'{{"region": "eu-west-1", "instanceId": "{instance_id}"}}'


async def named(about: tuple[int, str], bare: tuple[int, str]) -> str | None:
    async def answer(request: web.Request) -> web.Response:
        if request.method == "PUT":
            return web.Response(text="token")
        status, text = about if "instance-identity" in request.path else bare
        return web.Response(status=status, text=text)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    upstream = Upstream()
    try:
        found = await ec2_machine(Ec2Metadata(upstream, FakeClock(), f"http://{host}:{port}"))
    finally:
        await upstream.close()
        await runner.cleanup()
    return found.instance_id if found is not None else None


@pytest.mark.parametrize(
    ("about", "bare"),
    [
        *(((status, ""), BARE) for status in (400, 401, 429, 500, 503)),
        ((503, ""), PAGE),
        ((404, ""), PAGE),
        ((404, ""), (200, "i-0abc 12345")),
        (document(""), PAGE),
        (document(""), (503, "")),
        (document("<html>"), BARE),
        (document("i-0abc\\n"), BARE),
        (PAGE, BARE),
    ],
)
def test_what_is_no_name_is_no_name_of_this_machine(about: tuple[int, str], bare: tuple[int, str]) -> None:
    """A service that fails or answers garbage names nobody: by another name, a withdrawal would be forgotten."""
    with pytest.raises(UpstreamError):
        asyncio.run(named(about, bare))


async def numbered(status: int, text: str) -> str | None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers={"Metadata-Flavor": "Google"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    upstream = Upstream()
    try:
        found = await gce_machine(GceMetadata(upstream, f"http://{host}:{port}"))
    finally:
        await upstream.close()
        await runner.cleanup()
    return found.instance_id if found is not None else None


@pytest.mark.parametrize(
    ("status", "text"),
    [
        *((status, "42") for status in (206, 400, 403, 429, 500, 502, 503)),
        (204, ""),
        (200, ""),
        (200, "1 2"),
        (200, "9" * 21),
    ],
)
def test_an_error_of_gce_is_not_that_there_is_none(status: int, text: str) -> None:
    """A server that proves to be Google's and fails says nothing of the machine: ask again."""
    with pytest.raises(UpstreamError):
        asyncio.run(numbered(status, text))


@pytest.mark.parametrize(("status", "expected"), [(200, "gcp:42"), (404, None)])
def test_gce_has_a_number_or_none(status: int, expected: str | None) -> None:
    """Emulators without instances say 404: such a machine is called otherwise."""
    assert asyncio.run(numbered(status, "42\n")) == expected


@pytest.mark.parametrize("text", ["i-0abc12345", "i-0abc12345\n"])
@pytest.mark.parametrize("nameless", [(404, ""), (200, '{"region": "eu-west-1"}'), document("")])
def test_a_bare_name_is_the_name_of_the_document(nameless: tuple[int, str], text: str) -> None:
    """Whichever of the two a service has, the machine is called the same, or it would be another one tomorrow."""
    names = {asyncio.run(named(nameless, (200, text))), asyncio.run(named(document("i-0abc12345"), (404, "")))}

    assert names == {"aws:i-0abc12345"}


def test_a_machine_answers_to_the_audience_that_the_format_names() -> None:
    """What a sender writes for one machine, what that machine answers to and what FORMAT.md says are the same text."""
    pattern = re.compile(r"^\| `(urn:credbundle:instance:[^`]+)` \|", re.MULTILINE)
    documented = pattern.findall(Path(bundle.__file__).with_name("FORMAT.md").read_text())
    aws = {"account": "123456789012", "region": "eu-west-1", "instance id": "i-0abc12345"}
    gcp = {"project id": "a-project", "numeric instance id": "4520031799277581759"}

    async def audiences() -> list[frozenset[str]]:
        upstream = Upstream()
        ec2 = Ec2MetadataService(account_id=aws["account"], region=aws["region"], instance_id=aws["instance id"])
        gce = GceMetadataServer(project_id=gcp["project id"], instance_id=int(gcp["numeric instance id"]))
        try:
            async with ec2, gce:
                found = [
                    await ec2_machine(Ec2Metadata(upstream, FakeClock(), ec2.url)),
                    await gce_machine(GceMetadata(upstream, gce.url)),
                ]
        finally:
            await upstream.close()
        return [one.audiences for one in found if one is not None]

    written = [bundle.audience_aws_instance(*aws.values()), bundle.audience_gcp_instance(*gcp.values())]
    named = [re.sub("<(.*?)>", lambda word: (aws | gcp)[word[1]], text) for text in documented]
    assert written == named
    assert asyncio.run(audiences()) == [frozenset({text}) for text in written]
