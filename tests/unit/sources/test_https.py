"""The HTTPS source, against a server on loopback."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import random
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from agent.core.errors import SourceError
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.core.source import Ack, Position
from agent.sources.https import HttpsSettings, HttpsSource
from agent.upstream import Upstream, UpstreamResponse, UpstreamSettings
from tests.fakes.https_store import HttpsStore, private_ca
from tests.fakes.served import Fault
from tests.fakes.silent_files import silent
from tests.unit.sources.support import START, Listener, StepClock, oks, run, troubles, watching

PATH = "/bucket/bundle.jose"
NOW = dt.datetime(2026, 7, 1, 12, tzinfo=dt.UTC)


@asynccontextmanager
async def made(store: HttpsStore, *, upstream: UpstreamSettings | None = None, query: str = "", **settings: Any) -> Any:
    """A source that reads from ``store``."""
    async with store:
        out = Upstream(upstream or UpstreamSettings(connect_timeout_seconds=2, total_timeout_seconds=2))
        clock = StepClock()
        given = {"url": f"{store.url}{PATH}{query}", **settings}
        if given.get("ack_url") == "same":
            given["ack_url"] = f"{store.url}/acks"
        try:
            yield HttpsSource(HttpsSettings(**given), upstream=out, clock=clock, rng=random.Random(1)), clock
        finally:
            await out.close()


def test_a_bundle_is_fetched_and_absence_is_none() -> None:
    """200 is the bundle, 404 is none, whatever page comes with it."""

    async def test() -> None:
        store = HttpsStore()
        async with made(store) as (source, _):
            assert await source.fetch() is None
            store.put(PATH, b'{"ciphertext":1}')
            found = await source.fetch()
            assert (found.data, found.origin) == (b'{"ciphertext":1}', "https")

    run(test())


def test_a_held_request_is_answered_by_the_change() -> None:
    """With a server that holds requests, a change is submitted by the request that hung, under the tag it knew."""

    async def test() -> None:
        store, heard = HttpsStore(holds=True), Listener()
        store.put(PATH, b"one")
        async with made(store) as (source, clock), watching(source, heard):
            await heard.until(lambda h: h.submitted)
            assert await clock.step() <= 1.0, "hardly a pause before the request that hangs"
            await store.someone_waits()
            store.put(PATH, b"two")
            await heard.until(lambda h: len(h.submitted) == 2)
            assert await clock.step() <= 1.0
            await store.someone_waits()
            assert heard.bodies == [b"one", b"two"]
            first, second = store.asked[0], store.asked[1]
            assert "prefer" not in first.headers
            assert second.headers["prefer"] == "wait=50"
            assert second.headers["if-none-match"] == f'"{"f97c5d29941bfb1b2fdab0874906ab82"}"'

    run(test())


@pytest.mark.parametrize("holds", [False, True])
def test_what_is_replaced_within_a_second_is_seen(holds: bool) -> None:
    """A file server gives two files of one second and one size the same tag: what is that young is read once more, whole."""

    async def test() -> None:
        # By a clock that stands still: on a busy machine the first answer comes late.
        store, heard = HttpsStore(files=True, holds=holds, now=NOW), Listener()
        store.put(PATH, b"one")
        written = store.objects[PATH].modified
        async with made(store) as (source, clock), watching(source, heard):
            await heard.until(lambda h: h.submitted)
            assert source.position is None
            store.put(PATH, b"two")
            store.objects[PATH].modified = written
            assert 2 <= await clock.step() < 4
            await heard.until(lambda h: len(h.submitted) == 2)
            assert heard.bodies == [b"one", b"two"]
            store.objects[PATH].modified = NOW - dt.timedelta(hours=1)
            await clock.step()
            await heard.until(oks(3))
            assert source.position is not None
            await clock.step()
            if holds:
                await store.someone_waits()
            else:
                await heard.until(oks(4))
                assert [asked.status for asked in store.asked] == [200, 200, 200, 304]

    run(test())


@pytest.mark.parametrize("files", [False, True])
def test_who_has_something_else_at_each_answer_is_polled(files: bool) -> None:
    """A server that seals anew each time would else have us open one every second, by a key service too."""

    async def test() -> None:
        store, heard = HttpsStore(files=files, now=NOW), Listener()
        store.put(PATH, b"0")
        slept = []
        async with made(store) as (source, clock), watching(source, heard):
            for number in range(1, 8):
                await heard.until(oks(number))
                assert len(heard.submitted) == number
                store.put(PATH, b"%d" % number)
                slept.append(await clock.step())
        assert max(slept[:3]) <= 4.0
        assert min(slept[-2:]) >= 20.0

    run(test())


def test_a_missing_bundle_is_waited_for() -> None:
    """While there is none, a server that holds requests may hold that one too."""

    async def test() -> None:
        store, heard = HttpsStore(holds=True), Listener()
        async with made(store) as (source, clock), watching(source, heard):
            await heard.until(lambda h: h.oks)
            await clock.step()
            await store.someone_waits()
            store.put(PATH, b"late")
            await heard.until(lambda h: h.submitted)
            assert heard.bodies == [b"late"]
            assert heard.troubles == []

    run(test())


def test_a_server_that_does_not_hold_is_polled() -> None:
    """A bucket answers 304 at once: it is asked again after the polling time, and costs a header."""

    async def test() -> None:
        store, heard = HttpsStore(), Listener()
        store.put(PATH, b"one")
        async with made(store, poll_seconds=30.0) as (source, clock), watching(source, heard):
            await heard.until(lambda h: h.submitted)
            await clock.step()
            await heard.until(lambda h: h.oks == 2)
            for n in range(3, 6):
                assert 22 < await clock.step() < 38
                await heard.until(oks(n))
            assert [asked.status for asked in store.asked] == [200, 304, 304, 304, 304]
            store.put(PATH, b"two")
            assert 22 < await clock.step() < 38
            await heard.until(lambda h: len(h.submitted) == 2)
            assert 22 < await clock.step() < 38, "still polled: it has shown that it does not hold"
            assert heard.bodies == [b"one", b"two"]

    run(test())


def test_a_server_without_entity_tags_is_not_submitted_twice() -> None:
    """The same bytes under no tag are submitted once, and such a server is polled, not hammered."""

    async def test() -> None:
        store, heard = HttpsStore(etags=False), Listener()
        store.put(PATH, b"one")
        async with made(store) as (source, clock), watching(source, heard):
            await heard.until(lambda h: h.oks == 1)
            await clock.step()
            await heard.until(lambda h: h.oks == 2)
            assert await clock.step() > 20
            await heard.until(lambda h: h.oks == 3)
            assert heard.bodies == [b"one"]

    run(test())


def test_a_server_that_answers_otherwise_each_time_is_polled() -> None:
    """Another tag and other bytes at every answer, at once: it is soon asked no oftener than one that does not hold."""

    async def test() -> None:
        store, heard = HttpsStore(holds=True), Listener()
        async with made(store) as (source, clock):
            store.put(PATH, b"0")
            async with watching(source, heard):
                for number in range(1, 8):
                    await heard.until(oks(number))
                    store.put(PATH, f"{number}".encode())
                    seconds = await clock.step()
                assert len(heard.submitted) == 7
                assert seconds > 20
                await heard.until(oks(8))
                assert len(heard.submitted) == 8, "what is new is taken all the same"

    run(test())


def test_what_is_unchanged_after_a_failure_is_not_submitted_again() -> None:
    """A server that flaps costs troubles, not submissions, and the entity tag survives the failure."""

    async def test() -> None:
        store, heard = HttpsStore(), Listener()
        store.put(PATH, b"one")
        async with made(store) as (source, clock), watching(source, heard):
            await heard.until(lambda h: h.submitted)
            for n in range(1, 4):
                store.inject(Fault(status=502))
                await clock.step()
                await heard.until(troubles(n))
                await clock.step()
                await heard.until(oks(n + 1))
            assert heard.bodies == [b"one"]
            assert store.asked[-1].status == 304

    run(test())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(status=500), "answered 500"),
        (Fault(status=403), "answered 403"),
        (Fault(drop=True), ""),
        (Fault(status=200, body=b"  \n"), "empty answer"),
        (Fault(status=200, body=b"<!DOCTYPE html><p>Sign in"), "web page"),
        (Fault(status=200, body=b"x" * (MAX_BUNDLE_BYTES + 1)), "more than"),
        (Fault(status=304), "304"),
    ],
    ids=["500", "403", "drop", "empty", "html", "huge", "304"],
)
def test_broken_answers_are_trouble_and_then_forgotten(fault: Fault, said: str) -> None:
    """Whatever goes wrong is one line of trouble; the next good answer is submitted."""

    async def test() -> None:
        store, heard = HttpsStore(), Listener()
        store.put(PATH, b"good")
        # aiohttp itself asks once more when a connection is dropped.
        store.inject(replace(fault, times=2 if fault.drop else 1))
        async with made(store) as (source, clock), watching(source, heard):
            await heard.until(lambda h: h.troubles)
            assert said in heard.troubles[0].message
            assert 0 < await clock.step() <= 60
            await heard.until(lambda h: h.submitted)
            assert heard.bodies == [b"good"]

    run(test())


def test_a_slow_server_is_trouble() -> None:
    """A server that accepts and says nothing is given up after the time limit."""

    async def test() -> None:
        store = HttpsStore()
        store.inject(Fault(delay=30))
        async with made(store, upstream=UpstreamSettings(total_timeout_seconds=0.2, read_timeout_seconds=0.2)) as (
            source,
            _,
        ):
            with pytest.raises(SourceError, match=r"in time|timed? ?out|too slow|did not"):
                await source.fetch()

    run(test())


def test_a_truncated_answer_is_trouble() -> None:
    """A body shorter than its Content-Length is no bundle."""

    async def test() -> None:
        async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10)
            writer.close()

        server = await asyncio.start_server(cut, "127.0.0.1", 0)
        out = Upstream()
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/b"
        source = HttpsSource(HttpsSettings(url=url), upstream=out, clock=StepClock(), rng=random.Random(1))
        try:
            with pytest.raises(SourceError):
                await source.fetch()
        finally:
            await out.close()
            server.close()

    run(test())


def test_gone_ends_the_polling_and_withdraws_nothing() -> None:
    """After 410 nothing is asked any more, however long the watch goes on; it is reported once."""

    async def test() -> None:
        store, heard = HttpsStore(gone={PATH}), Listener()
        async with made(store) as (source, clock), watching(source, heard):
            await heard.until(lambda h: h.troubles)
            for _ in range(5):
                await clock.step()
            await clock.asleep()
            assert len(store.asked) == 1
            assert [trouble.message.endswith("not asked again") for trouble in heard.troubles] == [True]
            assert heard.submitted == []

    run(test())


def test_retry_after_is_heeded_within_reason() -> None:
    """A server that asks for a pause gets it, up to five minutes."""

    async def test() -> None:
        waits = ["120", "999999"]

        class Busy(HttpsStore):
            async def answer(self, request: web.Request) -> web.Response:
                return web.Response(status=503, headers={"Retry-After": waits.pop(0)})

        store, heard = Busy(), Listener()
        store.put(PATH, b"x")
        async with made(store) as (source, clock), watching(source, heard):
            await heard.until(lambda h: len(h.troubles) == 1)
            assert 120 < await clock.step() <= 121
            await heard.until(lambda h: len(h.troubles) == 2)
            assert 300 < await clock.step() <= 302

    run(test())


def test_redirects_stay_within_the_origin() -> None:
    """A redirect on the same origin is followed; one to another host is not, and the other host is named."""

    async def test() -> None:
        store = HttpsStore()
        store.put("/new", b"moved")
        async with made(store) as (source, _):
            store.redirects[PATH] = "/new"
            assert (await source.fetch()).data == b"moved"
            store.redirects[PATH] = PATH
            with pytest.raises(SourceError, match="redirected more than"):
                await source.fetch()
            for elsewhere in ("http://169.254.169.254/latest/user-data", "//evil.example/x", "https://127.0.0.1/x"):
                store.redirects[PATH] = elsewhere
                asked = len(store.asked)
                with pytest.raises(SourceError, match="other hosts are not followed"):
                    await source.fetch()
                assert len(store.asked) == asked + 1
            for nowhere in ("", "http://", "file:///etc/passwd", "http://user:pass@127.0.0.1/"):
                store.redirects[PATH] = nowhere
                with pytest.raises(SourceError, match="redirected"):
                    await source.fetch()

    run(test())


def test_a_pre_signed_url_works_and_never_shows_itself() -> None:
    """The query is sent as it is, and appears in no error."""

    async def test() -> None:
        store = HttpsStore(signature="c2VjcmV0")
        store.put(PATH, b"signed")
        async with made(store, query="?X-Signature=c2VjcmV0&X-Amz-Expires=60") as (source, _):
            assert (await source.fetch()).data == b"signed"
            store.signature = "another"
            with pytest.raises(SourceError) as caught:
                await source.fetch()
            assert "c2VjcmV0" not in f"{caught.value} {caught.value.hint}"
            assert "pre-signed" in (caught.value.hint or "")

    run(test())


def test_the_bearer_token_is_read_for_every_request(tmp_path: Path) -> None:
    """A token that is replaced in its file is used from the next request on; a bad file is trouble that shows nothing."""

    async def test() -> None:
        token = tmp_path / "token"
        token.write_text("first\n")
        store = HttpsStore(token="first")
        store.put(PATH, b"x")
        async with made(store, token_file=token) as (source, _):
            assert (await source.fetch()).data == b"x"
            store.token = "second"
            with pytest.raises(SourceError, match="401"):
                await source.fetch()
            token.write_text("second")
            assert (await source.fetch()).data == b"x"
            token.write_bytes(b"two words\r\nInjected: header")
            with pytest.raises(SourceError, match="expected a bearer token") as caught:
                await source.fetch()
            assert "Injected" not in str(caught.value)
            token.unlink()
            with pytest.raises(SourceError, match="cannot be read"):
                await source.fetch()

    run(test())


def test_the_url_of_a_file_is_read_again_for_every_request(tmp_path: Path) -> None:
    """A pre-signed URL that is replaced in its file is asked next, and what the file holds is in no error's text."""

    async def test() -> None:
        store, file = HttpsStore(), tmp_path / "url"
        store.put(PATH, b"first")
        store.put("/other", b"second")
        async with made(store, url=None, url_file=file) as (source, _):
            with pytest.raises(SourceError, match="cannot be read"):
                await source.fetch()
            file.write_text(f"{store.url}{PATH}?signature=one\n")
            assert (await source.fetch()).data == b"first"
            file.write_text(f"{store.url}/other?signature=two")
            assert (await source.fetch()).data == b"second"
            several, named, long = "https://h/SECRET https://h/", "https://u:SECRET@h/", "https://h/" + "SECRET" * 1000
            for bad in ("", "SECRET", several, named, long):
                file.write_text(bad)
                with pytest.raises(SourceError) as caught:
                    await source.fetch()
                assert "SECRET" not in f"{caught.value}{caught.value.hint}"

    run(test())


