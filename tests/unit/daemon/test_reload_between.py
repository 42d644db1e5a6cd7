"""What happens while a reload waits for a file: nothing that was decided meanwhile is undone by it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent import bundle
from agent.core.errors import ConfigError
from agent.core.model import Cloud, SealedBundle
from agent.core.secret import Secret
from agent.core.verdict import Memory
from agent.daemon import tokens
from agent.daemon.configured import Configured
from agent.daemon.files import LOOK_SECONDS, otherwise
from agent.daemon.tokens import Rotation
from agent.host import files, quiet
from agent.host.files import read_plain
from agent.host.patience import Patience
from agent.host.state import StateDirectory
from agent.host.threads import Threads
from tests.fakes.clock import FakeClock
from tests.fakes.telling import Telling
from tests.system.harness import ISSUER
from tests.unit.daemon.worker import Worker
from tests.unit.identity.worlds import session

LATER = {"identity": {"role_name": "later"}}
WRONG = {"signers": [{"key": "/nowhere/signer.jwk", "issuers": ["*"]}]}
OTHER = "o" * 43
THIRD = "p" * 43


async def come_true(look: Any) -> None:
    """Wait for what a thread brings about."""
    async with asyncio.timeout(60):
        while not look():  # noqa: ASYNC110 - a pipe and a thread announce themselves to nobody
            await asyncio.sleep(0.005)


@asynccontextmanager
async def ended(worker: Worker) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for task in worker.reloader.tasks:
            task.cancel()
        await asyncio.gather(*worker.reloader.tasks, return_exceptions=True)
        await worker.publisher.settled(5)
        await worker.prepared.close()


async def hung_up(worker: Worker) -> None:
    """SIGHUP, and all that it does."""
    worker.reloader.on_hangup()
    await asyncio.gather(worker.reloader.tasks[0])


class TestTheTextOfTheConfiguration:
    def test_what_is_refused_is_not_what_a_restart_gets(self, tmp_path: Path) -> None:
        """A configuration that parses and cannot be applied is nobody's: the next process gets the one in force."""

        async def scenario() -> None:
            worker = Worker(tmp_path)
            in_force = worker.configuration.read_text()
            async with ended(worker):
                worker.configure(WRONG)
                with structlog.testing.capture_logs() as logs:
                    await hung_up(worker)
                assert [line["event"] for line in logs if line["log_level"] == "error"] == ["reload.refused"]
                assert worker.file.text == in_force
                worker.configure(LATER)
                await hung_up(worker)
                assert worker.file.text == worker.configuration.read_text() != in_force
                assert worker.handed[-1] == worker.file.text

        asyncio.run(scenario())

    def test_reading_it_puts_nothing_in_force(self, tmp_path: Path) -> None:
        """Only what was applied is what the next process gets, however often the file is read."""
        path = tmp_path / "config.toml"
        path.write_text("[log]\n")
        file = Configured(path)
        file.first({})
        path.write_text("[aws]\n")
        assert file.read().text == "[aws]\n"
        assert file.text == "[log]\n"
        path.write_text("[wrong\n")
        with pytest.raises(ConfigError):
            file.read()
        assert file.text == "[log]\n"


class TestAReloadWhileAnotherWaits:
    def test_a_change_of_a_file_does_not_bring_back_the_former_configuration(self, tmp_path: Path) -> None:
        """A file changed, and a reload is under way: what is applied for the file is what the reload has applied."""

        async def scenario() -> None:
            worker = Worker(tmp_path)
            async with ended(worker):
                stalled = worker.stall(worker.signer_file)
                worker.configure(LATER)
                worker.reloader.on_hangup()
                await come_true(lambda: stalled.asked)
                changed = asyncio.create_task(worker.reloader.apply(changed=["signers[0].key"]))
                await asyncio.sleep(0)
                stalled.answer()
                await changed
                assert worker.reloader.settings.identity.role_name == "later"
                assert worker.store.state.policy.role_name == "later"
                assert worker.file.text == worker.configuration.read_text()

        asyncio.run(scenario())

    def test_signals_during_a_reload_that_fails_are_heeded(self, tmp_path: Path) -> None:
        """The round that was asked for during a refused one is done: it reads what was mended meanwhile."""

        async def scenario() -> None:
            worker = Worker(tmp_path)
            async with ended(worker):
                stalled = worker.stall(worker.signer_file)
                worker.configure({"signers": [WRONG["signers"][0], {"key": str(worker.signer_file), "issuers": ["*"]}]})
                worker.reloader.on_hangup()
                await come_true(lambda: stalled.asked)
                worker.configure(LATER)
                worker.reloader.on_hangup()
                stalled.answer()
                await worker.reloader.tasks[0]
                assert worker.store.state.policy.role_name == "later"

        asyncio.run(scenario())


