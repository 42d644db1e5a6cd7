"""How what was accepted comes back into force, and that it does so on no other machine; each rule by a start of its own."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest
import structlog

from agent.core.errors import HostError
from agent.core.history import Entry
from agent.core.model import Action, Cloud, OnExpiry, SealedBundle
from agent.core.verdict import Mark, Memory
from agent.core.view import Pending
from agent.daemon import disk, grace, remembered, unending
from agent.host import state
from agent.host.files import read_plain
from agent.host.state import Lived, StateDirectory
from agent.identity import standing
from tests.fakes.ec2_metadata import Ec2MetadataService
from tests.fakes.refusing import Refused
from tests.fakes.served import Fault
from tests.system.harness import AUDIENCE, ISSUER
from tests.unit.daemon.life import BOOT, OTHER_BOOT, OTHER_UUID, Life, Machines, patient, sealed_for
from tests.unit.daemon.test_reload_between import come_true
from tests.unit.identity.worlds import bundle

OURS = "config:i-1"
LateEnd = Callable[[Machines, Life], Awaitable[None]]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    patient(monkeypatch)


def play(root: Path, scenario: Callable[[Machines], Awaitable[None]], *, name: str = "i-1") -> None:
    async def main() -> None:
        machines = Machines(root, name=name)
        try:
            await scenario(machines)
        finally:
            await machines.before.prepared.close()

    asyncio.run(main())


def with_service(root: Path, scenario: Callable[[Machines, Ec2MetadataService], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Ec2MetadataService(instance_id="i-1") as ec2:
            machines = Machines(root, name="auto", ec2=ec2)
            try:
                await scenario(machines, ec2)
            finally:
                await machines.before.prepared.close()

    asyncio.run(main())


def waits(life: Life, *, after: timedelta = timedelta(0)) -> bool:
    """Whether a first bundle is waited for, so that nobody gets the machine's own identity."""
    return isinstance(standing.standing(life.store.state, Cloud.AWS, life.clock.now() + after), standing.Grace)


class TestOurs:
    def test_what_was_handed_over_is_in_force_before_the_disk_or_a_key_is_asked(self, tmp_path: Path) -> None:
        """Neither the memory's file nor the key is there any more."""

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS)
            (machines.state / "memory.json").unlink()
            (machines.before.root / "etc" / "worker.jwk").unlink()
            async with machines.start() as life:
                assert life.in_force() == 1
                assert not life.succession.pending

        play(tmp_path, scenario)

    def test_without_a_handover_it_comes_from_the_disk(self, tmp_path: Path) -> None:
        """A stop empties what the service manager holds: the sealed copy is opened again."""

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS)
            machines.stored.clear()
            async with machines.start() as life:
                assert life.in_force() == 1

        play(tmp_path, scenario)

    def test_what_an_orderly_end_leaves_is_what_the_next_start_finds(self, tmp_path: Path) -> None:
        """Also of a memory that an earlier version wrote, of which a start learns more: no disk has gone back by that."""

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS)
            machines.stored.clear()
            path = machines.state / "memory.json"
            document = json.loads(path.read_bytes())
            for mark in (*document["memory"]["marks"], document["memory"]["active"]):
                del mark["issued_at"]
            path.write_text(json.dumps(document))
            async with machines.start() as life:
                assert life.in_force() == 1
                await life.controller.durable.last(10)
                assert life.restorer.known_at_the_end.memory == grace.digest(machines.written())

        play(tmp_path, scenario)

    def test_a_later_disk_counts(self, tmp_path: Path) -> None:
        """A descriptor could not be handed over: the number on the disk is no lower than that of any process before."""

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS)
            stored = machines.stored
            await machines.live(OURS, seq=2)
            machines.stored = stored
            async with machines.start() as life:
                assert life.in_force() == 2

        play(tmp_path, scenario)

    def test_an_earlier_disk_is_written_anew(self, tmp_path: Path) -> None:
        """It was full, or a backup: a stop right after this start finds what was handed over."""

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS)
            await StateDirectory(machines.state).save(Memory(OURS, boot_id=machines.boot_id), None)
            async with machines.start() as life:
                assert life.in_force() == 1
            assert [mark.seq for mark in machines.written().marks] == [1]

        play(tmp_path, scenario)


