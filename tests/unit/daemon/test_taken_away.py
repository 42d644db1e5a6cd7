"""Whom a reload or a file takes away is believed no longer, whatever is wrong with another file."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent import bundle, log
from agent.core.errors import ConfigError
from agent.core.model import Cloud, SealedBundle
from agent.core.view import Live, Pending
from agent.daemon import beliefs, files, loading, reload
from agent.host.files import read_plain
from tests.system.harness import AUDIENCE, ISSUER
from tests.unit.daemon import test_following as following
from tests.unit.daemon.test_following import OURS, pinned, play, sealed_by
from tests.unit.daemon.test_reload_between import come_true, hung_up
from tests.unit.daemon.worker import Worker
from tests.unit.identity.worlds import role

Look = Callable[[Any], Awaitable[None]]
OTHER = bundle.SigningKey.generate("Ed25519")
NEXT = bundle.SigningKey.generate("Ed25519")

SPOILT: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: path.unlink(),
    "junk": lambda path: path.write_text("{}"),
    "half written": lambda path: path.write_text(path.read_text()[:-20]),
    "empty": lambda path: path.write_text(""),
}


def follow(root: Path, scenario: Callable[[Worker, Look, Path], Awaitable[None]]) -> None:
    """Two signers are pinned, each by a file; the second is given. Files are followed while the test plays."""

    async def main(worker: Worker, look: Look) -> None:
        other = pinned(worker, OTHER)
        worker.configure(pins(worker.signer_file, other))
        await hung_up(worker)
        await scenario(worker, look, other)

    following.TestFollowing().follow(root, main)


def pins(*paths: Path) -> dict[str, Any]:
    return {**OURS, "signers": [{"key": path, "issuers": [ISSUER]} for path in paths]}


def replaced(worker: Worker) -> None:
    """The file of the first signer names another."""
    pinned(worker, NEXT, "new").rename(worker.signer_file)  # whole: it may be read just now


def believed(worker: Worker) -> set[str]:
    """Whom the worker believes: the first, the second, the next."""
    names = {worker.signer.kid: "first", OTHER.kid: "second", NEXT.kid: "next"}
    return {names[signer.kid] for signer in worker.prepared.opening.pinned.signers}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_signer_who_is_replaced_goes_though_another_s_file_is_wrong(
    tmp_path: Path, spoilt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What he sent ends; the other one is believed as before, and that his file is wrong is told, once."""

    async def scenario(worker: Worker, look: Look, other: Path) -> None:
        await worker.controller.intake.submit(SealedBundle(sealed_by(worker, worker.signer), "push"))
        assert worker.store.bundle is not None
        monkeypatch.setattr(log, "set_up", lambda **_: None)  # it would take the log from here
        with structlog.testing.capture_logs() as logs:
            told = lambda: [line["reason"] for line in logs if line["event"] == "reload.refused"]  # noqa: E731
            SPOILT[spoilt](other)
            await look(told)
            replaced(worker)
            await look(lambda: "next" in believed(worker))
            assert believed(worker) == {"next", "second"}
            worker.controller.intake.step(worker.clock.boottime())
            await come_true(lambda: worker.store.bundle is None)
            await look(lambda: len(told()) == 2)
            await following.looks_pass(look, 5)
            assert len(told()) == 2  # for each change once
            applied = [line["changed"] for line in logs if line["event"] == "reload.applied"]
            assert applied == [["signers[0].key"]]
        assert list(worker.prepared.away.reasons) == ["signers[1].key"]
        said = {file.key: file.sha256 for file in worker.prepared.files.loaded}
        assert said.keys() == {"keys[0].path", "signers[0].key", "signers[1].key"}
        pinned(worker, OTHER)
        await look(lambda: not worker.prepared.away.reasons)
        assert believed(worker) == {"next", "second"}

    follow(tmp_path, scenario)


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_signer_whom_the_configuration_drops_goes_though_another_s_file_is_wrong(tmp_path: Path, spoilt: str) -> None:
    """At the reload, which fails all the same and says why; a change of a file afterwards does not bring him back."""

    async def scenario(worker: Worker, look: Look, other: Path) -> None:
        SPOILT[spoilt](other)
        worker.configure(pins(other))
        done = await worker.reloader.reload()
        assert done.outcome == "refused"
        assert done.reason is not None
        assert str(other) in done.reason
        assert done.reason.endswith(reload.REST_APPLIED)  # and names nobody who is believed as before
        assert believed(worker) == {"second"}
        assert worker.file.text == worker.handed[-1] == worker.configuration.read_text()
        pinned(worker, NEXT)
        await look(lambda: "next" in believed(worker))
        assert believed(worker) == {"next"}

    follow(tmp_path, scenario)


