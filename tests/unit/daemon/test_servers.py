"""What servers are told and ask, over a real connection: whatever one of them says, the controller goes on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import structlog

from agent.core.errors import Denied, Transient, UpstreamError
from agent.core.model import Cloud, GoogleToken, IdToken
from agent.core.secret import Secret
from agent.core.view import Absent
from agent.daemon import servers as servers_module
from agent.daemon import workers as workers_module
from agent.daemon.passing import Passing
from agent.daemon.requests import Requests
from agent.daemon.servers import Server, Servers
from agent.daemon.workers import Workers
from agent.serve.audit import Ledger
from agent.serve.handling import Access
from agent.serve.link import Link
from agent.serve.mints import AT_ONCE_ASKED, BURST_ASKED
from agent.serve.proxy import CONCURRENCY, MADE_CONCURRENCY
from agent.serve.tally import Tally
from agent.snapshot import ServeSettings
from agent.snapshot.frames import frame_from_server, frame_of, frame_of_snapshot, from_controller
from agent.snapshot.messages import Counts, Crashed, Left, Mint, Minted, Pass, Refused, Served, Taken, Uses
from agent.wire.http import Request
from tests.fakes.clock import START
from tests.fakes.upstreams import Scripted, answer
from tests.fakes.view import KEY, FakeView, google_token
from tests.unit.controller.support import looped
from tests.unit.daemon.test_reload_between import come_true


def asking(number: int) -> bytes:
    """A server's question to the real service."""
    return frame_from_server(Pass(number, Cloud.AWS, "GET", "/latest/meta-data/hostname", (), None, 60.0))