class TestABrokenMemory:
    @pytest.mark.parametrize("on_expiry", ["deny", "fallback"])
    def test_it_is_replaced_by_one_that_allows_nothing(self, tmp_path: Path, on_expiry: str) -> None:
        """The next start must not find an empty one: that would be the machine's own identity after a withdrawal.

        Nor does it help a worker to that what the configuration says of a bundle's end: none is known to have ended.
        """

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS)
            machines.stored.clear()
            (machines.state / "memory.json").write_text("{")
            for _ in range(2):
                async with machines.start({"identity": {"on_expiry": on_expiry}}) as life:
                    assert life.store.memory.decided.keys() == set(Cloud)
                    assert life.in_force() is None
                    for cloud in Cloud:
                        assert isinstance(standing.standing(life.store.state, cloud, life.clock.now()), standing.Closed)
                machines.stored.clear()
            assert machines.written().decided.keys() == set(Cloud)

        play(tmp_path, scenario)

    def test_one_of_a_later_version_is_left_alone(self, tmp_path: Path) -> None:
        """That version can read it, after this downgrade has been taken back: nothing is served meanwhile."""
        later = '{"version":99,"memory":{}}'

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS)
            machines.stored.clear()
            (machines.state / "memory.json").write_text(later)
            async with machines.start() as life:
                assert life.store.memory.decided.keys() == set(Cloud)
            assert (machines.state / "memory.json").read_text() == later

        play(tmp_path, scenario)

    @pytest.mark.parametrize("handed", [True, False])
    @pytest.mark.parametrize(
        ("number", "passes"),
        [
            *((errno.EMFILE, True), (errno.EMFILE, False), (errno.EIO, True), (errno.EIO, False)),
            # Of another owner since a restore, or forbidden by a label: it is not read again, nor is it forgotten.
            *((errno.EACCES, False), (errno.EPERM, False)),
        ],
    )
    def test_what_cannot_be_read_just_then_is_not_forgotten(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, passes: bool, handed: bool, number: int
    ) -> None:
        """It is read again; and where that does not help either it stays on the disk as it is, for the next start.

        What was handed over is in force meanwhile, and is written down.
        """
        read, failed = read_plain, list[Path]()

        def failing(path: Path, most: int) -> bytes:
            if path.name == state.MEMORY_FILE and not (passes and failed):
                failed.append(path)
                raise OSError(number, os.strerror(number))
            return read(path, most)

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS)
            if not handed:
                machines.stored.clear()
            path = machines.state / state.MEMORY_FILE
            before = path.read_bytes() + b"\n"  # as we never write it
            path.write_bytes(before)
            with monkeypatch.context() as patch:
                patch.setattr(remembered, "AGAIN_SECONDS", (0.0, 0.0))
                patch.setattr(state, "read_plain", failing)
                with structlog.testing.capture_logs() as logs:
                    async with machines.start() as life:
                        assert life.in_force() == (1 if passes or handed else None)
                        assert life.store.memory.decided.keys() == ({Cloud.AWS} if passes or handed else set(Cloud))
            hints = [line["hint"] for line in logs if line["event"] == "memory.unreadable"]
            assert hints == ([] if passes else [remembered.REFUSED_HINT])
            assert len(failed) == 1 if passes else len(failed) >= (1 if number in (errno.EACCES, errno.EPERM) else 3)
            if not passes:
                assert (path.read_bytes() == before) is not handed
            assert [mark.seq for mark in machines.written().marks] == [1]

        play(tmp_path, scenario)

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
    def test_a_name_that_is_learned_late_is_not_written_over_what_could_not_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """Nothing was accepted since: what lies there, readable by now or not, is what the next start has."""
        failing = Refused(number, state.MEMORY_FILE, read_plain)

        async def scenario(machines: Machines, ec2: Ec2MetadataService) -> None:
            await machines.live("aws:i-1")
            machines.stored.clear()
            before = (machines.state / state.MEMORY_FILE).read_bytes()
            ec2.faults.append(Fault(drop=True, times=None))
            with monkeypatch.context() as patch:
                patch.setattr(remembered, "AGAIN_SECONDS", (0.0, 0.0))
                patch.setattr(state, "read_plain", failing)
                async with machines.start() as life:
                    failing.refuses = number == errno.EACCES
                    ec2.faults.clear()
                    await life.restorer.identify_late(at_once=True)
                    assert life.store.memory.instance_id == "aws:i-1"
            assert (machines.state / state.MEMORY_FILE).read_bytes() == before
            async with machines.start() as life:
                assert life.in_force() == 1

        with_service(tmp_path, scenario)

    @pytest.mark.parametrize("decided", [True, False], ids=["by a bundle", "by none"])
    def test_what_stood_for_it_is_not_handed_on_once_it_can_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, decided: bool
    ) -> None:
        """After it was mended a restart closes no more than a stop and a start would: what no bundle ever decided is open."""
        failing = Refused(errno.EACCES, state.MEMORY_FILE, read_plain)

        async def scenario(machines: Machines) -> None:
            if decided:
                await machines.live(OURS)
            else:
                machines.before.controller.durable.adopt(OURS, machines.boot_id, {})
                await machines.before.controller.durable.last(10)
            monkeypatch.setattr(remembered, "AGAIN_SECONDS", ())
            monkeypatch.setattr(state, "read_plain", failing)
            machines.stored.clear()
            async with machines.start() as life:
                assert life.store.memory.decided == dict.fromkeys(Cloud, OnExpiry.DENY)
                handed = life.handed_on()
            failing.refuses, machines.stored = False, handed
            for _ in range(2):
                async with machines.start() as life:
                    assert life.in_force() == (1 if decided else None)
                    assert life.store.memory.decided.keys() == ({Cloud.AWS} if decided else set())
                assert machines.written().decided.keys() == ({Cloud.AWS} if decided else set())
                machines.stored.clear()

        play(tmp_path, scenario)

    def test_who_could_not_read_it_does_not_vouch_for_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing of the original's is in force in a clone, whose metadata service is silent over a restart as well."""
        failing = Refused(errno.EACCES, state.MEMORY_FILE, read_plain)

        async def scenario(machines: Machines, ec2: Ec2MetadataService) -> None:
            await machines.live("aws:i-1")
            machines.says(boot=OTHER_BOOT, uuid=OTHER_UUID)
            ec2.faults.append(Fault(drop=True, times=None))
            monkeypatch.setattr(remembered, "AGAIN_SECONDS", ())
            monkeypatch.setattr(state, "read_plain", failing)
            machines.stored.clear()
            async with machines.start() as life:
                handed = life.handed_on()
            failing.refuses, machines.stored = False, handed
            async with machines.start() as life:
                assert life.in_force() is None
                assert life.store.memory.marks == ()

        with_service(tmp_path, scenario)

    @pytest.mark.parametrize(
        ("brought", "outcomes", "left"),
        [(1, {"refused"}, 2), (2, {"accepted", "same"}, 2), (3, {"accepted"}, 3)],
        ids=["an old one", "the same", "a successor"],
    )
    def test_what_could_not_be_read_at_the_start_counts_before_a_bundle_is_in_force(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought: int, outcomes: set[str], left: int
    ) -> None:
        """It can be read by now: an old bundle is refused, and what was in force comes back without another start."""
        failing, seen = Refused(errno.EIO, state.MEMORY_FILE, read_plain), set[int | None]()

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS, seq=2)
            machines.watching = lambda life: seen.add(life.in_force())
            monkeypatch.setattr(remembered, "AGAIN_SECONDS", ())
            monkeypatch.setattr(state, "read_plain", failing)
            machines.stored.clear()
            async with machines.start() as life:
                assert life.in_force() is None
                failing.refuses = False
                sealed = sealed_for(machines.before, seq=brought)
                if brought == 2:
                    sealed = next(machines.state.glob("bundle-*.jose")).read_bytes()
                ack = await life.controller.intake.submit(SealedBundle(sealed, "push"))
                assert ack.outcome in outcomes, ack
                await come_true(lambda: life.in_force() == left)
                assert life.store.memory.decided.keys() == {Cloud.AWS}
            assert 1 not in seen
            written = machines.written()
            assert written.active == written.marks[0]
            assert [mark.seq for mark in written.marks] == [left]
            async with machines.start() as life:
                assert life.in_force() == left

        play(tmp_path, scenario)

    @pytest.mark.parametrize("brought", [1, 9])
    def test_where_nothing_comes_back_the_agent_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought: int
    ) -> None:
        """What could be read by then says that all was withdrawn: only a later bundle is accepted, and no round fails."""
        failing = Refused(errno.EACCES, state.MEMORY_FILE, read_plain)

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS, seq=2)
            withdrawal = msgspec.structs.replace(bundle(seq=3, action=Action.WITHDRAW), issuer=ISSUER, subject="team")
            await machines.before.controller.durable.submit(withdrawal, b"")
            monkeypatch.setattr(remembered, "AGAIN_SECONDS", ())
            monkeypatch.setattr(state, "read_plain", failing)
            machines.stored.clear()
            async with machines.start() as life:
                failing.refuses = False
                ack = await life.controller.intake.submit(
                    SealedBundle(sealed_for(machines.before, seq=brought), "push")
                )
                life.controller.step()
                assert (ack.outcome, life.in_force()) == (("accepted", 9) if brought == 9 else ("refused", None))

        play(tmp_path, scenario)

    @pytest.mark.parametrize("passes", [True, False])
    def test_a_sealed_copy_that_cannot_be_read_just_then_is_in_force_once_it_can(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, passes: bool
    ) -> None:
        """It is read again; and where that does not help either, it stays on the disk for the next start."""
        read, failed = read_plain, list[Path]()

        def failing(path: Path, most: int) -> bytes:
            if path.suffix == ".jose" and not (passes and failed):
                failed.append(path)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(path, most)

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS)
            machines.stored.clear()
            with monkeypatch.context() as patch:
                patch.setattr(remembered, "AGAIN_SECONDS", (0.0, 0.0))
                patch.setattr(state, "read_plain", failing)
                async with machines.start() as life:
                    assert life.in_force() == (1 if passes else None)
            assert failed
            async with machines.start() as life:
                assert life.in_force() == 1

        play(tmp_path, scenario)

    def test_what_was_handed_over_takes_its_place(self, tmp_path: Path) -> None:
        """The process before knew: nothing of the closed memory that a broken file stands for counts."""

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS)
            (machines.state / "memory.json").write_text("{")
            async with machines.start() as life:
                assert life.in_force() == 1
                assert life.store.memory.decided.keys() == {Cloud.AWS}
            assert [mark.seq for mark in machines.written().marks] == [1]

        play(tmp_path, scenario)


