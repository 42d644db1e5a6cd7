"""The key that senders seal to is ours for as long as the agent runs, or somebody hears that it was not."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.config import EphemeralKey
from agent.daemon import announce
from agent.daemon.announce import LOOK_SECONDS, Announcer
from agent.upstream import GceMetadata, Upstream, UpstreamSettings
from tests.fakes.clock import FakeClock
from tests.fakes.gce_metadata import GceMetadataServer
from tests.fakes.served import Fault
from tests.unit.controller.support import looped

NAME = "credential-agent/key"
PATH = f"/computeMetadata/v1/instance/guest-attributes/{NAME}"


async def until(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not look():  # noqa: ASYNC110 - a file and a fake server notify nobody
            await asyncio.sleep(0)


class Published:
    def __init__(self, server: GceMetadataServer, announcer: Announcer, clock: FakeClock) -> None:
        self.server, self.announcer, self.clock = server, announcer, clock
        self.reason: object = None

    async def asked(self, requests: int) -> None:
        """Until so many requests were answered and the announcer sleeps again."""
        await until(lambda: len(self.server.asked) >= requests)
        for _ in range(20):
            await asyncio.sleep(0)


@asynccontextmanager
async def publishing(
    entry: EphemeralKey, *, enabled: bool = True, stood: Mapping[str, str] = {}, before: str | None = None
) -> AsyncIterator[Published]:
    clock = FakeClock()
    out = Upstream(UpstreamSettings())
    async with GceMetadataServer() as server:
        if enabled:
            server.attributes["enable-guest-attributes"] = "TRUE"
        if before is not None:
            server.guest_attributes[NAME] = before
        announcer = Announcer(clock, GceMetadata(out, server.url), needed=lambda: published.reason, stood=stood)
        published = Published(server, announcer, clock)
        task = asyncio.create_task(announcer.run(entry, b'{"kty":"OKP"}'))
        try:
            yield published
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await out.close()


ENTRY = EphemeralKey(publish_guest_attribute=NAME)


@looped
async def test_it_is_published_and_let_be() -> None:
    """What stands there already is not written again, and no alarm is raised for what was there before us."""
    with capture_logs() as logs:
        async with publishing(ENTRY) as published:
            await published.asked(2)
            assert published.server.guest_attributes[NAME] == '{"kty":"OKP"}'
            await published.clock.advance(LOOK_SECONDS + 1)
            await published.asked(3)
            assert [asked.method for asked in published.server.asked] == ["GET", "PUT", "GET"]
            assert published.announcer.state == {NAME: "published"}
    assert not [line for line in logs if line["log_level"] == "error"]


@looped
async def test_an_overwritten_key_is_ours_again() -> None:
    """Another text in our place is replaced within the period, counted, and said as an error."""
    with capture_logs() as logs:
        async with publishing(ENTRY) as published:
            await published.asked(2)
            for number, text in enumerate(("evil", None), 1):
                if text is None:
                    del published.server.guest_attributes[NAME]
                else:
                    published.server.guest_attributes[NAME] = text
                before = len(published.server.asked)
                await published.clock.advance(LOOK_SECONDS + 1)
                await published.asked(before + 2)
                assert published.server.guest_attributes[NAME] == '{"kty":"OKP"}'
                assert published.announcer.overwritten == number
                assert published.announcer.state == {NAME: "published"}
    alarms = [line for line in logs if line["event"] == "key.overwritten"]
    assert [(line["found"], line["log_level"]) for line in alarms] == [("another text", "error"), ("nothing", "error")]


@looped
async def test_a_refused_bundle_is_a_reason_to_look() -> None:
    """A bundle that could not be opened may have been sealed to whoever overwrote the key: we look within seconds."""
    async with publishing(ENTRY) as published:
        await published.asked(2)
        published.server.guest_attributes[NAME] = "evil"
        published.reason = object()
        await published.clock.advance(3)
        await published.asked(4)
        assert published.server.guest_attributes[NAME] == '{"kty":"OKP"}'


@looped
async def test_a_silent_server_is_no_alarm_and_forgets_nothing() -> None:
    """While the server is down nothing is alarmed; what was overwritten meanwhile is, when it is back."""
    async with publishing(ENTRY) as published:
        await published.asked(2)
        published.server.inject(Fault(prefix=PATH, drop=True))
        await published.clock.advance(LOOK_SECONDS + 1)
        await published.asked(3)
        assert published.announcer.overwritten == 0
        published.server.guest_attributes[NAME] = "evil"
        await published.clock.advance(61)
        await published.asked(5)
        assert published.announcer.overwritten == 1
        assert published.server.guest_attributes[NAME] == '{"kty":"OKP"}'


@looped
async def test_where_it_cannot_be_published_the_reason_is_told() -> None:
    """Guest attributes that are switched off are named as the cause, and tried again."""
    async with publishing(ENTRY, enabled=False) as published:
        await published.asked(2)
        assert "enable-guest-attributes" in published.announcer.state[NAME]
        published.server.attributes["enable-guest-attributes"] = "TRUE"
        await published.clock.advance(61)
        await published.asked(4)
        assert published.announcer.state == {NAME: "published"}


@looped
async def test_what_stood_before_a_restart_is_compared_with() -> None:
    """A key of ours that somebody overwrote while no process ran is alarmed, once; another key of before is not."""
    async with publishing(ENTRY) as published:
        await published.asked(2)
        left = dict(published.announcer.stood)
    for stood, before, alarms in (
        (left, "evil", 1),
        (left, None, 1),
        (left, '{"kty":"OKP"}', 0),
        ({NAME: "of another key"}, "evil", 0),
        ({}, "evil", 0),
    ):
        async with publishing(ENTRY, stood=stood, before=before) as published:
            await until(lambda: published.announcer.state.get(NAME) == "published")
            assert (published.announcer.overwritten, published.announcer.stood) == (alarms, left)


@looped
async def test_when_to_come_again_is_heard() -> None:
    """`Retry-After` of the metadata server, at the reading and at the writing, is the pause before the next try."""
    later = {"Retry-After": "200", "Metadata-Flavor": "Google"}
    async with publishing(ENTRY) as published:
        await published.asked(2)
        published.server.guest_attributes[NAME] = "evil"
        published.server.inject(Fault(prefix=PATH, status=429, headers=later))
        published.server.inject(Fault(prefix=PATH))
        published.server.inject(Fault(prefix=PATH, status=503, headers=later))
        await published.clock.advance(LOOK_SECONDS + 1)
        await published.asked(3)
        for before, total in ((3, 5), (5, 7)):
            await published.clock.advance(190)
            await published.asked(before)
            assert len(published.server.asked) == before
            await published.clock.advance(11)
            await published.asked(total)
        assert published.server.guest_attributes[NAME] == '{"kty":"OKP"}'


@looped
async def test_an_alarm_is_raised_once_though_the_place_is_not_ours_again() -> None:
    """While ours cannot be written over the other text, that is told, and the alarm is not repeated."""
    async with publishing(ENTRY) as published:
        await published.asked(2)
        published.server.guest_attributes[NAME] = "evil"
        for status in (None, 503) * 3:  # it is read, and cannot be written
            published.server.inject(Fault(prefix=PATH, status=status))
        for _ in range(4):
            before = len(published.server.asked)
            await published.clock.advance(LOOK_SECONDS + 31)
            await published.asked(before + 1)
        await until(lambda: published.announcer.state.get(NAME) == "published")
        assert published.announcer.overwritten == 1


def test_no_place_is_watched_that_is_named_no_more() -> None:
    """What stands where we publish no longer is nobody's alarm when that place is named again."""
    announcer = Announcer(FakeClock(), None, needed=lambda: None, stood={"/a": "1", NAME: "2"})
    announcer.only([EphemeralKey(publish_file="/a")])
    assert announcer.stood == {"/a": "1"}


