"""The GCE attribute source, against a metadata server on loopback."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from agent.core.errors import SourceError, UnansweredError
from agent.core.source import Ack
from agent.sources.gce import (
    PAUSE_CHANGED_SECONDS,
    PAUSE_POLLED_SECONDS,
    PAUSE_UNHELD_SECONDS,
    GceAttributeSettings,
    GceAttributeSource,
)
from agent.sources.watching import RetryLater
from agent.upstream import GceMetadata, Upstream
from tests.fakes.ec2_metadata import Ec2MetadataService
from tests.fakes.gce_metadata import GceMetadataServer
from tests.fakes.served import Fault
from tests.unit.sources.support import START, Listener, StepClock, run, submitted, troubles, watching

KEY = "credential-bundle"


@asynccontextmanager
async def made(**settings: Any) -> Any:
    """A server, and a source that watches it (the instance's attributes unless told otherwise)."""
    async with GceMetadataServer() as server:
        out, clock = Upstream(), StepClock()
        source = GceAttributeSource(
            GceAttributeSettings(**{"scope": "instance", **settings}),
            metadata=GceMetadata(out, server.url),
            clock=clock,
            rng=random.Random(1),
        )
        try:
            yield server, source, clock
        finally:
            await out.close()


def test_the_attribute_is_fetched_and_absence_is_none() -> None:
    """One look finds the instance's attribute, or else the project's, or else nothing."""

    async def test() -> None:
        async with made(scope="both") as (server, source, _):
            assert await source.fetch() is None
            server.set_attribute(KEY, "of the project", project=True)
            assert (await source.fetch()).data == b"of the project"
            server.set_attribute(KEY, "of the instance")
            found = await source.fetch()
            assert (found.data, found.origin) == (b"of the instance", "gce-attribute")

    run(test())


def test_a_change_is_submitted_without_polling() -> None:
    """Each change is submitted by the request that hung, and in between nothing is asked."""

    async def test() -> None:
        async with made() as (server, source, clock):
            server.set_attribute(KEY, "0")
            heard = Listener()
            async with watching(source, heard):
                for n in range(1, 4):
                    if n > 1:
                        assert await clock.step() == PAUSE_CHANGED_SECONDS
                    await server.someone_waits()
                    asked = len(server.asked)
                    await asyncio.sleep(0)
                    assert len(server.asked) == asked
                    server.set_attribute(KEY, str(n))
                    await heard.until(submitted(n + 1))
                assert heard.bodies == [b"0", b"1", b"2", b"3"]
                assert all("last_etag=" in a.path and "timeout_sec=60" in a.path for a in server.asked[1:])

    run(test())


def test_a_missing_key_is_awaited_and_not_polled() -> None:
    """While the attribute does not exist the list of attributes is waited on; other attributes' changes submit nothing."""

    async def test() -> None:
        async with made() as (server, source, clock):
            heard = Listener()
            async with watching(source, heard):
                await server.someone_waits()
                assert [path.rpartition("/")[2] for path in server.paths()] == [KEY, ""]
                server.set_attribute("ssh-keys", "someone")
                await heard.until(lambda h: h.oks == 2)
                assert await clock.step() == PAUSE_CHANGED_SECONDS
                await server.someone_waits()
                server.set_attribute(KEY, "here")
                await heard.until(lambda h: h.submitted)
                assert heard.bodies == [b"here"]
                assert heard.troubles == []

    run(test())


def test_a_deleted_attribute_is_not_a_change_and_may_come_back() -> None:
    """Deleting the attribute submits nothing and is no trouble; the same value again is not submitted twice."""

    async def test() -> None:
        async with made() as (server, source, clock):
            heard = Listener()
            server.set_attribute(KEY, "one")
            async with watching(source, heard):
                await server.someone_waits()
                server.set_attribute(KEY, None)
                await clock.step()
                await server.someone_waits()
                server.set_attribute(KEY, "one")
                await clock.step()
                await server.someone_waits()
                server.set_attribute(KEY, "two")
                await heard.until(lambda h: len(h.submitted) == 2)
                assert heard.bodies == [b"one", b"two"]
                assert heard.troubles == []

    run(test())


def test_an_attribute_that_comes_between_two_questions_is_read() -> None:
    """It was not there, and the list names it: nobody may take the first for the whole answer."""

    async def test() -> None:
        async with made() as (server, source, _):
            server.set_attribute(KEY, "one")
            real = {"Metadata-Flavor": "Google"}
            server.inject(Fault(f"/computeMetadata/v1/instance/attributes/{KEY}", status=404, headers=real, times=1))
            assert (await source.fetch()).data == b"one"

    run(test())


def test_a_change_while_nobody_waited_is_not_missed() -> None:
    """A change during an outage is submitted when the server is back, because the old etag is sent along."""

    async def test() -> None:
        async with made() as (server, source, clock):
            heard = Listener()
            server.set_attribute(KEY, "before")
            async with watching(source, heard):
                await server.someone_waits()
                server.inject(Fault(status=503, times=2))
                server.inject(Fault(drop=True, times=2))
                server.set_attribute(KEY, "during")
                while len(heard.submitted) < 2:
                    await clock.step()
                    await asyncio.sleep(0.01)
                assert heard.bodies == [b"before", b"during"]

    run(test())


def test_both_scopes_are_watched() -> None:
    """Instance and project are two channels of one source; the highest seq wins later."""

    async def test() -> None:
        async with made(scope="both") as (server, source, _):
            heard = Listener()
            async with watching(source, heard):
                while server.waiting < 2:
                    await server.someone_waits()
                    await asyncio.sleep(0.001)
                server.set_attribute(KEY, "p", project=True)
                await heard.until(lambda h: len(h.submitted) == 1)
                server.set_attribute(KEY, "i")
                await heard.until(lambda h: len(h.submitted) == 2)
                assert heard.bodies == [b"p", b"i"]
                assert [one.part for one in heard.submitted] == ["project", "instance"]

    run(test())


async def _steps(clock: StepClock) -> None:
    while True:
        await clock.step()


def test_one_attribute_says_nothing_of_the_other() -> None:
    """A broken value in the project's ends no wait for the instance's; once that has answered, it is what it is."""

    async def test() -> None:
        async with made(scope="both") as (server, source, clock):
            server.set_attribute(KEY, "-----BEGIN CREDENTIAL BUNDLE-----\naGVs", project=True)
            server.inject(Fault("/computeMetadata/v1/instance/", status=503, times=None))
            heard = Listener()
            async with watching(source, heard):
                await heard.until(lambda h: any("of the other" in error.message for error in h.troubles))
                await heard.until(lambda h: len(h.troubles) > 1)
                assert all(isinstance(error, UnansweredError) for error in heard.troubles)
                server.faults.clear()
                woken = asyncio.create_task(_steps(clock))
                await heard.until(lambda h: not isinstance(h.troubles[-1], UnansweredError))
                woken.cancel()
                assert heard.oks == 0

    run(test())


def test_on_a_machine_of_ec2_no_attribute_is_waited_for() -> None:
    """EC2's own service answers there: an image may be for both clouds."""

    async def test() -> None:
        out = Upstream()
        async with Ec2MetadataService() as ec2, AsyncExitStack() as stack:
            stack.push_async_callback(out.close)
            metadata = GceMetadata(out, ec2.url)
            source = GceAttributeSource(
                GceAttributeSettings(), metadata=metadata, clock=StepClock(), rng=random.Random(1)
            )
            heard = Listener()
            async with watching(source, heard):
                await heard.until(lambda h: h.troubles and not isinstance(h.troubles[-1], UnansweredError))

    run(test())


def test_a_server_that_cannot_wait_is_not_hammered() -> None:
    """Should an emulator answer at once without a change, it is asked every five seconds and no oftener."""

    async def test() -> None:
        async with made() as (server, source, clock):
            server.set_attribute(KEY, "x")

            async def at_once(rest: str, query: dict[str, list[str]]) -> Any:
                return server._show(rest, query)

            server._wait = at_once
            heard = Listener()
            async with watching(source, heard):
                for _ in range(4):
                    assert await clock.step() == PAUSE_UNHELD_SECONDS
                await clock.asleep()
                assert len(server.asked) == 6
                assert heard.bodies == [b"x"]

    run(test())


def test_something_else_at_that_address_is_trouble() -> None:
    """An answer without Google's flavor, a server in trouble, a huge value: trouble, and tried again with jitter."""

    async def test() -> None:
        async with made() as (server, source, clock):
            heard = Listener()
            for fault in (Fault(status=200, body=b"<html>portal</html>"), Fault(status=500), Fault(status=429)):
                server.inject(fault)
            server.set_attribute(KEY, "x" * 262_145)
            async with watching(source, heard):
                for n in range(1, 5):
                    await heard.until(troubles(n))
                    if n == 4:
                        server.set_attribute(KEY, "fine")
                    assert 0 < await clock.step() <= 60
                await heard.until(lambda h: h.submitted)
                assert heard.bodies == [b"fine"]

    run(test())


@pytest.mark.parametrize("flavor", [{}, {"Metadata-Flavor": "Google"}])
def test_a_page_in_place_of_the_list_is_no_answer(flavor: dict[str, str]) -> None:
    """A 404 for the list of attributes is the server's word only with its flavor: a page says nothing of what is there."""

    async def test() -> None:
        async with made() as (server, source, _):
            await source.fetch()  # the server has proved real
            server.inject(Fault("/computeMetadata/v1/instance/attributes/", status=404, headers=flavor, times=None))
            with pytest.raises(SourceError) as caught:
                await source.fetch()
            assert isinstance(caught.value, UnansweredError) is not bool(flavor)

    run(test())


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("flavor", [{}, {"Metadata-Flavor": "Google"}])
def test_a_refusal_in_place_of_the_value_is_no_answer(flavor: dict[str, str], *, listed: bool) -> None:
    """Some hosts leave the flavor out of their errors: then the list says whether there is something that was refused."""

    async def test() -> None:
        async with made() as (server, source, _):
            if listed:
                server.set_attribute(KEY, "there")
            await source.fetch()  # the server has proved real
            path = f"/computeMetadata/v1/instance/attributes/{KEY}"
            server.inject(Fault(path, status=403, headers=flavor, times=None))
            with pytest.raises(SourceError) as caught:
                await source.fetch()
            assert isinstance(caught.value, UnansweredError) is (listed and not flavor)

    run(test())


@pytest.mark.parametrize(
    "body", [b"[]", b"\xff", b'{"a":' + b"[" * 60_000, b""], ids=["list", "bytes", "deep", "empty"]
)
def test_a_list_of_attributes_that_is_none_is_trouble(body: bytes) -> None:
    """What should be a JSON object and is not, however deep, is the source's trouble and nothing worse."""

    async def test() -> None:
        async with made() as (server, source, _):
            real = server.answer

            async def answer(request: Any) -> Any:
                if request.path.endswith("/attributes/"):
                    return server._respond(200, body, "application/json")
                return await real(request)

            server.answer = answer
            with pytest.raises(SourceError, match="as a JSON object"):
                await source.fetch()

    run(test())


def test_a_value_that_is_no_bundle_is_submitted_for_the_decoder_to_refuse() -> None:
    """Somebody put it there under our name: they hear from the verdict what is wrong with it."""

    async def test() -> None:
        async with made() as (server, source, _):
            server.set_attribute(KEY, "hello?")
            assert (await source.fetch()).data == b"hello?"
            server.set_attribute(KEY, "-----BEGIN CREDENTIAL BUNDLE-----\naGVsbG8=\n-----END CREDENTIAL BUNDLE-----\n")
            assert (await source.fetch()).data == b"hello"
            server.set_attribute(KEY, "-----BEGIN CREDENTIAL BUNDLE-----\naGVs")
            with pytest.raises(SourceError):
                await source.fetch()

    run(test())


def test_verdicts_go_to_a_guest_attribute_where_they_are_enabled() -> None:
    """With guest attributes the control plane reads the verdict; without them nothing happens, and nothing is raised."""

    async def test() -> None:
        async with made() as (server, source, _):
            said: dict[str, Any] = {"outcome": "refused", "code": "expired", "seq": 9, "part": "project"}
            ack = Ack(origin="gce-attribute", at=START, reason="too late", **said)
            await source.acknowledge(ack)
            assert server.guest_attributes == {}
            server.set_attribute("enable-guest-attributes", "TRUE")
            await source.acknowledge(ack)
            assert said.items() <= json.loads(server.guest_attributes[f"credential-agent/{KEY}"]).items()
            await server.stop()
            await source.acknowledge(ack)
        async with made(acknowledge=False) as (server, source, _):
            server.set_attribute("enable-guest-attributes", "TRUE")
            await source.acknowledge(ack)
            assert server.asked == []

    run(test())


def test_where_long_polls_are_ended_the_attribute_is_polled() -> None:
    """Something on the way that ends every request that hangs delays a change by seconds, and hides none."""

    async def test() -> None:
        async with made() as (server, source, clock):
            server.set_attribute(KEY, "x")

            async def ended(*_: Any) -> Any:
                raise ConnectionResetError

            server._wait = ended
            heard = Listener()
            async with watching(source, heard):
                await heard.until(lambda h: h.troubles)
                server.attributes[KEY] = "y"
                assert 0 < await clock.step() <= 60
                await heard.until(lambda h: len(h.submitted) == 2)
                server.attributes[KEY] = "z"
                assert await clock.step() == PAUSE_POLLED_SECONDS
                await heard.until(lambda h: len(h.submitted) == 3)
                assert heard.bodies == [b"x", b"y", b"z"]
                assert len(heard.troubles) == 1

    run(test())


@pytest.mark.parametrize("status", [429, 503])
def test_when_to_come_again_is_heard(status: int) -> None:
    """`Retry-After` of the metadata service is the pause before the next look."""

    async def test() -> None:
        async with made() as (server, source, _):
            server.inject(Fault(status=status, headers={"Retry-After": "40", "Metadata-Flavor": "Google"}))
            with pytest.raises(RetryLater) as caught:
                await source.fetch()
            assert caught.value.seconds == 40.0

    run(test())