class TestAnothers:
    @pytest.mark.parametrize("handed", [True, False], ids=["handed over", "from the disk"])
    def test_nothing_of_another_machines_is_in_force(self, tmp_path: Path, handed: bool) -> None:
        """The configuration names another machine: neither bundle, number, history nor credential is this one's."""

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS)
            machines.before.controller.history.add(machines.before.clock.now(), "accepted", "theirs", "1")
            machines.leave(history=list(machines.before.controller.history.entries), brought=Memory())
            await machines.before.prepared.state.note(machines.before.controller.history.entries)
            if not handed:
                machines.stored.clear()
            async with machines.start({"identity": {"instance_id": "i-2"}}) as life:
                assert life.in_force() is None
                assert life.store.memory.marks == ()
                assert not life.succession.pending
                assert "theirs" not in {entry.about for entry in life.controller.history.entries}
            assert machines.written().instance_id == "config:i-2"
            assert machines.written().marks == ()

        play(tmp_path, scenario)

    @pytest.mark.parametrize("decided", [True, False], ids=["which had a bundle", "which had none"])
    def test_its_boot_grace_is_not_this_ones(self, tmp_path: Path, decided: bool) -> None:
        """A machine that was resumed under a name of its own waits for its own first bundle."""

        async def scenario(machines: Machines) -> None:
            if decided:
                await machines.live(OURS)
                machines.leave(brought=Memory())
            else:
                machines.before.controller.durable.adopt(OURS, machines.boot_id, {})
                machines.leave()
            async with machines.start({"identity": {"instance_id": "i-2", "grace_seconds": 4.0}}) as life:
                assert waits(life)

        play(tmp_path, scenario)

    def test_the_grace_of_this_one_is_had_once(self, tmp_path: Path) -> None:
        """A restart, or a stop and a start, waits for no first bundle again."""

        async def scenario(machines: Machines) -> None:
            machines.before.controller.durable.adopt(OURS, machines.boot_id, {})
            machines.leave()
            async with machines.start({"identity": {"grace_seconds": 60.0}}) as life:  # since five seconds
                assert waits(life, after=timedelta(seconds=-5))
                assert not waits(life, after=timedelta(seconds=56))

        play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("noted", "boot", "anew"),
    [
        (OURS, BOOT, False),
        (OURS, "", False),
        (OURS, OTHER_BOOT, True),
        ("", BOOT, False),
        ("config:i-2", BOOT, True),
        (None, "", True),
    ],
    ids=["by it", "by an earlier version", "in another boot", "before it had a name", "by another", "by nobody"],
)
def test_a_grace_that_was_noted_counts_for_whom_it_was(
    tmp_path: Path, noted: str | None, boot: str, anew: bool
) -> None:
    """Over a stop and a start a file says when it began, in which boot and for which machine: a container's outlives boots."""

    async def scenario(machines: Machines) -> None:
        if noted is not None:
            began = machines.before.clock.uptime() - 5.0
            grace.write(machines.before.root / "run", grace.Began(noted, max(began, 0.0), boot))
        async with machines.start({"identity": {"grace_seconds": 4.0}}) as life:
            assert waits(life) is anew

    play(tmp_path, scenario)


