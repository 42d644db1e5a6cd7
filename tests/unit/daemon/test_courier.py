"""The couriers' socket: what its routes answer to whom, and when it is opened, missed, made again and closed."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from structlog.testing import capture_logs

from agent import bundle, config, enrol, keys
from agent.core.model import SealedBundle
from agent.core.source import COURIER, Ack
from agent.daemon.courier import REFUSALS_KEPT, Couriers
from agent.daemon.couriers import AGAIN_SECONDS, KEY, CourierSocket
from agent.daemon.opening import Opening
from agent.daemon.socket_name import LOOK_SECONDS, SocketName
from agent.serve.control import ControlRequest
from agent.serve.courier import CourierEndpoint
from agent.wire import names
from agent.wire.http import Request
from tests.fakes.clock import START, FakeClock
from tests.unit.daemon.worker import Worker

NONCE = "AAAAAAAAAAAAAAAAAAAAAA"
ENROL, BUNDLE, STATUS = ("POST", names.ENROL_PATH), ("PUT", names.BUNDLE_PATH), ("GET", names.STATUS_PATH)


GROUP = 54321 if os.geteuid() == 0 else os.getegid()  # to another than its own only root gives a file


class Key:
    """A worker's key of a kind, of which a status may tell the public half."""

    def __init__(self, kind: str, *, shared: bool = False) -> None:
        self.kind = kind
        self._key = bundle.OpeningKey.generate("P-256")
        self.kid = self._key.kid
        self._shared = shared

    def public_jwk(self) -> dict[str, str] | None:
        return None if self._shared else self._key.recipient_key().public_jwk()


class Desk:
    """The routes; who evaluates, who attests and who writes the environment files is the test's."""

    def __init__(self, root: Path, *own: Key) -> None:
        worker = Worker(root)
        keyring: Any = keys.Keyring(own)  # type: ignore[arg-type]
        self.opening = Opening(keyring, worker.prepared.opening.pinned, frozenset({"key:other"}))
        self.submitted: list[SealedBundle] = []
        self.asked: list[tuple[str, str]] = []
        self.settled = 0
        self.acks: list[Ack] = []
        attestor: Any = self
        self.table = Couriers(
            worker.store, self.opening, attestor, submit=self._submit, settled=self._settle, clock=FakeClock()
        ).routes()

    async def _submit(self, sealed: SealedBundle) -> Ack:
        self.submitted.append(sealed)
        return self.acks.pop(0)

    async def _settle(self) -> None:
        self.settled += 1

    async def collect(self, thumbprint: str, nonce: str, _now: object) -> tuple[tuple[()], tuple[enrol.Missing, ...]]:
        self.asked.append((thumbprint, nonce))
        return (), (enrol.Missing("aws-sts", "none", "no metadata service"),)

    def ask(self, route: tuple[str, str], body: bytes = b"", uid: int = 1000) -> tuple[int, Any]:
        """The status and the document of the answer."""
        method, path = route
        request = ControlRequest(Request(method, path, "", (), False, {}, body=body), uid, uid, 1)
        response = asyncio.run(_awaited(self.table[route](request)))
        return response.status, msgspec.json.decode(response.body)

    def bring(
        self, outcome: Literal["accepted", "same", "refused"], *, uid: int = 1000, confirmed: bool = True, seq: int = 1
    ) -> int:
        """The status with which a bundle is answered on which that is the verdict."""
        refused = outcome == "refused"
        code, reason = ("audience", "for another") if refused else (None, None)
        self.acks.append(
            Ack(origin=COURIER, outcome=outcome, at=START, code=code, reason=reason, seq=seq, confirmed=confirmed)
        )
        return self.ask(BUNDLE, b"x", uid)[0]

    def refusal(self, uid: int) -> Any:
        """What the status tells that user of the last refusal."""
        return self.ask(STATUS, uid=uid)[1]["refused"]


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


