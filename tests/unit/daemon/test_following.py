"""What a worker that runs takes of what changes outside it: a reload, a file, the launch, a disk that answers late."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent import bundle, config
from agent.core.announced import FILE
from agent.core.errors import ConfigError
from agent.core.model import Cloud, SealedBundle
from agent.daemon import beliefs, listening, reload
from agent.daemon.files import LOOK_SECONDS
from agent.host.files import read_plain
from agent.sources.file import FileSettings, FileSource
from tests.fakes.clock import FakeClock
from tests.system.harness import AUDIENCE, ISSUER
from tests.unit.daemon.test_looking import Holding
from tests.unit.daemon.test_reload_between import come_true, ended, hung_up
from tests.unit.daemon.worker import Worker
from tests.unit.identity.worlds import session

OURS = {"identity": {"audience": [AUDIENCE]}}


def sealed_by(worker: Worker, signer: bundle.SigningKey, *, seq: int = 1) -> bytes:
    now = worker.clock.now()
    return bundle.seal(
        signer=signer,
        recipients=[worker.key.recipient_key()],
        issuer=ISSUER,
        subject="team",
        audiences=[AUDIENCE],
        now=now,
        grants=(session(now=now),),
        routes={Cloud.AWS: "user"},
        seq=seq,
    )


def pinned(worker: Worker, signer: bundle.SigningKey, name: str = "other.jwk") -> Path:
    """The public half of a signer, in a file."""
    path = worker.root / "etc" / name
    path.write_text(json.dumps({**signer.public_jwk(), "kid": signer.kid}))
    return path


def play(root: Path, scenario: Callable[[Worker], Awaitable[None]], *, looks: FakeClock | None = None) -> None:
    async def main() -> None:
        worker = Worker(root, looks=looks)
        async with ended(worker):
            worker.configure(OURS)
            await hung_up(worker)
            await scenario(worker)

    asyncio.run(main())


async def refused(worker: Worker, signer: bundle.SigningKey) -> None:
    """What a source brought is not taken, for nobody trusts whoever signed it."""
    ack = await worker.controller.intake.submit(SealedBundle(sealed_by(worker, signer), "push"))
    assert (ack.outcome, ack.code) == ("refused", "signer")


async def taken(worker: Worker) -> None:
    """It is looked at again, and in force."""

    def in_force() -> bool:
        worker.controller.intake.step(worker.clock.boottime())
        return worker.store.bundle is not None

    await come_true(in_force)


class TestAReload:
    def test_what_was_refused_before_is_looked_at_again(self, tmp_path: Path) -> None:
        """A bundle that came before its signer was pinned is in force once he is: nobody need bring it anew."""
        signer = bundle.SigningKey.generate("Ed25519")

        async def scenario(worker: Worker) -> None:
            await refused(worker, signer)
            pins = [{"key": path, "issuers": [ISSUER]} for path in (worker.signer_file, pinned(worker, signer))]
            worker.configure({**OURS, "signers": pins})
            await hung_up(worker)
            await taken(worker)

        play(tmp_path, scenario)

    def test_each_source_that_is_seldom_looked_at_is_looked_at_now(self, tmp_path: Path) -> None:
        """Whoever reloads waits for no poll; a file is looked at all the time, and may be half written just now."""

        async def scenario(worker: Worker) -> None:
            path = worker.root / "bundle.jose"
            path.write_bytes(b"half a bund")
            sealed = SealedBundle(sealed_by(worker, worker.signer), "url")
            worker.prepared.sources[:] = [
                Holding("url", sealed),
                FileSource(FileSettings(path=path), clock=worker.clock),
            ]
            await hung_up(worker)
            await come_true(lambda: worker.store.bundle is not None)
            assert worker.controller.intake.last_refusal is None

        play(tmp_path, scenario)

    def test_where_programs_find_the_agent_is_said_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As it is now: what a disk has held up is not written over what is newer."""
        answers, real = threading.Event(), listening.announce
        begun, finished = list[str](), list[str]()

        def slowly(settings: config.Config, address: str) -> None:
            begun.append(address)
            if address.endswith(":7"):
                answers.wait(60)
            real(settings, address)
            finished.append(address)

        async def scenario(worker: Worker) -> None:
            path = worker.root / "run" / FILE
            await asyncio.gather(*worker.reloader.tasks)
            monkeypatch.setattr(listening, "announce", slowly)
            worker.publisher.address = "127.0.0.1:7"
            await hung_up(worker)
            await come_true(lambda: begun)
            worker.publisher.address = "127.0.0.1:8"
            worker.configure({**OURS, "listen": {"control": tmp_path / "moved"}})  # which needs a restart
            await hung_up(worker)
            under_way = [task.get_name() for task in asyncio.all_tasks()]
            answers.set()
            assert under_way.count("announce listeners") == 1
            await come_true(lambda: len(finished) == 2)
            said = path.read_bytes()
            assert b"127.0.0.1:8" in said
            assert b"moved" not in said
            path.unlink()
            worker.reloader.announce()
            await come_true(path.exists)
            assert path.read_bytes() == said

        play(tmp_path, scenario)