@pytest.mark.parametrize("handed", [True, False], ids=["handed over", "noted"])
def test_a_grace_that_had_not_begun_to_count_begins_with_the_next_process(tmp_path: Path, handed: bool) -> None:
    """A file that decides whose bundles count did not answer, and does now: the bundle has its time to come."""

    async def scenario(machines: Machines) -> None:
        if handed:
            machines.before.controller.durable.adopt(OURS, machines.boot_id, {})
            machines.leave(holding=True)
        else:
            began = max(machines.before.clock.uptime() - 5.0, 0.0)
            grace.write(machines.before.root / "run", grace.Began(OURS, began, BOOT, holding=True))
        async with machines.start({"identity": {"grace_seconds": 4.0}}) as life:
            assert waits(life)

    play(tmp_path, scenario)


class TestWhoItIs:
    def test_a_restart_does_not_wait_for_the_metadata_service(self, tmp_path: Path) -> None:
        """It is silent: what was handed over in this boot is this machine's."""

        async def scenario(machines: Machines, ec2: Ec2MetadataService) -> None:
            await machines.live("aws:i-1")
            ec2.faults.append(Fault(drop=True, times=None))
            async with machines.start() as life:
                assert life.in_force() == 1

        with_service(tmp_path, scenario)

    def test_a_doubt_is_handed_over(self, tmp_path: Path) -> None:
        """Firmware and boot were the same before, too, and there was a doubt all the same: only a name settles it."""

        async def scenario(machines: Machines, ec2: Ec2MetadataService) -> None:
            await machines.live("aws:i-1")
            machines.leave(doubted=True)
            ec2.faults.append(Fault(drop=True, times=None))
            with structlog.testing.capture_logs() as logs:
                async with machines.start() as life:
                    assert life.in_force() is None
                    assert life.store.doubted
                    assert life.restorer.may_settle
                    ec2.faults.clear()
                    await life.restorer.identify_first([], at_once=True)
                    assert life.in_force() == 1
            assert [line["event"] for line in logs if line["event"].startswith("memory.")] == ["memory.doubtful"]

        with_service(tmp_path, scenario)

    def test_a_name_that_firmware_contradicts_is_a_doubt(self, tmp_path: Path) -> None:
        """A service that errs: nothing is served, nothing is forgotten, and nobody waits for it to end by itself."""

        async def scenario(machines: Machines, ec2: Ec2MetadataService) -> None:
            await machines.live("aws:i-1")
            machines.stored.clear()
            ec2.instance_id = "i-2"
            with structlog.testing.capture_logs() as logs:
                async with machines.start() as life:
                    assert life.in_force() is None
                    assert not life.restorer.may_settle
                    assert life.who.audiences == frozenset()
                    assert machines.written().instance_id == "aws:i-1"
                    assert [mark.seq for mark in machines.written().marks] == [1]
                    ec2.instance_id = "i-1"
                    await life.restorer.identify_late(at_once=True)
                    assert life.in_force() == 1
                    assert life.who.audiences
            assert [line["event"] for line in logs if line["event"].startswith("memory.")] == ["memory.contradicted"]

        with_service(tmp_path, scenario)

    def test_a_copy_of_a_disk_is_another_machine(self, tmp_path: Path) -> None:
        """Another name and other firmware: all of it is forgotten, and its own bundles are."""

        async def scenario(machines: Machines, ec2: Ec2MetadataService) -> None:
            await machines.live("aws:i-1")
            machines.stored.clear()
            machines.says(boot=OTHER_BOOT, uuid=OTHER_UUID)
            ec2.instance_id = "i-2"
            async with machines.start() as life:
                assert life.in_force() is None
                assert life.store.memory.marks == ()
                assert not life.store.doubted
                # What its own service says of it stays: bundles for this machine find it.
                assert any("i-2" in one for one in life.who.audiences)
                assert life.store.facts().instance_id == "i-2"
            assert machines.written().instance_id == "aws:i-2"

        with_service(tmp_path, scenario)

    def test_a_name_that_is_learned_late_brings_what_was_accepted_back(self, tmp_path: Path) -> None:
        """The service was silent at a boot of which nothing else tells whose it is."""

        async def scenario(machines: Machines, ec2: Ec2MetadataService) -> None:
            machines.says(uuid="")
            await machines.live("aws:i-1")
            machines.stored.clear()
            machines.says(boot=OTHER_BOOT)
            ec2.faults.append(Fault(drop=True, times=None))
            async with machines.start() as life:
                assert life.in_force() is None
                assert life.store.doubted
                ec2.faults.clear()
                await life.restorer.identify_first(life.found, at_once=True)
                assert life.in_force() == 1
                assert any("i-1" in one for one in life.who.audiences)

        with_service(tmp_path, scenario)

    def test_who_is_known_is_not_asked_again(self, tmp_path: Path) -> None:
        """A start to which the service has said all asks it nothing more."""

        async def scenario(machines: Machines, ec2: Ec2MetadataService) -> None:
            async with machines.start() as life:
                asked = len(ec2.paths("GET"))
                await life.restorer.identify_first(life.found, at_once=True)
                assert len(ec2.paths("GET")) == asked
                assert life.store.memory.instance_id == "aws:i-1"

        with_service(tmp_path, scenario)

    def test_a_machine_that_becomes_another_forgets_nothing_until_it_is_known(self, tmp_path: Path) -> None:
        """A copy of a machine that runs: another name in this boot takes what is in force away, and the true one brings it."""

        async def scenario(machines: Machines, ec2: Ec2MetadataService) -> None:
            await machines.live("aws:i-1")
            async with machines.start() as life:
                await life.restorer.identify_first([], at_once=True)
                assert life.in_force() == 1
                assert life.who.audiences
                ec2.instance_id = "i-2"
                found = await life.who.ask()
                doubting = asyncio.create_task(life.restorer.identify_anew(found, "aws:i-2"))
                await come_true(lambda: life.store.doubted)
                assert life.who.audiences == frozenset()
                assert life.prepared.opening.names == frozenset()
                assert isinstance(life.store.answer(Cloud.AWS, life.clock.now()), Pending)
                doubting.cancel()
                await asyncio.gather(doubting, return_exceptions=True)
                ec2.instance_id = "i-1"
                await life.restorer.identify_late(at_once=True)
                assert life.in_force() == 1
                assert life.who.audiences

        with_service(tmp_path, scenario)