class TestEnrolment:
    def test_a_key_that_this_machine_made_is_told_before_one_that_was_brought(self, tmp_path: Path) -> None:
        """Whoever has a copy of the other opens nothing; the evidence is about the key that is told, and the question."""
        brought, made = Key("file"), Key("ephemeral")
        desk = Desk(tmp_path, brought, made)
        status, document = desk.ask(ENROL, enrol.write_question(NONCE))
        assert (status, document["key"]) == (200, made.public_jwk())
        thumbprint = enrol.thumbprint_of(document["key"])
        assert desk.asked == [(thumbprint, NONCE)]
        assert (document["nonce"], document["thumbprint"]) == (NONCE, thumbprint)
        assert document["audiences"] == sorted(
            {"key:other", *(bundle.audience_key(key.kid) for key in (brought, made))}
        )
        assert [one["kind"] for one in document["missing"]] == ["aws-sts"]

    def test_a_shared_key_is_told_to_nobody(self, tmp_path: Path) -> None:
        """Another that has a public half is; where there is none, no evidence is collected."""
        own = Key("file")
        assert (
            Desk(tmp_path, Key("credential", shared=True), own).ask(ENROL, enrol.write_question(NONCE))[1]["key"]
            == own.public_jwk()
        )

    @pytest.mark.parametrize("own", [[], [Key("file", shared=True)]], ids=["none", "a shared one"])
    def test_without_a_key_nothing_is_collected(self, tmp_path: Path, own: list[Key]) -> None:
        """It is said that there is none to seal to."""
        desk = Desk(tmp_path, *own)
        assert desk.ask(ENROL, enrol.write_question(NONCE))[0] == 409
        assert desk.asked == []

    @pytest.mark.parametrize("body", [b"", b"[]", b'{"nonce": 1}', b'{"nonce": "short"}'])
    def test_no_question_is_no_errand(self, tmp_path: Path, body: bytes) -> None:
        """Nobody is asked for evidence by what is no question."""
        desk = Desk(tmp_path, Key("file"))
        assert desk.ask(ENROL, body)[0] == 400
        assert desk.asked == []


class TestBundle:
    def test_it_is_submitted_as_a_courier_s(self, tmp_path: Path) -> None:
        """It wakes nobody as an operator's push does, and counts as brought here."""
        desk = Desk(tmp_path)
        assert desk.bring("accepted") == 200
        assert desk.submitted == [SealedBundle(data=b"x", origin=COURIER)]

    def test_nothing_is_no_bundle(self, tmp_path: Path) -> None:
        """It is not submitted, and no refusal of a bundle is remembered."""
        desk = Desk(tmp_path)
        assert desk.ask(BUNDLE)[0] == 400
        assert (desk.submitted, desk.refusal(1000)) == ([], None)

    @pytest.mark.parametrize(("outcome", "status"), [("accepted", 200), ("same", 200), ("refused", 422)])
    def test_an_answer_waits_for_the_environment_files(
        self, tmp_path: Path, outcome: Literal["accepted", "same", "refused"], status: int
    ) -> None:
        """Whoever hears of it may start a program at once."""
        desk = Desk(tmp_path)
        assert (desk.bring(outcome), desk.settled) == (status, 1)

    def test_what_nobody_confirms_is_to_be_brought_again(self, tmp_path: Path) -> None:
        """Nothing is waited for then, since it may not come."""
        desk = Desk(tmp_path)
        assert (desk.bring("accepted", confirmed=False), desk.settled) == (503, 0)


class TestRefusals:
    def test_it_is_told_to_who_brought_it(self, tmp_path: Path) -> None:
        """The last one, and to nobody else."""
        desk = Desk(tmp_path)
        desk.bring("refused", seq=1)
        desk.bring("refused", seq=2)
        assert (desk.refusal(1000)["code"], desk.refusal(1000)["seq"]) == ("audience", 2)
        assert desk.refusal(1001) is None

    @pytest.mark.parametrize("outcome", ["accepted", "same"])
    def test_it_is_forgotten_when_a_bundle_is_taken(self, tmp_path: Path, outcome: Literal["accepted", "same"]) -> None:
        """That of the same user, and of no other."""
        desk = Desk(tmp_path)
        for uid in (1000, 1001):
            desk.bring("refused", uid=uid)
        desk.bring(outcome, uid=1000)
        assert desk.refusal(1000) is None
        assert desk.refusal(1001) is not None

    def test_so_many_users_are_remembered(self, tmp_path: Path) -> None:
        """Then the one goes whose last refusal is the longest ago, however early the first was."""
        desk = Desk(tmp_path)
        for uid in range(REFUSALS_KEPT):
            desk.bring("refused", uid=uid)
        assert desk.refusal(0) is not None
        desk.bring("refused", uid=0)
        desk.bring("refused", uid=REFUSALS_KEPT)
        assert desk.refusal(1) is None
        assert all(desk.refusal(uid) is not None for uid in (0, 2, REFUSALS_KEPT))