def test_an_answer_of_a_url_that_was_replaced_meanwhile_counts_no_more(tmp_path: Path) -> None:
    """The former place is still being asked when the file names another: what it answers then is not submitted."""

    async def test() -> None:
        store, heard, file = HttpsStore(holds=True), Listener(), tmp_path / "url"
        store.put(PATH, b"former")
        store.put("/other", b"present")
        async with store:
            file.write_text(f"{store.url}{PATH}\n")
            out = Upstream(UpstreamSettings(connect_timeout_seconds=2, total_timeout_seconds=5))
            clock = StepClock()
            settings = HttpsSettings(url_file=file)
            source = HttpsSource(settings, upstream=out, clock=clock, rng=random.Random(1))
            async with watching(source, heard):
                await heard.until(lambda h: h.submitted)
                await clock.step()
                await store.someone_waits()
                file.write_text(f"{store.url}/other\n")
                store.put(PATH, b"latest of the former")
                await heard.until(oks(2))
                await clock.step()
                await heard.until(lambda h: len(h.submitted) == 2)
                assert heard.bodies == [b"former", b"present"]
            await out.close()

    run(test())


def test_what_is_gone_is_gone_at_its_url_only(tmp_path: Path) -> None:
    """After 410 the next URL in the file is asked, without the tag of the one before."""

    async def test() -> None:
        store, heard, file = HttpsStore(gone={PATH}), Listener(), tmp_path / "url"
        store.put("/other", b"new")
        async with made(store, url=None, url_file=file, wait_seconds=0) as (source, clock):
            file.write_text(f"{store.url}{PATH}")
            async with watching(source, heard):
                await heard.until(lambda h: h.troubles)
                for _ in range(5):
                    await clock.step()
                assert len(store.asked) == 1
                file.write_text(f"{store.url}/other")
                while not heard.submitted:
                    await clock.step()
                assert heard.bodies == [b"new"]

    run(test())