class TestHistory:
    @pytest.mark.parametrize("fails", [False, True])
    def test_what_happened_before_is_taken_back_from_wherever_it_was_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool
    ) -> None:
        """A person sees one history, over restarts and stops; and the next process finds all of it on the disk.

        Where there is no thread to read it just then it is read later.
        """
        read = StateDirectory.history

        def at_the_second_try(state: StateDirectory) -> tuple[Entry, ...]:
            monkeypatch.setattr(StateDirectory, "history", read)
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

        async def scenario(machines: Machines) -> None:
            await machines.live(OURS)
            entries = {
                about: Entry(at=machines.before.clock.now(), kind="renewed", about=about, said="")
                for about in ("on the disk", "handed over")
            }
            await machines.before.prepared.state.note((entries["on the disk"],))
            machines.leave(history=[entries["handed over"]])
            if fails:
                monkeypatch.setattr(unending, "AGAIN_SECONDS", 0.0)
                monkeypatch.setattr(StateDirectory, "history", at_the_second_try)
            async with machines.start() as life:
                seen = [(one.kind, one.about) for one in life.controller.history.entries]
                assert {("renewed", about) for about in entries} < set(seen)
                assert ("started", "agent") in seen
            found = machines.before.prepared.state.history()
            assert {*entries, "agent"} <= {one.about for one in found}

        play(tmp_path, scenario)