class TestFollowing:
    def follow(
        self, root: Path, scenario: Callable[[Worker, Callable[[Any], Awaitable[None]]], Awaitable[None]]
    ) -> None:
        """Files are followed while the test plays; ``look`` lets them be looked at until something is so."""
        clock = FakeClock()

        async def main(worker: Worker) -> None:
            following = asyncio.create_task(worker.reloader.follow_files())

            async def look(until: Callable[[], object]) -> None:
                async with asyncio.timeout(60):
                    while not until():
                        await clock.advance(LOOK_SECONDS)
                        assert not following.done()
                        await asyncio.sleep(0.005)

            await scenario(worker, look)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reload, "Quiet", lambda _seconds: _Looks(clock))
            play(root, main, looks=clock)

    def test_what_has_changed_and_settled_is_applied_once(self, tmp_path: Path) -> None:
        """With the name of what changed; a file that does not change is no reason for anything."""

        async def scenario(worker: Worker, look: Callable[[Any], Awaitable[None]]) -> None:
            applied: list[list[str]] = []
            apply = worker.reloader.apply

            async def noting(*args: Any, **more: Any) -> None:
                applied.append(more["changed"])
                await apply(*args, **more)

            worker.reloader.apply = noting  # type: ignore[method-assign]
            await looks_pass(look, 5)
            assert applied == []
            signer = bundle.SigningKey.generate("Ed25519")
            worker.signer_file.write_text(json.dumps({**signer.public_jwk(), "kid": signer.kid}))
            await look(lambda: applied)
            await look(lambda: worker.prepared.opening.pinned.signer(signer.kid) is not None)
            await looks_pass(look, 5)
            assert applied == [["signers[0].key"]]

        self.follow(tmp_path, scenario)

    def test_what_cannot_be_applied_is_told_once_and_is_not_tried_until_it_changes(self, tmp_path: Path) -> None:
        """What was in force before stays, and what it becomes then is taken."""

        async def scenario(worker: Worker, look: Callable[[Any], Awaitable[None]]) -> None:
            before = worker.prepared.opening.pinned
            text = worker.signer_file.read_text()
            with structlog.testing.capture_logs() as logs:
                said = lambda: [line for line in logs if line["event"] == "reload.refused"]  # noqa: E731
                worker.signer_file.write_text("no key")
                await look(said)
                await looks_pass(look, 10)
                assert len(said()) == 1
                assert worker.prepared.opening.pinned is before
            worker.signer_file.write_text(text + "\n")
            await look(lambda: worker.prepared.opening.pinned is not before)
            with structlog.testing.capture_logs() as again:
                worker.signer_file.write_text("no key")
                await look(lambda: "reload.refused" in [line["event"] for line in again])

        self.follow(tmp_path, scenario)

    def test_a_token_that_is_written_by_an_operator_is_good_soon(self, tmp_path: Path) -> None:
        """Though no file of the configuration changes."""

        async def scenario(worker: Worker, look: Callable[[Any], Awaitable[None]]) -> None:
            await worker.publisher.settled(30)
            worker.token.write_text("n" * 43)
            await look(lambda: worker.prepared.tokens.present.reveal() == "n" * 43)

        self.follow(tmp_path, scenario)


