"""The smaller rules of the sources, without a network: what is asked with, what is taken out, when it is asked again."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from agent.core.errors import SourceError, UnansweredError, UnreadableError
from agent.core.model import SealedBundle
from agent.core.source import Ack
from agent.host.quiet import Quiet
from agent.sources import location, push
from agent.sources.file import LOOK_SECONDS, RETRY_LOOKS, FileSettings, FileSource
from agent.sources.gce import PAUSE_POLLED_SECONDS, POLLS_FIRST, GceAttributeSettings, GceAttributeSource
from agent.sources.https import HttpsSettings, HttpsSource
from agent.sources.location import Location
from agent.sources.push import PushSource
from agent.upstream import GceMetadata, Upstream, UpstreamError, UpstreamResponse
from tests.fakes import jose
from tests.unit.sources.support import START, Listener, StepClock, oks, run, watching
from tests.vectors.bundle import generate

URL = "https://bundles.example/b"
ACK = Ack(origin="https", outcome="accepted", at=START, seq=1)
BUNDLE = jose.compact_json(generate.sealed(generate.claims()))
WRAPPED = base64.b64encode(base64.b64encode(BUNDLE))
CUT_OFF = WRAPPED[: len(WRAPPED) // 2]


def answer(status: int = 200, body: bytes = b"x", **headers: str) -> UpstreamResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return UpstreamResponse(status, CIMultiDictProxy(CIMultiDict(named)), body)


class Script:
    """Stands where the way out stands: gives the answers in their order, and notes what it was asked with."""

    def __init__(self, *answers: UpstreamResponse | UpstreamError | Callable[[], UpstreamResponse]) -> None:
        self.answers = list(answers)
        self.asked: list[SimpleNamespace] = []

    async def request(self, method: str, url: str, **more: Any) -> UpstreamResponse:
        self.asked.append(SimpleNamespace(method=method, url=url, **more))
        given = self.answers.pop(0)
        if isinstance(given, UpstreamError):
            raise given
        return given if isinstance(given, UpstreamResponse) else given()


def https(script: Script, clock: StepClock | None = None, **settings: Any) -> HttpsSource:
    given = HttpsSettings(**{"url": URL, **settings})
    return HttpsSource(given, upstream=cast(Upstream, script), clock=clock or StepClock(), rng=random.Random(1))


def gce(script: Script, clock: StepClock) -> GceAttributeSource:
    settings = GceAttributeSettings(scope="instance")
    return GceAttributeSource(settings, metadata=cast(GceMetadata, script), clock=clock, rng=random.Random(1))


async def _by_file(data: bytes, directory: Path) -> bytes:
    path = directory / "b"
    path.write_bytes(data)
    found = await FileSource(FileSettings(path=path), clock=StepClock()).fetch()
    assert found is not None
    return found.data


async def _by_push(data: bytes, directory: Path) -> bytes:
    return await push.unwrapped(data)


async def _by_https(data: bytes, directory: Path) -> bytes:
    found = await https(Script(answer(body=data))).fetch()
    assert found is not None
    return found.data


async def _by_attribute(data: bytes, directory: Path) -> bytes:
    found = await gce(Script(answer(body=data, ETag="1")), StepClock()).fetch()
    assert found is not None
    return found.data


CHANNELS = [_by_file, _by_push, _by_https, _by_attribute]


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(("data", "found"), [(BUNDLE, BUNDLE), (WRAPPED, BUNDLE), (b"no bundle", b"no bundle")])
def test_what_tools_wrap_around_a_bundle_is_taken_off_on_every_way(
    tmp_path: Path, channel: Callable[[bytes, Path], Awaitable[bytes]], data: bytes, found: bytes
) -> None:
    """A bundle that was encoded once more is submitted without that; what holds none is left for the decoder to refuse."""
    assert asyncio.run(cast(Any, channel(data, tmp_path))) == found


@pytest.mark.parametrize("channel", [_by_file, _by_https, _by_attribute])
def test_what_looks_like_a_bundle_and_is_none_is_trouble(
    tmp_path: Path, channel: Callable[[bytes, Path], Awaitable[bytes]]
) -> None:
    """A bundle that a tool has cut off is told by its source: nobody is to take it for the absence of one."""
    with pytest.raises(UnreadableError):
        asyncio.run(cast(Any, channel(CUT_OFF, tmp_path)))


def test_a_broken_file_is_read_again_though_it_looks_the_same(tmp_path: Path) -> None:
    """Mending may not change the look (of a network's file, say): also where another looks for a change meanwhile."""

    class Nothing:
        async def pause(self, changed: Callable[[], bool]) -> None:
            await asyncio.Event().wait()

    async def test() -> None:
        (tmp_path / "b").mkdir()
        clock, heard = StepClock(), Listener()
        source = FileSource(FileSettings(path=tmp_path / "b"), clock=clock, quiet=cast(Quiet, Nothing()))
        async with watching(source, heard):
            for times in (1, 2, 3):
                while len(heard.troubles) < times:
                    assert await clock.step() <= LOOK_SECONDS
                    await clock.asleep()
            assert clock.passed >= 2 * RETRY_LOOKS * LOOK_SECONDS

    run(test())


def test_that_there_is_no_file_is_known_at_the_first_look(tmp_path: Path) -> None:
    """A start waits until each source has looked once: a file that is not there holds it up no longer than one that is."""

    async def test() -> None:
        clock, heard = StepClock(), Listener()
        async with watching(FileSource(FileSettings(path=tmp_path / "b"), clock=clock), heard):
            await clock.asleep()
            assert (heard.oks, clock.passed) == (1, 0.0)

    run(test())


def test_a_push_waits_for_nothing_once_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a push that comes before that has to wait."""
    monkeypatch.setattr(push, "START_SECONDS", 1e6)

    class Controller(Listener):
        async def submit(self, bundle: SealedBundle) -> Ack:  # type: ignore[override]
            await super().submit(bundle)
            return ACK

    async def test() -> None:
        source, heard = PushSource(clock=StepClock()), Controller()
        async with watching(source, heard):
            await heard.until(lambda h: h.oks)
            assert await source.push(b"1") is ACK

    run(test())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_each_kind_of_redirect_within_the_origin_is_followed(status: int) -> None:
    """A server that has moved the object says so in one of five ways (RFC 9110 section 15.4)."""
    script = Script(answer(status, b"", Location="/c"), answer(body=b"found"))
    found = asyncio.run(https(script).fetch())
    assert found is not None
    assert found.data == b"found"
    assert [asked.url for asked in script.asked] == [URL, "https://bundles.example/c"]


@pytest.mark.parametrize("kind", ["text/html", "Text/HTML; charset=utf-8", "application/xhtml+xml"])
def test_a_web_page_is_no_bundle_whatever_is_in_it(kind: str) -> None:
    """A sign-in page may begin with anything: its type says what it is."""
    with pytest.raises(SourceError, match="web page"):
        asyncio.run(https(Script(answer(body=b"please sign in", Content_Type=kind))).fetch())


def test_a_held_request_is_given_more_time_than_the_server_was_asked_to_take() -> None:
    """An answer that comes at the end of the wait is heard; a source's own limit must not end each long poll."""

    async def test() -> None:
        clock, heard = StepClock(), Listener()
        script = Script(*[answer(ETag='"1"')] + [answer(304, b"")] * 9)
        async with watching(https(script, clock, wait_seconds=50.0), heard):
            await heard.until(oks(1))
            await clock.step()
            await heard.until(oks(2))
        first, second = script.asked[:2]
        assert (first.timeout_seconds, "Prefer" in first.headers) == (None, False)
        assert second.headers["Prefer"] == "wait=50"
        assert second.timeout_seconds > 50

    run(test())


def test_a_server_that_begins_to_hold_requests_is_no_longer_polled() -> None:
    """One that once answered at once (it was just started, or a cache did) is asked again at once when it has held one."""

    async def test() -> None:
        clock, heard = StepClock(), Listener()

        def held() -> UpstreamResponse:
            clock.passed += 49.0
            return answer(304, b"")

        script = Script(answer(ETag='"1"'), answer(304, b""), held, *[answer(304, b"")] * 9)
        async with watching(https(script, clock, wait_seconds=50.0, poll_seconds=30.0), heard):
            pauses = []
            for times in (1, 2, 3):
                await heard.until(oks(times))
                pauses.append(await clock.step())
        assert [pause > 20 for pause in pauses] == [False, True, False]

    run(test())


@pytest.mark.parametrize(("status", "attempts"), [(200, 1), (403, 1), (429, 2), (500, 2), (503, 2)])
def test_a_verdict_that_was_not_taken_now_is_posted_again(status: int, attempts: int) -> None:
    """A server that is busy or broken is asked again; one that refuses is not."""

    async def test() -> None:
        clock, script = StepClock(), Script(answer(status), answer(200))
        posting = asyncio.ensure_future(https(script, clock, ack_url="https://bundles.example/acks").acknowledge(ACK))
        for _ in range(1, attempts):
            await clock.step()
        await posting
        assert len(script.asked) == attempts

    run(test())


@pytest.mark.parametrize(
    ("text", "token"),
    [
        (b"t\n", "t"),
        (b"", None),
        (b" \n", None),
        (b"a b", None),
        (b"t" * location.MAX_TOKEN_BYTES, "t" * location.MAX_TOKEN_BYTES),
        (b"t" * (location.MAX_TOKEN_BYTES + 1), None),
    ],
    ids=["one", "empty", "blank", "two words", "longest", "too long"],
)
def test_a_token_is_one_word_or_none_is_sent(tmp_path: Path, text: bytes, token: str | None) -> None:
    """A file that holds no token, a half of one or more than one is an error, not a header that says nothing."""
    (tmp_path / "t").write_bytes(text)
    place = Location(URL, None, tmp_path / "t")
    if token is None:
        with pytest.raises(SourceError, match="expected a bearer token"):
            asyncio.run(place.authorization(URL))
    else:
        assert asyncio.run(place.authorization(URL)) == {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("etag", "waits_for"),
    [("f97c5d29941bfb1b", "f97c5d29941bfb1b"), ("", "0"), ("1&timeout_sec=1", "0"), ("é", "0"), ("1" * 65, "0")],
)
def test_only_a_plain_entity_tag_goes_into_the_question(etag: str, waits_for: str) -> None:
    """It becomes a part of a URL; with any other we wait for any change, as the documentation has it."""

    async def test() -> None:
        clock, heard = StepClock(), Listener()
        script = Script(*[answer(ETag=etag)] * 9)
        async with watching(gce(script, clock), heard):
            await heard.until(oks(2))
        asked = script.asked[1]
        assert asked.url.endswith(f"?wait_for_change=true&last_etag={waits_for}&timeout_sec=60")
        assert asked.timeout_seconds > 60

    run(test())


def test_a_poll_that_fails_does_not_begin_the_polling_anew() -> None:
    """Where requests that hang are ended, so many looks do not hang, and then one hangs again: whatever fails meanwhile."""

    async def test() -> None:
        clock, heard = StepClock(), Listener()
        lost = UpstreamError("the connection was lost", code="network")
        quick = [answer(ETag="1")] * (POLLS_FIRST // 2)
        script = Script(answer(ETag="1"), lost, *quick, lost, *quick, *[answer(ETag="1")] * 9)
        async with watching(gce(script, clock), heard):
            while len(script.asked) < POLLS_FIRST + 6:
                await clock.step()
                await clock.asleep()
        hung = [number for number, asked in enumerate(script.asked) if "wait_for_change" in asked.url]
        assert hung[0] == 1
        assert hung[1] == POLLS_FIRST + 3  # and one of those in between failed
        assert clock.passed >= PAUSE_POLLED_SECONDS * (POLLS_FIRST - 1)
        assert len(heard.troubles) == 2

    run(test())


@pytest.mark.parametrize("fails", ["open", "read"])
@pytest.mark.parametrize("code", [errno.ETIMEDOUT, errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_a_file_whose_server_is_away_has_said_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, code: int
) -> None:
    """A mount that gives up says as little of what is there as one that hangs; a refusal is a word of its own."""
    path, real = tmp_path / "b", getattr(os, fails)
    path.write_bytes(b"x")

    def failing(what: Any, *more: Any) -> Any:
        if fails == "read" or what == path:
            raise OSError(code, os.strerror(code))
        return real(what, *more)

    async def test() -> None:
        source = FileSource(FileSettings(path=path), clock=StepClock())
        with monkeypatch.context() as patched:
            patched.setattr(f"agent.sources.file.os.{fails}", failing)
            with pytest.raises(SourceError, match="cannot be read") as caught:
                await source.fetch()
        assert isinstance(caught.value, UnansweredError) is (code != errno.EACCES)

    run(test())