class TestADiskThatAnswersLate:
    def play(
        self, root: Path, patch: pytest.MonkeyPatch, before: Callable[[Machines], Awaitable[None]], end: LateEnd
    ) -> None:
        """A restart while the state directory does not answer; it does once what was handed over is in force.

        Perhaps it has answered before anybody asks again: what answers workers is begun in between.
        """

        async def scenario(machines: Machines, *, soon: bool) -> None:
            await machines.live(OURS)
            await before(machines)
            patch.setattr(disk, "LOOK_SECONDS", 0.05)
            silent = machines.before.stall(machines.state / "memory.json")
            try:
                async with machines.start(waits_for_disk=False) as life:
                    assert life.in_force() == 1
                    silent.answer()
                    if soon:
                        await life.restorer.recalling
                    await end(machines, life)
            finally:
                silent.answer()

        for soon in (False, True):
            place = root / f"soon-{soon}"
            place.mkdir()
            play(place, partial(scenario, soon=soon))

    def test_what_was_handed_over_is_in_force_and_written_once_it_answers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A backup lies there: nothing is written over it before it was read, and then what we know is."""

        async def before(machines: Machines) -> None:
            await StateDirectory(machines.state).save(Memory(OURS, boot_id=machines.boot_id), None)

        async def end(machines: Machines, life: Life) -> None:
            await life.restorer.reconcile()
            await life.controller.durable.last(10)  # nobody looks before: a look removes what is half written
            assert machines.written().marks == life.store.memory.marks

        self.play(tmp_path, monkeypatch, before, end)

    def test_an_alarm_that_it_has_gone_back_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Until something newer is brought, however late it says so; and from then on it says that we are at work."""
        since = datetime(2026, 1, 1, tzinfo=UTC)

        async def before(machines: Machines) -> None:
            now = machines.before.clock.now()
            await StateDirectory(machines.state).live(Lived(at=now, ended=True, since=since))

        async def end(machines: Machines, life: Life) -> None:
            await life.restorer.reconcile()
            assert "2026-01-01" in (life.prepared.age.reason(life.store.memory) or "")
            await life.prepared.age.last(life.store.memory, 10)
            lived = StateDirectory(machines.state).lived()
            assert lived is not None
            assert lived.since == since

        self.play(tmp_path, monkeypatch, before, end)

    def test_one_that_is_later_is_not_written_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The agent starts again, and has both to choose from."""

        async def before(machines: Machines) -> None:
            stored = machines.stored
            await machines.live(OURS, seq=2)
            machines.stored = stored

        async def end(machines: Machines, life: Life) -> None:
            with pytest.raises(HostError, match="later memory"):
                await life.restorer.reconcile()
            assert [mark.seq for mark in machines.written().marks] == [2]

        self.play(tmp_path, monkeypatch, before, end)


def test_without_a_handover_nothing_begins_before_the_disk_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone knows what was decided here: until then everybody is refused, and then it is in force."""
    monkeypatch.setattr(disk, "FIRST_LOOK_SECONDS", 0.05)

    async def scenario(machines: Machines) -> None:
        await machines.live(OURS)
        machines.stored.clear()
        silent = machines.before.stall(machines.state / "memory.json")
        asyncio.get_running_loop().call_later(0.2, silent.answer)
        async with machines.start() as life:
            assert life.in_force() == 1

    play(tmp_path, scenario)