def test_a_status_says_what_a_courier_may_know(tmp_path: Path) -> None:
    """Its version, who is served, which keys a bundle may be sealed to and whom we trust; no path and no secret."""
    key = Key("file")
    desk = Desk(tmp_path, key)
    status, document = desk.ask(STATUS)
    assert (status, document["ver"], document["keys"], document["bundle"]) == (200, 1, [key.kid], None)
    assert set(document["clouds"]) == {"aws", "gcp"}
    assert [one["origin"] for one in document["signers"]] == ["configuration"]
    assert set(document) == {"ver", "version", "now", "clouds", "bundle", "refused", "keys", "signers"}
    assert str(tmp_path) not in str(document)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose name is short enough for a socket in it."""
    path = Path(tempfile.mkdtemp(prefix="couriers-"))
    yield path
    shutil.rmtree(path)


class Opened:
    """The socket, whether systemd passes it (``passed``) or it is ours to make."""

    def __init__(self, place: Path, *, passed: bool = False, courier: str = "") -> None:
        self.path = place / "run" / "courier"
        self.reasons: dict[str, str] = {}
        self.clock = FakeClock()
        self.passed: dict[str, list[socket.socket]] = {}
        if passed:
            sock = socket.socket(socket.AF_UNIX)
            self.path.parent.mkdir()
            sock.bind(str(self.path))
            sock.listen()
            sock.setblocking(False)
            self.passed["courier"] = [sock]
        endpoint = CourierEndpoint({}, clock=self.clock)
        self.socket = CourierSocket(
            endpoint,
            config.Listen(control=str(place / "control"), courier=courier or str(self.path)),
            self.passed,
            gid=lambda: GROUP,
            reasons=lambda: self.reasons,
            clock=self.clock,
        )

    async def answers(self) -> bool:
        """Whether somebody answers who connects by the name."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.path))
        except OSError:
            return False
        writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read(12)
        writer.close()
        return answer.startswith(b"HTTP/1.1")

    async def until(self, look: Callable[[], object], *, every: float = 0.0) -> None:
        """Until ``look`` is true; ``every``: let so many seconds pass on its clock each time it sleeps."""
        async with asyncio.timeout(60):
            while not look():
                if every and self.clock.sleeping:
                    self.clock.move(every)
                await asyncio.sleep(0)

    def run(self, talk: Callable[[], Awaitable[None]], *, listen: bool = True) -> None:
        """Listen and keep it; talk; close."""

        async def main() -> None:
            if listen:
                self.socket.listen()
            task = asyncio.create_task(self.socket.run())
            try:
                await talk()
            finally:
                task.cancel()
                await self.socket.close(0.1)
                for sock in self.passed.get("courier", ()):
                    sock.close()

        asyncio.run(main())