def test_a_bearer_token_is_not_sent_in_clear(tmp_path: Path) -> None:
    """Over plain http to another machine the token stays here."""
    token = tmp_path / "token"
    token.write_text("secret")
    settings = HttpsSettings(url="http://192.0.2.1/b", token_file=token)
    source = HttpsSource(settings, upstream=Upstream(), clock=StepClock(), rng=random.Random(1))
    with pytest.raises(SourceError, match="not sent over plain http"):
        asyncio.run(source.fetch())


def test_a_private_ca_is_believed_only_when_configured(tmp_path: Path) -> None:
    """TLS is verified: against the private authority when it is configured, and refused without it."""
    ca_file, context = private_ca(tmp_path)

    async def test() -> None:
        store = HttpsStore(tls=context)
        store.put(PATH, b"private")
        async with made(store, upstream=UpstreamSettings(ca_file=str(ca_file))) as (source, _):
            assert (await source.fetch()).data == b"private"
        async with made(HttpsStore(tls=context)) as (source, _):
            with pytest.raises(SourceError):
                await source.fetch()

    run(test())


def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY and its kin change nothing."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def test() -> None:
        store = HttpsStore()
        store.put(PATH, b"direct")
        async with made(store) as (source, _):
            assert (await source.fetch()).data == b"direct"

    run(test())