class TestTheTokenOfTheContainerEndpoint:
    async def _rotate(self, worker: Worker, token: str) -> None:
        await worker.publisher.settled(5)
        worker.token.write_text(token)
        await worker.reloader.apply()
        await worker.publisher.settled(5)

    def test_it_can_be_rotated_back(self, tmp_path: Path) -> None:
        """An operator who puts the former token back has it in force: programs read it, and it outlives a third one."""

        async def scenario() -> None:
            worker = Worker(tmp_path)
            async with ended(worker):
                worker.publisher.changed()
                await worker.publisher.settled(5)
                first = worker.token.read_text()
                for token in (OTHER, first, OTHER, first):
                    await self._rotate(worker, token)
                    assert worker.prepared.tokens.present.reveal() == token
                    assert worker.token.read_text() == token
                    assert {one.reveal() for one in worker.prepared.tokens.good} == {first, OTHER}
                await self._rotate(worker, THIRD)
                assert [one.reveal() for one in worker.prepared.tokens.good] == [THIRD, first]

        asyncio.run(scenario())

    def test_one_that_is_not_written_yet_is_not_taken_back(self, tmp_path: Path) -> None:
        """The file still has the former token because its disk stalls: that is nobody's rotation."""

        async def scenario() -> None:
            worker = Worker(tmp_path)
            async with ended(worker):
                worker.publisher.changed()
                await worker.publisher.settled(5)
                first = worker.token.read_text()
                worker.token.write_text(OTHER)
                loop, release = asyncio.get_running_loop(), threading.Event()
                loop.set_default_executor(Threads(1))  # what the publisher writes waits for the one thread
                held = loop.run_in_executor(None, release.wait)
                await worker.reloader.apply()
                worker.token.write_text(first)
                await worker.reloader.apply()
                assert worker.prepared.tokens.present.reveal() == OTHER
                release.set()
                await held
                await worker.publisher.settled(5)
                assert worker.token.read_text() == OTHER

        asyncio.run(scenario())

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
    @pytest.mark.parametrize("when", ["start", "reload"])
    @pytest.mark.parametrize("there", [True, False])
    def test_one_that_the_system_refuses_to_read_is_not_written_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, there: bool, when: str, number: int
    ) -> None:
        """It is taken at the next look, though the file has not changed; where there is none, ours is written then."""
        refuses = when == "start"

        def failing(path: Path, most: int) -> bytes:
            if refuses:
                raise OSError(number, os.strerror(number))
            return read_plain(path, most)

        monkeypatch.setattr(files, "read_plain", failing)

        async def scenario() -> None:
            nonlocal refuses
            clock = FakeClock()
            worker = Worker(tmp_path, looks=clock)
            async with ended(worker):
                if when == "reload":
                    worker.publisher.changed()
                    await worker.publisher.settled(30)
                    worker.token.unlink()
                    refuses = True
                if there:
                    worker.token.write_text(OTHER)
                ours = worker.prepared.tokens.present.reveal()
                await worker.reloader.apply()
                await come_true(lambda: worker.publisher.trouble is not None)
                assert (worker.root / "run" / "env").exists()
                assert not there or worker.token.read_text() == OTHER
                following = asyncio.create_task(worker.reloader.follow_files())
                refuses = False
                async with asyncio.timeout(60):
                    while worker.publisher.trouble is not None:
                        await clock.advance(LOOK_SECONDS)
                        await asyncio.sleep(0.005)
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                assert worker.prepared.tokens.present.reveal() == worker.token.read_text() == (OTHER if there else ours)

        asyncio.run(scenario())

    @pytest.mark.parametrize("handed", [(), (Secret(OTHER),)])
    def test_one_that_is_refused_once_is_read_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handed: tuple[Secret, ...]
    ) -> None:
        """What a start reads is what programs have."""
        (tmp_path / "token").write_text(THIRD)
        answers = iter((OSError(errno.EIO, "refused"), THIRD.encode()))

        def once(_path: Path, _most: int) -> bytes:
            answer = next(answers)
            if isinstance(answer, OSError):
                raise answer
            return answer

        monkeypatch.setattr(files, "read_plain", once)
        found = tokens.ContainerTokens(tmp_path / "token", handed)
        assert found.good == (Secret(THIRD), *handed)
        assert not found.unread

    def test_one_that_is_put_there_just_after_a_look_is_seen_by_the_next(self, tmp_path: Path) -> None:
        """What is written between the reading of the file and the first look of a pause ends that pause at once."""

        async def scenario() -> None:
            worker = Worker(tmp_path)
            async with ended(worker):
                worker.publisher.changed()
                await worker.publisher.settled(5)
                files = worker.prepared.files
                rotation = Rotation(worker.prepared.tokens, worker.publisher, Patience(60.0), changed=lambda: None)
                await rotation.look()
                assert not otherwise(lambda: files, worker.token, rotation.seen)()
                worker.token.write_text(OTHER + "p")
                assert otherwise(lambda: files, worker.token, rotation.seen)()
                await rotation.look()
                assert not otherwise(lambda: files, worker.token, rotation.seen)()

        asyncio.run(scenario())