class TestNobodyMayTell:
    def test_a_doubt_that_nothing_can_end_is_not_waited_for(self, tmp_path: Path) -> None:
        """No metadata service, no name, another boot: readiness waits for no word, and nobody is asked for ever."""

        async def scenario(machines: Machines) -> None:
            machines.says(uuid="")
            await machines.live("")
            machines.stored.clear()
            machines.says(boot=OTHER_BOOT)
            async with machines.start() as life:
                assert life.store.doubted
                assert life.in_force() is None
                assert not life.restorer.may_settle
                async with asyncio.timeout(10):
                    await life.restorer.identify_first(life.found, at_once=True)
                assert life.store.doubted

        play(tmp_path, scenario, name="auto")


def test_who_is_silent_after_a_gap_lends_no_name(tmp_path: Path) -> None:
    """Nobody says that it is still this machine: until then no bundle is for it by the name that it had."""

    async def scenario(machines: Machines, ec2: Ec2MetadataService) -> None:
        await machines.live("aws:i-1")
        async with machines.start() as life:
            await life.restorer.identify_first([], at_once=True)
            life.restorer.learn(await life.who.ask(), [AUDIENCE])
            assert life.who.audiences
            ec2.faults.append(Fault(drop=True, times=None))
            doubting = asyncio.create_task(life.restorer.identify_anew([], ""))
            await come_true(lambda: life.store.doubted)
            assert life.who.audiences == frozenset()
            assert life.prepared.opening.audiences == {AUDIENCE}
            doubting.cancel()
            await asyncio.gather(doubting, return_exceptions=True)

    with_service(tmp_path, scenario)