def test_verdicts_are_posted() -> None:
    """An acknowledgement says what was decided about which bundle, and who decided."""

    async def test() -> None:
        store = HttpsStore()
        async with made(store, ack_url="same", worker="i-123") as (source, _):
            await source.acknowledge(
                Ack(origin="https", outcome="accepted", at=START, issuer="cp", subject="s", bundle_id="j", seq=7)
            )
            await source.acknowledge(
                Ack(origin="https", outcome="refused", at=START, code="signature", reason="not that of signer cp")
            )
        assert store.acks == [
            {
                "outcome": "accepted",
                "at": "2026-11-24T12:00:00Z",
                "worker": "i-123",
                "iss": "cp",
                "sub": "s",
                "jti": "j",
                "seq": 7,
            },
            {
                "outcome": "refused",
                "at": "2026-11-24T12:00:00Z",
                "worker": "i-123",
                "code": "signature",
                "reason": "not that of signer cp",
            },
        ]

    run(test())


def test_an_acknowledgement_that_fails_is_tried_a_few_times_and_let_be() -> None:
    """A broken way back costs three attempts and raises nothing; a refusal costs one."""

    async def test() -> None:
        store = HttpsStore()
        async with made(store, ack_url="same") as (source, clock):
            ack = Ack(origin="https", outcome="same", at=START, seq=1)
            store.inject(Fault(status=500, times=2))
            task = asyncio.ensure_future(source.acknowledge(ack))
            await clock.step()
            await clock.step()
            await task
            assert len(store.acks) == 1
            store.inject(Fault(status=403))
            await source.acknowledge(ack)
            assert len(store.acks) == 1

    run(test())


