"""The EC2 user-data source, against a metadata service on loopback."""

from __future__ import annotations

import gzip
import random
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from agent.core.errors import SourceError, UnansweredError
from agent.sources.ec2 import Ec2UserDataSettings, Ec2UserDataSource
from agent.sources.watching import RetryLater
from agent.upstream import Ec2Metadata, Upstream
from agent.wire import userdata
from tests.fakes.ec2_metadata import Ec2MetadataService
from tests.fakes.gce_metadata import GceMetadataServer
from tests.fakes.served import Fault
from tests.unit.sources.support import Listener, StepClock, run, troubles, watching

BUNDLE = b'{"protected":"e30","recipients":[],"iv":"","ciphertext":"AAAA","tag":""}'


@asynccontextmanager
async def made() -> Any:
    async with Ec2MetadataService() as service:
        out, clock = Upstream(), StepClock()
        source = Ec2UserDataSource(
            Ec2UserDataSettings(),
            metadata=Ec2Metadata(out, clock, service.url),
            clock=clock,
            rng=random.Random(1),
        )
        try:
            yield service, source, clock
        finally:
            await out.close()


@pytest.mark.parametrize(
    "document",
    [
        BUNDLE,
        userdata.cloud_config(BUNDLE).encode(),
        userdata.mime(BUNDLE).encode(),
        userdata.systemd(BUNDLE).encode(),
        gzip.compress(userdata.cloud_config(BUNDLE).encode()),
    ],
    ids=["raw", "cloud-config", "mime", "systemd", "gzip"],
)
def test_the_bundle_is_found_in_each_kind_of_user_data(document: bytes) -> None:
    """Raw, inside cloud-config, a MIME part, systemd's JSON, gzipped: the same bytes come out."""

    async def test() -> None:
        async with made() as (service, source, _):
            service.user_data = document
            found = await source.fetch()
            assert (found.data, found.origin) == (BUNDLE, "ec2-user-data")

    run(test())


def test_none_without_user_data_or_with_somebody_elses() -> None:
    """No user-data, a shell script, Ignition's JSON and a web page are all "no bundle here", and no trouble."""

    async def test() -> None:
        async with made() as (service, source, _):
            for document in (
                None,
                b"",
                b"#!/bin/sh\necho hello\n",
                b'{"ignition":{"version":"3.4.0"}}',
                b"<html></html>",
            ):
                service.user_data = document
                assert await source.fetch() is None

    run(test())


def test_it_is_read_at_the_start_and_then_slowly() -> None:
    """After the first look it is read again every ten minutes or so, and submitted when it has changed."""

    async def test() -> None:
        async with made() as (service, source, clock):
            heard = Listener()
            service.user_data = BUNDLE
            async with watching(source, heard):
                await heard.until(lambda h: h.submitted)
                assert 450 <= await clock.step() <= 750
                await heard.until(lambda h: h.oks == 2)
                service.user_data = BUNDLE.replace(b"AAAA", b"BBBB")
                assert 450 <= await clock.step() <= 750
                await heard.until(lambda h: len(h.submitted) == 2)
                assert service.paths().count("/latest/user-data") == 3

    run(test())


def test_a_service_that_is_ill_is_trouble_and_tried_again() -> None:
    """Errors, dropped connections, too much data and broken armour are trouble; the watch goes on to the good answer."""

    async def test() -> None:
        async with made() as (service, source, clock):
            heard = Listener()
            path = "/latest/user-data"
            service.inject(Fault(path, status=500))
            service.inject(Fault(path, drop=True, times=2))
            service.inject(Fault(path, status=200, body=b"x" * 70_000))
            service.inject(Fault(path, status=200, body=userdata.armour(BUNDLE).encode()[:80]))
            service.inject(Fault(path, status=200, body=b"\x1f\x8b broken"))
            service.user_data = BUNDLE
            async with watching(source, heard):
                for n in range(1, 6):
                    await heard.until(troubles(n))
                    await clock.step()
                await heard.until(lambda h: h.submitted)
            assert heard.bodies == [BUNDLE]
            assert len(heard.troubles) == 5

    run(test())


def test_no_metadata_service_is_trouble() -> None:
    """With the service switched off the source is broken, and says what it found."""

    async def test() -> None:
        async with made() as (service, source, _):
            service.endpoint_enabled = False
            with pytest.raises(SourceError, match="no ec2 metadata service"):
                await source.fetch()

    run(test())


@pytest.mark.parametrize("status", [429, 503])
def test_when_to_come_again_is_heard(status: int) -> None:
    """`Retry-After` of the metadata service is the pause before the next look."""

    async def test() -> None:
        async with made() as (service, source, _):
            service.inject(Fault(status=status, headers={"Retry-After": "40", "Metadata-Flavor": "Google"}))
            with pytest.raises(RetryLater) as caught:
                await source.fetch()
            assert caught.value.seconds == 40.0

    run(test())


TOKEN, USER_DATA = "/latest/api/token", "/latest/user-data"


@pytest.mark.parametrize(
    ("path", "status", "body", "answers"),
    [
        (TOKEN, 503, b"", False),
        (TOKEN, 302, b"", False),
        (TOKEN, 200, b"<html> a page", False),
        (TOKEN, 403, b"<html> a proxy's", False),
        (TOKEN, 405, b"", False),
        (USER_DATA, 302, b"", False),
        (USER_DATA, 429, b"", False),
        (USER_DATA, 500, b"", False),
        (USER_DATA, 200, b"<html> a portal's", False),
        (USER_DATA, 404, b"<html> a proxy's", False),
        (USER_DATA, 400, b"", True),
        (USER_DATA, 403, b"", True),
        (USER_DATA, 200, b"x" * 70_000, True),
        (USER_DATA, 200, b"\x1f\x8b broken", True),
    ],
)
def test_what_says_nothing_of_user_data_is_no_answer(path: str, status: int, body: bytes, answers: bool) -> None:
    """Only what is about user-data itself, in EC2's name, says that no first bundle is to be waited for there."""

    async def test() -> None:
        async with made() as (service, source, _):
            headers = {"Server": "EC2ws"} if answers else {}
            service.inject(Fault(path, status=status, body=body, times=None, headers=headers))
            with pytest.raises(SourceError) as caught:
                await source.fetch()
            assert isinstance(caught.value, UnansweredError) is not answers

    run(test())


def test_on_a_machine_of_google_no_user_data_is_waited_for() -> None:
    """Google's own server answers there: an image may be for both clouds."""

    async def test() -> None:
        out, clock, rng = Upstream(), StepClock(), random.Random(1)
        async with GceMetadataServer() as google, AsyncExitStack() as stack:
            stack.push_async_callback(out.close)
            metadata = Ec2Metadata(out, clock, google.url)
            source = Ec2UserDataSource(Ec2UserDataSettings(), metadata=metadata, clock=clock, rng=rng)
            with pytest.raises(SourceError) as caught:
                await source.fetch()
            assert not isinstance(caught.value, UnansweredError)

    run(test())


def test_a_service_that_is_switched_off_has_answered() -> None:
    """By its own word: no user-data comes from there."""

    async def test() -> None:
        async with made() as (service, source, _):
            service.endpoint_enabled = False
            with pytest.raises(SourceError) as caught:
                await source.fetch()
            assert not isinstance(caught.value, UnansweredError)

    run(test())