class TestSocket:
    def test_what_cannot_be_opened_is_told_and_tried_again(self, place: Path) -> None:
        """Each quarter of a minute, until it can; the reason goes with its cause, and nothing is left at the end."""
        opened = Opened(place)

        async def talk() -> None:
            assert "cannot be bound" in opened.reasons[KEY]
            opened.path.parent.mkdir()
            await opened.until(lambda: opened.clock.sleeping)
            await opened.clock.advance(AGAIN_SECONDS - 0.1)
            assert not await opened.answers()
            await opened.until(lambda: not opened.reasons, every=0.1)
            assert await opened.answers()
            assert opened.path.stat().st_mode & 0o777 == 0o660
            assert opened.path.stat().st_gid == GROUP

        opened.run(talk)
        assert not opened.path.exists()

    @pytest.mark.parametrize("passed", [True, False])
    def test_a_want_of_descriptors_is_waited_out(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, passed: bool
    ) -> None:
        """What there is no descriptor for to watch it is told and tried again, and its socket is not lost meanwhile."""
        watch, missing = select.epoll, [1, 2]

        def scarce() -> select.epoll:
            if missing:
                missing.pop()
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return watch()

        opened = Opened(place, passed=passed)
        opened.path.parent.mkdir(exist_ok=True)

        async def talk() -> None:
            monkeypatch.setattr(select, "epoll", scarce)
            opened.socket.listen()
            assert opened.reasons == {KEY: os.strerror(errno.EMFILE).lower()}
            await opened.until(lambda: not opened.reasons, every=AGAIN_SECONDS)
            assert not missing
            assert await opened.answers()

        opened.run(talk, listen=False)

    def test_a_name_that_was_taken_away_is_made_again(self, place: Path) -> None:
        """As often as it goes; where another's file is, that is left and told, until it is gone."""
        opened = Opened(place)
        opened.path.parent.mkdir()

        async def talk() -> None:
            assert await opened.answers()
            for _ in range(2):
                opened.path.unlink()
                await opened.until(opened.path.exists, every=LOOK_SECONDS)
                assert await opened.answers()
            opened.path.unlink()
            opened.path.write_text("another's")
            await opened.until(lambda: KEY in opened.reasons, every=LOOK_SECONDS)
            told.append(len(logs))
            later = opened.clock.boottime() + 3 * LOOK_SECONDS
            await opened.until(lambda: opened.clock.boottime() > later, every=LOOK_SECONDS)
            assert opened.path.read_text() == "another's"
            opened.path.unlink()
            await opened.until(lambda: not opened.reasons, every=LOOK_SECONDS)
            assert await opened.answers()

        told: list[int] = []
        with capture_logs() as logs:
            opened.run(talk)
        # Each that was made, and what is another's once, however often it was looked at.
        assert [line["event"] for line in logs] == ["socket.made", "socket.made", "start.without", "socket.made"]
        assert told == [3]
        assert not opened.path.exists()

    def test_one_of_systemds_is_told_and_left_to_it(self, place: Path) -> None:
        """Nothing is put in the place of its name, and that is not taken away at the end; the word ends with its cause."""
        opened = Opened(place, passed=True)
        aside = opened.path.with_name("aside")

        async def talk() -> None:
            assert await opened.answers()
            opened.path.rename(aside)
            await opened.until(lambda: KEY in opened.reasons, every=LOOK_SECONDS)
            assert not opened.path.exists()
            aside.rename(opened.path)
            await opened.until(lambda: not opened.reasons, every=LOOK_SECONDS)
            assert await opened.answers()

        opened.run(talk)
        assert opened.path.exists()

    def test_it_is_looked_for_twice_a_minute(self, place: Path) -> None:
        """Nobody looks meanwhile; at instants that all have who look so often, however this one began."""
        opened = Opened(place)
        opened.path.parent.mkdir()
        opened.clock.move(7.0)

        async def talk() -> None:
            await opened.until(lambda: opened.clock.sleeping)
            wakes = opened.clock.next_waking()
            assert wakes is not None
            assert (opened.clock.boottime() + wakes) % LOOK_SECONDS == 0
            opened.path.unlink()
            for _ in range(20):
                await asyncio.to_thread(int)  # time for a look that nobody should have
            assert not opened.path.exists()
            await opened.until(opened.path.exists, every=LOOK_SECONDS)

        opened.run(talk)

    @pytest.mark.parametrize("passed", [False, True])
    def test_off_is_off(self, place: Path, passed: bool) -> None:
        """Whatever systemd passes: nobody is answered, and nothing is looked after."""
        opened = Opened(place, passed=passed, courier="off")

        async def talk() -> None:
            await opened.socket.run()  # which has nothing to do, and ends
            assert opened.clock.sleeping == 0
            assert opened.reasons == {}

        opened.run(talk)
        assert opened.path.exists() is passed


@pytest.mark.parametrize("name", ["", "\0of-no-file-system", "gone"])
def test_a_name_that_was_never_seen_is_never_lost(place: Path, name: str) -> None:
    """It has none, one in no file system, or one that is gone already; another's file there is not ours to take away."""
    path = place / "gone"
    with socket.socket(socket.AF_UNIX) as sock:
        if name:
            sock.bind(str(path) if name == "gone" else f"{name}-{os.getpid()}-{place.name}")
        path.unlink(missing_ok=True)
        seen = SocketName(sock)
        path.write_text("another's")
        assert asyncio.run(seen.lost()) is False
        seen.remove()
    assert path.read_text() == "another's"