@looped
async def test_a_file_likewise(tmp_path: Path) -> None:
    """The file with the public key is ours again, too."""
    path = tmp_path / "key.jwk"

    def is_ours() -> bool:
        return published.announcer.state.get(str(path)) == "published" and path.read_bytes() == b'{"kty":"OKP"}\n'

    async with publishing(EphemeralKey(publish_file=str(path))) as published:
        await until(is_ours)
        for _ in range(20):
            await asyncio.sleep(0)
        path.write_bytes(b"evil")
        await published.clock.advance(LOOK_SECONDS + 1)
        await until(is_ours)
        assert published.announcer.overwritten == 1


@looped
@pytest.mark.parametrize(
    ("error", "alarms"),
    [
        (OSError(errno.EMFILE, ""), 0),
        (OSError(errno.ENOMEM, ""), 0),
        (OSError(errno.EIO, ""), 0),
        (OSError(errno.EAGAIN, ""), 0),
        (RuntimeError("can't start new thread"), 0),
        (MemoryError(), 0),
        (OSError(errno.ENOENT, ""), 1),
        (OSError(errno.EACCES, ""), 1),
        (OSError(errno.EINVAL, ""), 1),
    ],
    ids=repr,
)
async def test_a_failure_to_look_is_no_word_about_what_stands_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, alarms: int
) -> None:
    """Where a key's file cannot be read for want of something, nobody is said to have overwritten it; and it is read again."""
    path, looks = tmp_path / "key.jwk", []

    def reading(*_: object) -> bytes:
        looks.append(1)
        if len(looks) == 2:
            raise error
        return path.read_bytes() if path.exists() else b""

    monkeypatch.setattr(announce, "read_plain", reading)
    with capture_logs():
        async with publishing(EphemeralKey(publish_file=str(path))) as published:
            await until(lambda: published.announcer.state.get(str(path)) == "published")
            async with asyncio.timeout(10):
                while len(looks) < 3:
                    await published.clock.advance(LOOK_SECONDS + 1)
                    await asyncio.sleep(0)
            assert published.announcer.overwritten == alarms
            assert published.announcer.state == {str(path): "published"}


@looped
async def test_a_filter_in_the_servers_place_overwrites_nothing() -> None:
    """A 404 without the metadata server's mark does not say that the key is gone."""
    async with publishing(ENTRY) as published:
        await published.asked(2)
        published.server.inject(Fault(prefix=PATH, status=404))
        await published.clock.advance(LOOK_SECONDS + 1)
        await published.asked(3)
        assert published.announcer.overwritten == 0