def test_what_a_doubt_set_aside_is_opened_as_after_a_start(tmp_path: Path) -> None:
    """It is in force no more, so a silent place holds it over; and what was read of it is kept for the end of the doubt."""

    async def scenario(machines: Machines, ec2: Ec2MetadataService) -> None:
        await machines.live("aws:i-1")
        async with machines.start() as life:
            await life.restorer.identify_first([], at_once=True)
            opening = life.prepared.opening
            assert (opening.in_force(), opening.accepted()) == (True, life.controller.durable.sealed)
            ec2.faults.append(Fault(drop=True, times=None))
            doubting = asyncio.create_task(life.restorer.identify_anew([], ""))
            await come_true(lambda: life.store.doubted)
            assert not opening.in_force()
            assert opening.opened(opening.accepted() or b"") is not None
            doubting.cancel()
            await asyncio.gather(doubting, return_exceptions=True)

    with_service(tmp_path, scenario)


def test_the_grace_waits_for_a_file_that_decides_whose_bundles_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a signer's file does not answer, no worker gets the machine's identity, however long that takes."""
    monkeypatch.setattr(disk, "FIRST_LOOK_SECONDS", 0.1)

    async def scenario(machines: Machines) -> None:
        silent = machines.before.stall(machines.before.signer_file)
        try:
            async with machines.start({"identity": {"grace_seconds": 0.0}}) as life:
                assert waits(life, after=timedelta(days=30))
        finally:
            silent.answer()

    play(tmp_path, scenario)


def test_memory_of_a_stream_that_only_the_disk_knows_is_kept(tmp_path: Path) -> None:
    """Neither of the two may take back what the other knows: a withdrawal in another stream, say."""

    async def scenario(machines: Machines) -> None:
        await machines.live(OURS)
        memory = machines.written()
        more = Mark("other", "s", 7, "0" * 64, machines.before.clock.now())
        both = Memory(OURS, (*memory.marks, more), memory.decided, memory.active, {}, memory.boot_id, {})
        await StateDirectory(machines.state).save(both, machines.before.controller.durable.sealed)
        async with machines.start() as life:
            assert {mark.issuer: mark.seq for mark in life.store.memory.marks}.get("other") == 7
            assert life.in_force() == 1

    play(tmp_path, scenario)