class _Looks:
    """In the place of what waits for a change: the test says when to look."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    async def pause(self, *_: object) -> None:
        await self._clock.sleep(LOOK_SECONDS)

    def stir(self) -> None:
        """The test does."""


async def looks_pass(look: Callable[[Any], Awaitable[None]], count: int) -> None:
    """So many looks, at least."""
    left = iter(range(count))
    await look(lambda: next(left, None) is None)


class TestTheLaunch:
    @pytest.mark.parametrize("how", ["named", "named no more"])
    def test_who_is_named_by_the_launch_is_believed_for_as_long(self, tmp_path: Path, how: str) -> None:
        """At once, whichever way it changes, and the next process hears of it."""
        signer = bundle.SigningKey.generate("Ed25519")
        entry = {"name": "launch", "key": {**signer.public_jwk(), "kid": signer.kid}}
        named = bundle.Trust.parse([{**entry, "issuers": ["*"], "audiences": ["*"]}])

        async def scenario(worker: Worker) -> None:
            opening, change = worker.prepared.opening, asyncio.Event()
            trusted = bundle.Trust(()) if how == "named" else named
            opening.launched = lambda: trusted

            async def watch(changed: Callable[[], None]) -> None:
                await change.wait()
                changed()

            worker.prepared.launched.watch = watch  # type: ignore[method-assign]
            following = asyncio.create_task(worker.reloader.follow_launched())
            await asyncio.sleep(0)
            if how == "named":
                await refused(worker, signer)
            else:
                await worker.controller.intake.submit(SealedBundle(sealed_by(worker, signer), "push"))
                assert worker.store.bundle is not None
            trusted = named if how == "named" else bundle.Trust(())
            worker.handed.clear()
            change.set()
            await come_true(lambda: worker.handed)
            if how == "named":
                await taken(worker)
            else:
                worker.controller.intake.step(worker.clock.boottime())
                await come_true(lambda: worker.store.bundle is None)
            assert not following.done()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

        play(tmp_path, scenario)


class TestFilesThatAnswerLate:
    def test_they_are_taken_when_they_answer_and_not_before(self, tmp_path: Path) -> None:
        """What is missing then holds back nothing: it is as at a start. What never passes is told once, and tried again."""
        clock, signer = FakeClock(), bundle.SigningKey.generate("Ed25519")

        async def scenario(worker: Worker) -> None:
            prepared, answers = worker.prepared, asyncio.Event()
            other = pinned(worker, signer)
            pins = [{"key": path, "issuers": [ISSUER]} for path in (worker.signer_file, other)]
            worker.configure({**OURS, "signers": pins})
            worker.reloader.settings = config.load(worker.configuration)
            prepared.late_files = {other}

            async def answered(_late: object) -> None:
                await answers.wait()

            prepared.first_look.answered = answered  # type: ignore[method-assign, assignment]
            worker.signer_file.rename(worker.root / "away")
            wrong = worker.reloader.apply
            fails = True

            async def apply(*args: Any, **more: Any) -> None:
                if fails:
                    raise ConfigError("keys: expected distinct keys")
                await wrong(*args, **more)

            worker.reloader.apply = apply  # type: ignore[method-assign]
            with structlog.testing.capture_logs() as logs:
                late = asyncio.create_task(worker.reloader.apply_late())
                await clock.advance(10 * LOOK_SECONDS)
                assert [line["event"] for line in logs] == []
                answers.set()
                for _ in range(3):
                    await come_true(lambda: clock.sleeping)
                    await clock.advance(LOOK_SECONDS)
                assert [line["event"] for line in logs] == ["files.answer", "reload.refused"]
                fails = False
                await come_true(lambda: clock.sleeping or late.done())
                await clock.advance(LOOK_SECONDS)
                await asyncio.wait_for(late, 30)
            assert prepared.opening.pinned.signer(signer.kid) is not None
            assert "signers[0].key" in prepared.away.reasons

        play(tmp_path, scenario, looks=clock)

    def test_one_that_is_unreadable_in_passing_as_it_answers_is_read_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A mount that has just come back may err once more: its file looks the same afterwards."""
        signer, errors = bundle.SigningKey.generate("Ed25519"), [OSError(errno.ESTALE, "stale")]

        async def scenario(worker: Worker, look: Callable[[Any], Awaitable[None]]) -> None:
            other = pinned(worker, signer)
            pins = [{"key": path, "issuers": [ISSUER]} for path in (worker.signer_file, other)]
            worker.configure({**OURS, "signers": pins})
            worker.reloader.settings = config.load(worker.configuration)
            worker.prepared.late_files = {other}

            async def answered(_late: object) -> None:
                pass

            def once(path: Path, most: int) -> bytes:
                if Path(path) == other and errors:
                    raise errors.pop()
                return read_plain(path, most)

            worker.prepared.first_look.answered = answered  # type: ignore[method-assign, assignment]
            monkeypatch.setattr(beliefs, "read_plain", once)
            await worker.reloader.apply_late()
            assert worker.prepared.opening.pinned.signer(signer.kid) is None
            await look(lambda: worker.prepared.opening.pinned.signer(signer.kid) is not None)
            assert "signers[1].key" not in worker.prepared.away.reasons

        TestFollowing().follow(tmp_path, scenario)