def test_the_workers_group_of_a_reload_is_everybodys(tmp_path: Path) -> None:
    """What makes a socket or a file after a reload gives it to the group that the reload named."""

    async def scenario() -> None:
        worker = Worker(tmp_path)
        async with ended(worker):
            worker.configure({"environment": {"group": "daemon"}})
            await hung_up(worker)
            assert worker.prepared.gid == worker.publisher.gid == 1

    asyncio.run(scenario())


def test_a_defect_in_following_files_ends_nothing(tmp_path: Path) -> None:
    """What nobody thought of is logged once for a change, and ends nothing: the next change is seen and applied."""

    async def scenario() -> None:
        clock = FakeClock()
        worker = Worker(tmp_path, looks=clock)
        keyring = worker.prepared.keyring
        broken = True

        def defective(*given: Any) -> Any:
            if broken:
                raise ZeroDivisionError
            return keyring(*given)

        async with ended(worker):
            worker.prepared.keyring = defective  # type: ignore[assignment, method-assign]
            following = asyncio.create_task(worker.reloader.follow_files())

            async def look(until: Any) -> None:
                async with asyncio.timeout(10):
                    while not until():
                        await clock.advance(LOOK_SECONDS)
                        assert not following.done()
                        await asyncio.sleep(0.005)

            with structlog.testing.capture_logs() as logs:
                said = lambda name: [line for line in logs if line["event"] == name]  # noqa: E731
                worker.signer_file.write_text(worker.signer_file.read_text() + "\n")
                await look(lambda: said("work.crashed"))
                broken = False
                worker.signer_file.write_text(worker.signer_file.read_text() + "\n")
                await look(lambda: worker.handed)
                assert len(said("work.crashed")) == 1
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    asyncio.run(scenario())


def test_what_a_reload_names_is_watched_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for the kernel's word on the former files would hear nothing of the new ones."""
    monkeypatch.setattr(Telling, "begun", [])
    monkeypatch.setattr(quiet, "Watches", Telling)
    monkeypatch.setattr(quiet, "TOLD_SECONDS", 3600.0)

    async def scenario() -> None:
        clock = FakeClock()
        worker = Worker(tmp_path, looks=clock)
        async with ended(worker):
            following = asyncio.create_task(worker.reloader.follow_files())
            await come_true(lambda: Telling.begun)
            await worker.reloader.apply()
            async with asyncio.timeout(60):
                while len(Telling.begun) < 2:
                    await clock.advance(LOOK_SECONDS)
                    await asyncio.sleep(0.005)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    asyncio.run(scenario())


@pytest.mark.parametrize("dropped", ["key", "signer", "nothing"])
def test_what_a_reload_drops_while_a_bundle_is_written_down_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropped: str
) -> None:
    """It was opened and verified before the reload, and comes into force after it: by what is configured then."""

    async def scenario() -> None:
        worker, disk, asked = Worker(tmp_path), asyncio.Event(), asyncio.Event()
        real = StateDirectory.save

        async def save(state: StateDirectory, memory: Memory, sealed: bytes | None) -> None:
            asked.set()
            await disk.wait()
            await real(state, memory, sealed)

        monkeypatch.setattr(StateDirectory, "save", save)
        other = bundle.OpeningKey.generate("P-256")
        path = tmp_path / "etc" / "other.jwk"
        path.write_text(json.dumps({**other.private_jwk(), "kid": other.kid}))
        path.chmod(0o600)
        stranger = bundle.SigningKey.generate("Ed25519")
        another = tmp_path / "etc" / "another.jwk"
        another.write_text(json.dumps({**stranger.public_jwk(), "kid": stranger.kid}))
        keys = [{"kind": "file", "path": path}, *(worker.base["keys"] if dropped != "key" else [])]
        sealed = bundle.seal(
            signer=worker.signer,
            recipients=[worker.key.recipient_key()],
            issuer=ISSUER,
            subject="team",
            audiences=[bundle.audience_key(worker.key.kid)],
            now=worker.clock.now(),
            grants=(session(now=worker.clock.now()),),
            routes={Cloud.AWS: "user"},
            seq=1,
        )
        async with ended(worker):
            submitted = asyncio.create_task(worker.controller.intake.submit(SealedBundle(sealed, "push")))
            await asked.wait()
            signers = [{"key": another, "issuers": [ISSUER]}] if dropped == "signer" else worker.base["signers"]
            worker.configure({"keys": keys, "signers": signers})
            await hung_up(worker)
            assert len(worker.reloader.settings.keys) == len(keys)
            disk.set()
            ack = await submitted
            assert (ack.outcome, ack.code) == {
                "key": ("refused", "recipient"),
                "signer": ("refused", "signer"),
                "nothing": ("accepted", None),
            }[dropped]
            assert (worker.store.bundle is None) == (dropped != "nothing")

    asyncio.run(scenario())