def test_the_last_word_is_the_last_verdict() -> None:
    """One that could not be posted is not tried again behind a later one."""

    async def test() -> None:
        store = HttpsStore()
        async with made(store, ack_url="same") as (source, clock):
            store.inject(Fault(status=503))
            first = Ack(origin="https", outcome="refused", code="signer", at=START, seq=1)
            task = asyncio.ensure_future(source.acknowledge(first))
            await clock.asleep()
            await source.acknowledge(Ack(origin="https", outcome="accepted", at=START, seq=2))
            await clock.step()
            await task
            assert [(ack["outcome"], ack["seq"]) for ack in store.acks] == [("accepted", 2)]

    run(test())


@pytest.fixture(autouse=True)
def _no_leaks(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    yield
    assert not [w for w in recwarn.list if issubclass(w.category, ResourceWarning)]


@pytest.mark.parametrize("which", ["token_file", "url_file"])
def test_a_file_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """A file on a mount that hangs is the source's trouble, and holds up nothing."""
    monkeypatch.setattr("agent.host.patience.WAIT_SECONDS", 0.0)
    path = tmp_path / "f"
    path.touch()

    async def story() -> None:
        fields: dict[str, Any] = {"url": "https://127.0.0.1:1/", which: path}
        source = HttpsSource(
            HttpsSettings(**fields),
            upstream=Upstream(),
            clock=StepClock(),
            rng=random.Random(1),
        )
        for _ in range(2):
            with pytest.raises(SourceError, match="it does not answer"):
                await source.fetch()

    with silent(path):
        asyncio.run(story())


def test_it_goes_on_where_the_process_before_stood() -> None:
    """What was read under a tag is neither read nor submitted again by the next process; a change is."""

    async def test() -> None:
        store, heard, next_ = HttpsStore(), Listener(), Listener()
        store.put(PATH, b"one")
        async with made(store) as (source, _):
            before = source.position
            assert before is None
            async with watching(source, heard):
                await heard.until(lambda h: h.submitted)
            left = source.position
            assert left is not None
            assert store.url not in repr(left)
        assert left.content == hashlib.sha256(b"one").hexdigest()
        async with made(store) as (source, clock):
            # The server has another port each time it is started.
            source.go_on(msgspec.structs.replace(left, place=place(store)))
            async with watching(source, next_):
                await next_.until(lambda h: h.oks == 1)
                assert store.asked[-1].status == 304
                assert source.position is not None
                store.put(PATH, b"two")
                await clock.step()
                await next_.until(lambda h: h.submitted)
        assert next_.bodies == [b"two"]

    run(test())


def place(store: HttpsStore) -> str:
    """How a position names the object: not by its URL, which may hold a signature."""
    return hashlib.sha256(f"{store.url}{PATH}".encode()).hexdigest()


@pytest.mark.parametrize("change", [{"place": "0" * 64}, {"tag": '"a\r\nX: y"'}, {"tag": ""}])
def test_a_position_of_another_place_or_in_no_shape_is_none(change: dict[str, str]) -> None:
    """A tag of another object, or one that is none, is not sent: everything is read from the beginning."""

    async def test() -> None:
        store, heard = HttpsStore(), Listener()
        store.put(PATH, b"one")
        async with made(store) as (source, _):
            left = Position(place(store), store.objects[PATH].etag, "c")
            source.go_on(msgspec.structs.replace(left, **change))
            async with watching(source, heard):
                await heard.until(lambda h: h.submitted)
        assert heard.bodies == [b"one"]

    run(test())


def test_a_content_type_that_is_no_text_is_told_as_one() -> None:
    """A portal on the way says what it likes; what we say of it goes into the log, the status and the handover."""
    source = HttpsSource(HttpsSettings(url="https://x/"), upstream=Upstream(), clock=StepClock(), rng=random.Random(1))
    headers = CIMultiDictProxy(CIMultiDict({"Content-Type": "\udcff" * 5000}))
    with pytest.raises(SourceError, match="web page") as raised:
        source._read(UpstreamResponse(200, headers, b"<html>"))
    assert raised.value.message.isascii()
    assert len(raised.value.message) < 300