class Controller:
    """A controller with a real service, and the servers that a test connects."""

    def __init__(self) -> None:
        self.view = FakeView()
        self.now = 1000.0
        self.requests = Requests()
        self.real = Scripted()
        self.minted: list[str] = []
        self.gate: asyncio.Event | None = None
        self.refusal: Exception | None = None
        self.ended = 0
        self.servers = Servers(
            self.view.data,
            version=lambda: self.view.served.version,
            passing=lambda: Passing(
                {Cloud.AWS: self.real},
                ServeSettings(token_key=KEY),
                answer=lambda _: Absent("nothing"),
                expects_bundle=lambda: True,
            ),
            id_token=self.id_token,
            access_token=self.access_token,
            requests=self.requests,
            clock=lambda: self.now,
        )

    async def id_token(self, audience: str) -> IdToken | None:
        self.minted.append(audience)
        if self.gate is not None:
            await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        return IdToken(Secret("a.b.c"), audience, START, START)

    async def access_token(self, scopes: tuple[str, ...]) -> GoogleToken | None:
        return google_token(START) if scopes == ("a",) else None

    def _end(self) -> None:
        self.ended += 1

    def change(self) -> None:
        """Something else is served."""
        self.view.touch()
        self.servers.publish(self.view.data())

    @contextlib.asynccontextmanager
    async def raw(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A server that says what the test says."""
        ours, its = socket.socketpair()
        self.servers.link(ours, self._end)
        reader, writer = await asyncio.open_unix_connection(sock=its)
        try:
            yield reader, writer
        finally:
            writer.close()
            self.servers.close()

    @contextlib.asynccontextmanager
    async def honest(self) -> AsyncIterator[Link]:
        """One as it is."""
        link = Link()
        ours, its = socket.socketpair()
        loop = asyncio.get_running_loop()
        self.servers.link(ours, self._end)
        await loop.create_unix_connection(link.protocol, sock=its)
        await link.first()
        try:
            yield link
        finally:
            link.close()
            self.servers.close()


async def heard(reader: asyncio.StreamReader, count: int) -> list[Any]:
    """So many messages, snapshots apart."""
    frames = from_controller()
    found: list[Any] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            data = await reader.read(65536)
            assert data, "the connection ended"
            found += [said for said in frames.feed(data) if not isinstance(said, bytes)]
    return found


@looped
async def test_what_is_told_is_served_before_it_is_waited_for() -> None:
    """Whoever waits until it is taken finds it served; a withdrawal is acknowledged no sooner."""
    controller = Controller()
    async with controller.honest() as link:
        for _ in range(20):
            controller.change()
            await controller.servers.taken()
            assert link.served is not None
            assert link.served.version == controller.view.served.version


@looped
async def test_one_that_does_not_take_it_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may still serve what was withdrawn: it is not waited for without end, and not left alone either."""
    monkeypatch.setattr(servers_module, "TAKEN_SECONDS", 0.05)
    controller = Controller()
    async with controller.raw() as (reader, writer):
        writer.write(frame_of(Taken(controller.view.served.version)))
        await controller.servers.serving()
        controller.change()
        with structlog.testing.capture_logs() as logs:
            await controller.servers.taken(0.05)
        assert controller.ended == 1
        assert logs[0]["event"] == "server.cut_off"
        async with asyncio.timeout(10):
            await reader.read()  # to its end
        await controller.servers.taken()  # nobody is left to wait for


@looped
async def test_one_within_this_process_is_never_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that stood still for too long costs no withdrawal: what is served now is served, and it is told on."""
    links: list[Link] = []

    def made(lost: Callable[[], None]) -> Link:
        links.append(Link(lost))
        return links[-1]

    monkeypatch.setattr(workers_module, "Link", made)
    controller = Controller()
    workers = Workers(controller.servers, [socket.create_server(("127.0.0.1", 0))], passed=(), child=None)
    await workers.begin()
    await controller.servers.serving()
    (link,) = links
    for _ in range(3):
        controller.change()
        await controller.servers.taken(0)
        assert link.served is not None
        assert link.served.version == controller.view.served.version
        async with asyncio.timeout(10):
            await controller.servers.serving()
    controller.change()
    with structlog.testing.capture_logs() as logs:
        await controller.servers.taken()
    assert not logs
    await workers.close(0.1)
    controller.servers.close()


@looped
async def test_a_want_of_descriptors_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers within this process has nobody to begin it anew: it begins as soon as it can, and ends when it is to."""
    monkeypatch.setattr(workers_module, "AGAIN_SECONDS", 0.01)
    pair, missing, missed = socket.socketpair, [1, 2], asyncio.Event()

    def scarce() -> tuple[socket.socket, socket.socket]:
        if missing:
            missing.pop()
            missed.set()
            raise OSError(errno.EMFILE, "none")
        return pair()

    monkeypatch.setattr(socket, "socketpair", scarce)
    controller = Controller()
    workers = Workers(controller.servers, [socket.create_server(("127.0.0.1", 0))], passed=(), child=None)
    async with asyncio.timeout(10):
        await workers.begin()
        await controller.servers.serving()
        missing += range(1_000_000)
        missed.clear()
        controller.servers.close()  # it would be connected again
        await missed.wait()
        await workers.close(0.1)


@looped
async def test_what_watches_connections_is_waited_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last descriptor that answering within this process needs may be wanting as any before it: workers wait."""
    monkeypatch.setattr(workers_module, "AGAIN_SECONDS", 0.01)
    watch, missing = select.epoll, [1, 2]

    def scarce() -> select.epoll:
        if missing:
            missing.pop()
            raise OSError(errno.EMFILE, "none")
        return watch()

    monkeypatch.setattr(select, "epoll", scarce)
    controller = Controller()
    listening = socket.create_server(("127.0.0.1", 0))
    workers = Workers(controller.servers, [listening], passed=(), child=None)
    async with asyncio.timeout(10):
        await workers.begin()
        assert not missing
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 ")
        writer.close()
        await workers.close(0.1)


class Gone:
    """A process that can be begun no more."""

    def answer(self, _sockets: Sequence[socket.socket], _servers: Servers, gone: Callable[[], None]) -> None:
        gone()

    async def close(self, _grace_seconds: float) -> None:
        pass


@looped
@pytest.mark.parametrize("lacking", [(socket, "socketpair"), (select, "epoll")], ids=["its link", "what watches"])
async def test_whatever_breaks_off_workers_are_answered_here(
    monkeypatch: pytest.MonkeyPatch, lacking: tuple[Any, str]
) -> None:
    """Nobody waits for the task by which the agent itself answers workers, or is told again: both are begun anew."""
    monkeypatch.setattr(workers_module, "CRASHED_SECONDS", 0.01)
    made, missing = getattr(*lacking), [1, 2]

    def scarce() -> Any:
        if missing:
            missing.pop()
            raise MemoryError
        return made()

    monkeypatch.setattr(*lacking, scarce)
    controller = Controller()
    listening = socket.create_server(("127.0.0.1", 0))
    workers = Workers(controller.servers, [listening], passed=(), child=Gone())  # type: ignore[arg-type]
    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(60):
            await workers.begin()
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 ")
            writer.close()
            if lacking[0] is socket:
                missing += [1, 2]
                controller.servers.close()
                while missing:  # noqa: ASYNC110 - who connects again tells nobody
                    await asyncio.sleep(0)
            controller.change()
            await controller.servers.serving()
        await workers.close(0.1)
    controller.servers.close()
    assert {line["error"] for line in logs if line["event"] == "work.crashed"} == {"MemoryError"}


@looped
async def test_taking_what_was_never_told_changes_nothing() -> None:
    """A version from the future is not one that is served: what comes after it is waited for."""
    controller = Controller()
    async with controller.raw() as (_, writer):
        writer.write(frame_of(Taken(1 << 60)))
        await controller.servers.serving()
        controller.change()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await controller.servers.serving()


@looped
async def test_nobody_is_told_before_it_has_ended() -> None:
    """To have it ended is not its end: a process that is being ended may still answer."""
    controller = Controller()
    async with controller.raw() as (_, writer):
        writer.write(frame_of(Taken(controller.view.served.version)))
        await controller.servers.serving()
        controller.change()
        told = asyncio.create_task(controller.servers.taken(0.2))
        while not controller.ended:  # noqa: ASYNC110 - looked at in each turn of the loop: in no time after it
            await asyncio.sleep(0)
        assert controller.ended == 1
        assert not told.done()
        writer.transport.abort()  # the kernel does that for a process that was killed
        async with asyncio.timeout(10):
            await told


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">IB", 1 << 30, 1),
        frame_of_snapshot(b"x"),
        frame_of(Minted(1)),
        b"\x80\x04\x95." * 20,  # a pickle
    ],
)
@looped
async def test_what_may_not_be_said_ends_the_connection(said: bytes) -> None:
    """Nothing after it is read, whatever was under way is given up, and others are served on."""
    controller = Controller()
    async with controller.honest() as link, controller.raw() as (reader, writer):
        with structlog.testing.capture_logs() as logs:
            writer.write(said)
            async with asyncio.timeout(10):
                await reader.read()
        assert [line["event"] for line in logs] == ["server.cut_off"]
        assert controller.ended == 1
        assert (await link.id_token("x")) is not None


@looped
async def test_mints_are_bounded_for_a_whole_server() -> None:
    """Naming workers costs a taken server nothing: so many at once, and so many a second, are made for all of them."""
    controller = Controller()
    controller.gate = asyncio.Event()
    async with controller.raw() as (reader, writer):
        for number in range(1, 401):
            writer.write(frame_of(Mint(number, f"aud-{number}")))
        refused = await heard(reader, 400 - AT_ONCE_ASKED)
        assert {one.why for one in refused} == {"tokens are asked for too often"}
        assert len(controller.minted) == AT_ONCE_ASKED
        controller.gate.set()
        await heard(reader, AT_ONCE_ASKED)
        for number in range(500, 700):
            writer.write(frame_of(Mint(number, f"aud-{number}")))
            await heard(reader, 1)
        assert len(controller.minted) <= BURST_ASKED + 1


@looped
async def test_a_server_that_ends_itself_has_nothing_anew() -> None:
    """Whoever takes it over could end it as often as it likes: what was used up stays so for its successors."""
    controller = Controller()
    for _ in range(3):
        async with controller.raw() as (reader, writer):
            for number in range(1, 401):
                writer.write(frame_of(Mint(number, f"aud-{number}")))
                await heard(reader, 1)
    assert len(controller.minted) <= BURST_ASKED + 1


@looped
async def test_a_question_whose_asker_has_left_is_given_up() -> None:
    """A long poll of a worker that is gone holds nothing in the controller; nor does one whose server is gone."""
    controller = Controller()
    controller.real.silent = True
    async with controller.raw() as (_, writer):
        for number in (1, 2):
            writer.write(frame_of(Pass(number, Cloud.AWS, "GET", "/latest/meta-data/hostname", (), None, 3600.0)))
        async with asyncio.timeout(10):
            while controller.real.under_way < 2:  # noqa: ASYNC110 - what is asked tells nobody
                await asyncio.sleep(0.01)
            writer.write(frame_of(Left(1)))
            while controller.real.under_way > 1:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.01)
            writer.close()
            while controller.real.under_way:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.01)


@looped
async def test_a_number_that_is_under_way_is_one_question() -> None:
    """Asked for again it is nothing new: else what its asker has left would go on, and nobody could end it."""
    controller = Controller()
    controller.real.silent = True
    async with controller.raw() as (_, writer):
        for number, path in ((1, "hostname"), (1, "hostname"), (2, "local-hostname")):
            writer.write(frame_of(Pass(number, Cloud.AWS, "GET", f"/latest/meta-data/{path}", (), None, 3600.0)))
        await come_true(lambda: bool(controller.real.asked) and "local" in controller.real.asked[-1].path_qs)
        assert controller.real.under_way == 2
        writer.write(frame_of(Left(1)))
        writer.write(frame_of(Left(2)))
        await come_true(lambda: controller.real.under_way == 0)


@looped
async def test_what_is_asked_is_answered() -> None:
    """Tokens, refusals of both kinds, and what the real service says, as they are."""
    controller = Controller()
    controller.real.answers["/latest/meta-data/hostname"] = answer("h", Server="EC2ws", Set_Cookie="x")
    async with controller.honest() as link:
        minted = await link.id_token("aud")
        assert minted is not None
        assert minted.audience == "aud"
        assert await link.scoped(("a",)) == google_token(START)
        assert await link.scoped(("b",)) is None
        for kind in (Denied, Transient):
            controller.refusal = kind("not for you")
            with pytest.raises(kind, match="not for you"):
                await link.id_token("other")
        found = await link.service(Cloud.AWS).request("GET", "/latest/meta-data/hostname", timeout_seconds=1)
        assert (found.status, found.body, found.headers.get("SERVER")) == (200, b"h", "EC2ws")
        assert "Set-Cookie" not in found.headers
        with pytest.raises(UpstreamError):
            await link.service(Cloud.GCP).request("GET", "/computeMetadata/v1/instance/id", timeout_seconds=1)


@looped
async def test_without_a_controller_what_must_be_asked_fails_at_once() -> None:
    """What was served is served on; a question that was under way ends, and the next does not wait."""
    controller = Controller()
    controller.gate = asyncio.Event()
    controller.real.silent = True
    async with controller.honest() as link:
        service = link.service(Cloud.AWS)
        asked = asyncio.create_task(service.request("GET", "/latest/meta-data/hostname", timeout_seconds=60))
        mint = asyncio.create_task(link.id_token("x"))
        await asyncio.sleep(0.01)
        controller.servers.close()
        with pytest.raises(UpstreamError):
            await asked
        with pytest.raises(Transient):
            await mint
        with pytest.raises(Transient):
            await link.id_token("y")
        assert link.served is not None
        assert not link.say(Left(1))


@looped
async def test_what_a_worker_asks_never_ends_the_connection() -> None:
    """However long: it is refused on this side."""
    controller = Controller()
    async with controller.honest() as link:
        with pytest.raises(UpstreamError):
            await link.service(Cloud.AWS).request("G" * 99, "/" + "x" * 30000, timeout_seconds=1)
        with pytest.raises(Transient):
            await link.id_token("x" * 3000)
        assert link.say(Left(1))


@looped
async def test_numbers_are_told_when_they_are_asked_for() -> None:
    """Status and metrics count every request that was answered before they were asked for; refusals reach the log."""
    controller = Controller()
    async with controller.honest() as link:
        tally = Tally(link.say, Ledger("summary", None))
        link.told = lambda: tally.told(Uses(1 << 20, 0.5, 12))
        one = Access("GET", "/x\udc80", 200, 0.1, 5, "u" * 9999)
        with structlog.testing.capture_logs() as logs:
            for status in (200, 200, 403, 403, 0):
                tally.access(Access(one.method, one.path, status, one.seconds, one.size_bytes, one.user_agent))
            tally.broken(Request("GET", "/x", "", (), False, {}), ValueError("secret"))
            await controller.servers.counted()
        assert [one.uses for one in controller.servers.connected] == [Uses(1 << 20, 0.5, 12)]
        assert controller.requests.counts == {("worker", 200): 2, ("worker", 403): 2, ("worker", 0): 1}
        assert [(line["event"], line.get("status")) for line in logs] == [
            ("request.refused", 403),
            ("request.refused", 0),
            ("request.crashed", None),
        ]
        assert "secret" not in str(logs)
        tally.close()


@looped
async def test_last_words_are_heard_though_their_server_has_ended() -> None:
    """It was linked, told its numbers and ended before this process had its turn, so that nothing can be told to it."""
    controller = Controller()
    ours, its = socket.socketpair()
    with its:
        its.sendall(frame_from_server(Counts(((200, 7),))))
        its.sendall(frame_from_server(Mint(1, "audience")))
    controller.servers.link(ours)
    await controller.servers.gone(60)
    assert not controller.servers.connected
    assert controller.requests.counts == {("worker", 200): 7}
    assert controller.minted == []


@looped
async def test_one_that_asks_on_and_reads_no_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits until it has taken the answer before is bounded in bytes, and not only as so many questions."""
    monkeypatch.setattr(servers_module, "MOST_WAITING_BYTES", 1 << 20)
    controller = Controller()
    controller.real.always = answer(b"x" * (1 << 17))
    async with controller.raw() as (_, writer):
        for number in range(1, 65):
            writer.write(asking(number))
        await come_true(lambda: controller.ended == 1)


@looped
async def test_one_that_reads_its_answers_goes_on_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has taken counts no more among what waits for it."""
    monkeypatch.setattr(servers_module, "MOST_WAITING_BYTES", 1 << 18)
    controller = Controller()
    controller.real.always = answer(b"x" * (1 << 17))
    async with controller.raw() as (reader, writer):
        for number in range(1, 9):
            writer.write(asking(number))
            (told,) = await heard(reader, 1)
            assert len(told.body) == 1 << 17
        assert controller.ended == 0


@looped
async def test_no_more_is_asked_for_one_that_reads_no_answer() -> None:
    """Beside what the connection itself holds there are so many answers in memory as may be asked for at once."""
    controller = Controller()
    controller.real.always = answer(b"x" * (1 << 17))
    async with controller.raw() as (_, writer):
        for number in range(1, 301):
            writer.write(asking(number))
        writer.write(frame_of(Mint(301, "the last")))
        await come_true(lambda: controller.minted == ["the last"])
        at_once = 2 * (CONCURRENCY + MADE_CONCURRENCY)
        assert at_once <= len(controller.real.asked) < 2 * at_once


@looped
async def test_last_words_that_cannot_be_heard_are_no_server_that_lives_on() -> None:
    """There is no memory for them: no acknowledgement waits for one that has ended."""
    controller, ended = Controller(), asyncio.Event()
    errors: list[object] = []

    def no_memory(*_: object) -> None:
        raise MemoryError

    def crashed(_loop: object, context: dict[str, object]) -> None:
        errors.append(context["exception"])
        ended.set()

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(crashed)
    controller.servers.heard = no_memory
    ours, its = socket.socketpair()
    with its:
        its.sendall(frame_from_server(Served()))
    controller.servers.link(ours)
    async with asyncio.timeout(60):
        await ended.wait()
    await controller.servers.gone(60)
    assert await controller.servers.taken(0.0)
    assert {type(error) for error in errors} == {MemoryError}


@looped
async def test_a_server_cannot_fill_the_log() -> None:
    """Of all that it says for the log, some a minute are written."""
    controller = Controller()
    async with controller.raw() as (reader, writer):
        with structlog.testing.capture_logs() as logs:
            for status in range(1000):
                writer.write(frame_of(Refused("GET", "/", status, 0.0, 0, "", None)))
                writer.write(frame_of(Crashed("/", "E", "")))
            writer.write(frame_of(Counts(())))
            writer.write(frame_of(Mint(1, "x")))
            await heard(reader, 1)
        assert len(logs) <= 20


@looped
async def test_one_that_is_stuck_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing changes, so nothing is waited for, and its process runs: all the same it answers nobody any more."""
    monkeypatch.setattr(servers_module, "ASKED_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(servers_module, "ANSWERED_SECONDS", 0.1)
    controller = Controller()
    async with controller.honest() as link, controller.raw() as (reader, _):
        link.told = Tally(link.say, Ledger("summary", None)).told
        watching = asyncio.create_task(controller.servers.watch())
        with structlog.testing.capture_logs() as logs:
            async with asyncio.timeout(10):
                await reader.read()  # to its end
            await asyncio.sleep(0.5)
        assert [line["why"] for line in logs] == ["it does not answer"]
        assert controller.ended == 1
        assert link.say(Left(1))  # the other goes on
        watching.cancel()


@looped
async def test_one_that_answers_when_asked_again_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process did not hear in time it may not have read itself; who is silent twice in a row is ended."""
    controller = Controller()
    async with controller.raw(), controller.raw():
        slow, stuck = controller.servers.connected
        heard = [{slow}, set(), {slow, stuck}, {stuck}]
        ended: asyncio.Future[Server] = asyncio.get_running_loop().create_future()

        async def counted(_: Servers, _seconds: float) -> set[Server]:
            return heard.pop(0) if heard else set()

        def cut_off(server: Server) -> None:
            ended.set_result(server)

        monkeypatch.setattr(Servers, "counted", counted)
        monkeypatch.setattr(servers_module, "ASKED_EVERY_SECONDS", 0.001)
        monkeypatch.setattr(Server, "cut_off", cut_off)
        watching = asyncio.create_task(controller.servers.watch())
        with structlog.testing.capture_logs() as logs:
            assert await asyncio.wait_for(ended, 60) is stuck
        watching.cancel()
        assert [line["why"] for line in logs] == ["it does not answer"]


def test_one_that_is_stuck_is_ended_within_half_a_minute() -> None:
    """From the moment after it was asked: until it is asked again, and then twice in vain."""
    assert servers_module.ASKED_EVERY_SECONDS + 2 * servers_module.ANSWERED_SECONDS <= 30.0