@pytest.mark.parametrize("what", ["signers", "environment"])
def test_a_path_that_is_new_and_leads_nowhere_takes_nobody_away(tmp_path: Path, what: str) -> None:
    """It may be a former one that was mistyped: a typing error costs no worker its identity.

    Whoever took somebody away by it is told that he is believed as before.
    """

    async def scenario(worker: Worker, look: Look, other: Path) -> None:
        before = worker.file.text
        nowhere = tmp_path / "nowhere" / "file"
        if what == "signers":
            worker.configure(pins(other, nowhere))
        else:
            worker.configure({**pins(other), "environment": {"file": nowhere}})
        for spoil in (lambda _path: None, SPOILT["absent"]):
            spoil(other)
            done = await worker.reloader.reload()
            assert done.outcome == "refused"
            assert done.reason is not None
            assert reload.REST_APPLIED not in done.reason
            assert done.reason.endswith(f"{reload.STILL_BELIEVED}{worker.signer_file}")
        assert believed(worker) == {"first", "second"}
        assert worker.file.text == before

    follow(tmp_path, scenario)


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_worker_s_key_stays_while_its_file_is_wrong(tmp_path: Path, spoilt: str) -> None:
    """It opens what comes, and what it opened before; another key that is dropped meanwhile opens nothing."""

    async def scenario(worker: Worker, _look: Look, _other: Path) -> None:
        path, second = worker.root / "etc" / "worker.jwk", worker.root / "etc" / "second.jwk"
        key = bundle.OpeningKey.generate("P-256")
        second.write_text(json.dumps({**key.private_jwk(), "kid": key.kid}))
        second.chmod(0o600)
        both = [{"kind": "file", "path": one} for one in (second, path)]
        worker.configure({**OURS, "keys": both})
        await hung_up(worker)
        assert worker.prepared.opening.keyring.kids == (key.kid, worker.key.kid)
        SPOILT[spoilt](path)
        worker.configure({**OURS, "keys": both[1:]})
        for _ in range(2):
            assert (await worker.reloader.reload()).outcome == "refused"
            keyring = worker.prepared.opening.keyring
            assert (keyring.kids, keyring.absent) == ((worker.key.kid,), ())
        ack = await worker.controller.intake.submit(SealedBundle(sealed_by(worker, worker.signer), "push"))
        assert ack.outcome == "accepted"

    follow(tmp_path, scenario)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, os.strerror(errno.EMFILE)), MemoryError()], ids=type)
def test_a_file_that_could_not_be_read_for_once_is_read_again(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it looks the same afterwards: whoever was in it before is not believed for a descriptor that lacked."""
    errors = [error]

    async def scenario(worker: Worker, look: Look, _other: Path) -> None:
        def once(path: Path, most: int) -> bytes:
            if Path(path) == worker.signer_file and errors:
                raise errors.pop()
            return read_plain(path, most)

        monkeypatch.setattr(beliefs, "read_plain", once)
        replaced(worker)
        await look(lambda: not errors)
        await look(lambda: "next" in believed(worker))
        assert believed(worker) == {"next", "second"}

    follow(tmp_path, scenario)


def test_a_group_that_is_not_known_just_now_holds_back_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays the one that it was."""

    async def scenario(worker: Worker, look: Look, _other: Path) -> None:
        gid = worker.prepared.gid = 7

        def unknown(_name: str) -> int:
            raise ConfigError("environment.group: expected a group of this machine")

        monkeypatch.setattr(loading, "group_id", unknown)
        replaced(worker)
        await look(lambda: "next" in believed(worker))
        assert (believed(worker), worker.prepared.gid) == ({"next", "second"}, gid)

    follow(tmp_path, scenario)


def test_a_file_that_does_not_answer_holds_back_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is known that one does not answer it is not asked, and what it gave stays."""

    async def scenario(worker: Worker, look: Look, other: Path) -> None:
        stalled = worker.stall(other)
        real = files.looks_patiently

        async def looks(named: Any, patience: Any, before: Any) -> Any:
            return (await real(named, patience, before))[0], ["signers[1].key"]

        monkeypatch.setattr(reload, "looks_patiently", looks)
        try:
            await following.looks_pass(look, 2)
            replaced(worker)
            await look(lambda: "next" in believed(worker))
            assert believed(worker) == {"next", "second"}
            assert not stalled.asked
        finally:
            stalled.answer()

    follow(tmp_path, scenario)


def test_what_breaks_off_as_it_is_applied_is_reviewed_and_applied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is dropped by it is dropped, for whatever reason the rest of it ends in the middle."""

    async def scenario(worker: Worker) -> None:
        await worker.controller.intake.submit(SealedBundle(sealed_by(worker, worker.signer), "push"))
        broken = [MemoryError()]
        reconfigure = worker.publisher.reconfigure

        def once(*args: Any, **more: Any) -> None:
            if broken:
                raise broken.pop()
            reconfigure(*args, **more)

        monkeypatch.setattr(worker.publisher, "reconfigure", once)
        replaced(worker)
        before = worker.prepared.files
        with pytest.raises(MemoryError):
            await worker.reloader.apply()
        worker.controller.intake.step(worker.clock.boottime())
        await come_true(lambda: worker.store.bundle is None)
        assert worker.prepared.files is before  # so that the next look does it once more

    play(tmp_path, scenario)


@pytest.mark.parametrize("gone", ["the first", "another"])
def test_what_the_bundle_before_left_goes_with_its_signer(tmp_path: Path, gone: str) -> None:
    """Though the bundle in force, which has no credential yet, is of a signer who is believed."""

    async def scenario(worker: Worker, _look: Look, other: Path) -> None:
        third = pinned(worker, NEXT, "third.jwk")
        worker.configure(pins(worker.signer_file, other, third))
        await hung_up(worker)
        now = worker.clock.now()
        second = bundle.seal(
            signer=OTHER,
            recipients=[worker.key.recipient_key()],
            issuer=ISSUER,
            subject="team",
            audiences=[AUDIENCE],
            now=now,
            grants=(role("r"),),
            routes={Cloud.AWS: "r"},
            seq=2,
        )
        for data in (sealed_by(worker, worker.signer), second):
            ack = await worker.controller.intake.submit(SealedBundle(data, "push"))
            assert ack.outcome == "accepted"
        assert isinstance(worker.store.answer(Cloud.AWS, now), Live)
        worker.configure(pins(*([other, third] if gone == "the first" else [worker.signer_file, other])))
        await hung_up(worker)
        assert isinstance(worker.store.answer(Cloud.AWS, now), Pending if gone == "the first" else Live)
        assert worker.store.bundle is not None
        assert worker.store.bundle.seq == 2

    follow(tmp_path, scenario)
