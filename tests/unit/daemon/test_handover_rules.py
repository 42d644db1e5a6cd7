"""What of a handover is believed: by whom it was left, how late it is, and whose clock it counts by."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from agent import keys
from agent.bundle import OpeningKey, Trust
from agent.core.errors import HostError
from agent.core.model import Cloud, OnExpiry
from agent.core.secret import Secret
from agent.core.strictjson import decode
from agent.core.verdict import Failure, Key, Mark, Memory
from agent.daemon import codec, grace, handover, kept
from agent.daemon.gap import Known
from agent.daemon.handover import Handover
from agent.host import files
from agent.host.clock import SystemClock
from agent.host.files import read_plain
from agent.host.state import closed_memory
from agent.host.systemd import NEXT, Passed
from agent.identity.events import Remnant, Waiting
from tests.fakes.clock import START
from tests.unit.identity.worlds import HOUR, aws_credential, google_token

CREDENTIAL = aws_credential(START)
SECOND = timedelta(seconds=1)


def clock(*, ahead: float = 0.0, uptime: float = 500.0) -> SystemClock:
    return SystemClock(boottime=lambda: uptime, wall=lambda: START.timestamp() + ahead, synchronised=lambda: False)


def memory(*marks: tuple[str, int], instance: str = "i-1", active: bool = True) -> Memory:
    made = tuple(Mark("cp", subject, seq, "a" * 64) for subject, seq in marks)
    return Memory(instance, made, active=made[0] if active and made else None)


OURS = memory(("team", 3))


def left(found: Memory = OURS, **fields: object) -> Handover:
    return Handover(uptime=400.0, now=START - 100 * SECOND, began=1.0, memory=found, **fields)  # type: ignore[arg-type]


class TestWhichMemory:
    """What was handed over, or what the disk says."""

    @pytest.mark.parametrize(
        "disk",
        [
            memory(("team", 4)),
            memory(("team", 3), ("another", 1)),
            memory(("team", 1), instance="i-2"),
        ],
        ids=["a higher number", "another stream", "another machine"],
    )
    def test_a_disk_that_moved_on_is_right(self, disk: Memory) -> None:
        """A number that the handover does not know is never taken back; nor is another machine's memory taken for ours."""
        assert handover.reconcile(left(sealed=handover.encoded(b"ours")), disk, b"disk") == (disk, b"disk")

    @pytest.mark.parametrize(
        "disk",
        [memory(("team", 2)), memory(("team", 3)), Memory(), Memory("i-1")],
        ids=["lower", "same", "lost", "new"],
    )
    def test_a_disk_that_is_behind_is_not(self, disk: Memory) -> None:
        """A full disk, or one that lost its memory, forgets nothing that the process before knew."""
        ours = left(sealed=handover.encoded(b"ours"))
        assert handover.reconcile(ours, disk, b"disk") == (ours.memory, b"ours")

    @pytest.mark.parametrize(
        ("disk", "counts"),
        [(memory(("team", 2)), True), (Memory("i-1"), True), (Memory(), False)],
        ids=["which had a bundle", "which had none", "lost"],
    )
    def test_what_stood_for_a_memory_ends_once_that_is_read(self, disk: Memory, *, counts: bool) -> None:
        """It closed each cloud, as long as nothing was known. A memory that says nothing is no proof of that."""
        closed = replace(closed_memory(""), instance_id="i-1")
        found, _ = handover.reconcile(left(closed), disk, None)
        assert found == (disk if counts else closed)
        since = replace(closed, marks=(Mark("cp", "other", 1, "b" * 64),))
        assert handover.reconcile(left(since), disk, None)[0].decided == closed.decided
        # Something came since, of a stream that was forgotten: no stand-in any more.
        forgotten = replace(closed, floors={"cp": START})
        assert handover.reconcile(left(forgotten), disk, None)[0].floors == {"cp": START}

    def test_an_unknown_name_is_no_other(self) -> None:
        """Whose name was not learned is not another machine: on either side."""
        nameless = left(memory(("team", 3), instance=""), sealed=handover.encoded(b"ours"))
        assert handover.reconcile(nameless, memory(("team", 2)), None)[0] is nameless.memory
        ours = left(sealed=handover.encoded(b"ours"))
        assert handover.reconcile(ours, memory(("team", 2), instance=""), None)[0] is ours.memory

    def test_a_withdrawal_that_the_disk_refused_is_no_bundle(self) -> None:
        """Where nothing is in force any more the copy on the disk is not read back."""
        gone = left(memory(("team", 4), active=False))
        assert handover.reconcile(gone, memory(("team", 3)), b"disk") == (gone.memory, None)

    @pytest.mark.parametrize("sealed", [None, Secret("no base64!")])
    def test_the_copy_on_the_disk_does_for_one_that_is_missing(self, sealed: Secret | None) -> None:
        """The memory is the later one; the sealed bytes are evaluated by their digest wherever they come from."""
        ours = left(sealed=sealed)
        assert handover.reconcile(ours, memory(("team", 3)), b"disk") == (ours.memory, b"disk")

    def test_without_a_handover_the_disk_is_all(self) -> None:
        """Without a handover the start knows what the disk knows, as at the start of a machine."""
        assert handover.reconcile(None, memory(("team", 3)), b"disk") == (memory(("team", 3)), b"disk")


class TestTime:
    def test_no_end_is_later_for_a_stop(self) -> None:
        """A clock that is ahead of what was handed over moves nothing; one that is behind moves everything back."""
        assert left().shift(clock()) == timedelta()
        assert left().shift(clock(ahead=3600)) == timedelta()
        assert left().shift(clock(ahead=-3600)) == -HOUR

    def test_what_was_waited_for_and_held_over_moves_along(self) -> None:
        """Ends that were counted and the times of retries are of that process's clock; named instants stay."""
        counted = Remnant(Cloud.AWS, "d", aws_credential(START), START + HOUR, "n", START + 2 * HOUR)
        named = Remnant(Cloud.GCP, "d", google_token(START), None, "n", None)
        retry = Waiting(Key(Cloud.AWS, "r"), "d", 3, START + 10 * SECOND, Failure("down", "no", False, START))
        given = left(remnants=[handover.remnant(counted), handover.remnant(named)], waiting=[retry])

        remnants, waiting = given.rest(clock(ahead=-3600), Trust(()))

        assert remnants == [counted._replace(ends=START), named]
        moved = Failure("down", "no", False, START - HOUR)
        assert waiting == [retry._replace(again_at=START - HOUR + 10 * SECOND, failure=moved)]

    def test_a_signer_that_is_not_believed_any_more_holds_nothing_over(self) -> None:
        """What an earlier bundle left goes, for nobody knows whose it was; the retries stay."""
        one = handover.remnant(Remnant(Cloud.AWS, "d", aws_credential(START), None, "n", None))
        retry = Waiting(Key(Cloud.AWS, "r"), "d", 3, START, Failure("down", "no", False, START))
        given = left(remnants=[one], waiting=[retry], signers=["a signer of yesterday"])

        assert given.rest(clock(), Trust(())) == ([], [retry])

    @pytest.mark.parametrize(
        ("stream", "later", "stays"),
        [
            (("cp", "team"), OURS, True),
            (("cp", "team"), memory(("team", 4)), False),
            (("cp", "team"), memory(("team", 3), ("other", 1)), True),
            (None, OURS, True),
            (None, memory(("team", 3), ("other", 1)), False),
        ],
        ids=["nothing", "its own", "another", "nothing, of an earlier version", "something, of an earlier version"],
    )
    def test_what_was_withdrawn_before_it_was_given_back_is_left_out(
        self, stream: tuple[str, str] | None, later: Memory, *, stays: bool
    ) -> None:
        """What an earlier bundle left goes with a withdrawal of its stream, which came while the next was being opened."""
        one = Remnant(Cloud.AWS, "d", aws_credential(START), None, "n", None, stream, "kid")
        given = left(remnants=[handover.remnant(one)]).since(later)
        assert given.rest(clock(), Trust(()))[0] == ([one] if stays else [])

    def test_what_an_earlier_version_left_says_not_whose_it_was(self) -> None:
        """It is taken all the same, and is anybody's: it goes with the first who is believed no longer."""
        whole = handover.encode(left(remnants=[handover.remnant(Remnant(Cloud.AWS, "d", CREDENTIAL, None, "n", None))]))
        written = json.loads(whole)
        for name in ("stream", "signer"):
            del written["remnants"][0][name]
        given = codec.decode(json.dumps(written).encode(), Handover, version=handover.VERSION)
        (remnant,), _ = given.rest(clock(), Trust(()))
        assert (remnant.credential, remnant.stream, remnant.signer) == (CREDENTIAL, None, "")

    def test_what_cannot_be_reckoned_with_is_left_out(self) -> None:
        """An instant at the end of all time raises nothing later: neither an end, nor a retry, nor its failure."""
        never = START.replace(year=9999)
        one = handover.remnant(Remnant(Cloud.AWS, "d", aws_credential(START), never, "n", None))
        fine = Waiting(Key(Cloud.AWS, "r"), "d", 3, START, Failure("down", "no", False, START))
        bad = fine._replace(again_at=never)
        worse = fine._replace(failure=Failure("down", "no", False, never))

        assert left(remnants=[one], waiting=[bad, worse, fine]).rest(clock(), Trust(())) == ([], [fine])

    @pytest.mark.parametrize(("year", "counts"), [(1969, False), (1970, True), (8999, True), (9000, False)])
    def test_which_years_can_be_reckoned_with(self, year: int, counts: bool) -> None:
        """One instant that cannot spoils all; none at all is no trouble."""
        assert codec.reckonable(START, START.replace(year=year)) is counts
        assert codec.reckonable(None)


class TestTaking:
    def taken(self, *datas: bytes) -> Handover | None:
        stored = {}
        for name, data in zip((handover.NAME, handover.NAME + NEXT), datas, strict=False):
            stored[name] = os.memfd_create("test")
            os.write(stored[name], data)
        return handover.take(Passed({}, stored), clock())

    def test_the_later_of_two_is_taken(self) -> None:
        """Whichever stands first: a process may have ended between any two steps of replacing it."""
        older, newer = left(recipient="old"), left(recipient="new")
        newer = msgspec.structs.replace(newer, uptime=450.0)
        for pair in ((older, newer), (newer, older)):
            assert self.taken(*(handover.encode(one) for one in pair)) == newer

    def test_one_that_makes_no_sense_hides_no_other(self) -> None:
        """The good one is taken, and of nothing good nothing is."""
        assert self.taken(b"{", handover.encode(left())) == left()
        assert self.taken(b"{") is None
        assert self.taken() is None

    @pytest.mark.parametrize(
        "fields",
        [{"began": -1.0}, {"began": 401.0}, {"uptime": 501.0}, {"now": START.replace(year=9000)}, {"version": 2}],
    )
    def test_what_is_of_another_boot_or_time_is_left(self, fields: dict[str, object]) -> None:
        """The grace began before it was left, and it was left before now: else it is of another boot."""
        assert self.taken(handover.encode(msgspec.structs.replace(left(), **fields))) is None
        assert self.taken(handover.encode(left())) is not None

    def test_the_very_moment_is_no_other_boot(self) -> None:
        """A process that ends at once leaves a grace that began now, to one that starts now."""
        now = msgspec.structs.replace(left(), began=0.0, uptime=0.0)
        assert self.taken(handover.encode(now)) is not None
        assert self.taken(handover.encode(msgspec.structs.replace(left(), began=500.0, uptime=500.0))) is not None


class TestContent:
    def test_it_says_the_same_at_another_moment(self) -> None:
        """Only the moment may differ, or what changed would not be handed over."""
        assert left().same_as(msgspec.structs.replace(left(), uptime=1.0, now=START))
        assert not left().same_as(msgspec.structs.replace(left(), began=2.0))
        assert not left().same_as(None)

    def test_the_key_that_exists_nowhere_else_comes_back(self) -> None:
        """The same key opens what was sealed to it; a garbled one is none, and not the end of the start."""
        made = keys.ephemeral_key()
        given = left(ephemeral=handover.jwk((made,)))
        found = given.key()
        assert found is not None
        assert found.private_jwk() == made.private_jwk()
        assert handover.jwk((found,)) == given.ephemeral  # and is handed on again
        assert left(ephemeral=Secret("{}")).key() is None
        assert left().key() is None
        assert handover.jwk(()) is None

    def test_a_key_that_lies_elsewhere_is_not_handed_on(self) -> None:
        """Only the one that exists nowhere else: a file's is read from its file."""
        made = keys.ephemeral_key()
        elsewhere = keys.LocalKey(OpeningKey.generate("P-256"), kind="file")
        assert handover.jwk((elsewhere,)) is None
        assert handover.jwk((elsewhere, made)) == handover.jwk((made,))

    def test_bytes_come_back(self) -> None:
        """Bytes come back as they were; what is no base64 is none."""
        assert handover.decoded(handover.encoded(b"\x00\xff")) == b"\x00\xff"
        assert handover.encoded(None) is None
        assert handover.decoded(None) is None
        assert handover.decoded(Secret("?")) is None

    def test_a_secret_is_written_whole_and_shown_to_nobody(self) -> None:
        """In the handover it is in the clear, for the next process; nowhere else."""
        given = left(token_key=Secret("hidden-word"))
        assert b"hidden-word" in handover.encode(given)
        assert "hidden-word" not in repr(given)

    def test_a_time_without_a_zone_is_refused(self) -> None:
        """It could not be compared with ours."""
        data = handover.encode(left()).replace(b'Z"', b'"')
        with pytest.raises(HostError, match=r"utc|sense"):
            codec.decode(data, Handover, version=1)


class TestKept:
    def test_the_machines_own_name_decides(self) -> None:
        """Of another machine's credentials none is a holding."""
        given = kept.Kept("i-1", 400.0, START, False, [])
        assert given.holdings("i-2", clock()) == []

    @pytest.mark.parametrize(
        ("uptime", "year", "taken"),
        [(500.0, 2026, True), (500.1, 2026, False), (-0.1, 2026, False), (1.0, 9000, False)],
    )
    def test_what_is_of_another_boot_is_dropped(self, uptime: float, year: int, taken: bool) -> None:
        """It cannot have been left later than now, nor at a time that cannot be reckoned with."""
        given = kept.Kept("i-1", uptime, START.replace(year=year), False, [])
        assert (kept.decode(codec.encode(given), clock()) is not None) is taken


class TestGrace:
    def test_it_is_had_once_a_boot(self, tmp_path: Path) -> None:
        """What one process wrote the next reads, unless it is of another boot or makes no sense."""
        assert grace.read(tmp_path, uptime=10.0) is None
        grace.write(tmp_path, grace.Began("i-1", 5.0))
        assert grace.read(tmp_path, uptime=10.0) == grace.Began("i-1", 5.0)
        assert grace.read(tmp_path, uptime=5.0) == grace.Began("i-1", 5.0)
        assert grace.read(tmp_path, uptime=4.9) is None
        grace.write(tmp_path, grace.Began("i-1", 0.0))
        assert grace.read(tmp_path, uptime=10.0) == grace.Began("i-1", 0.0)
        grace.write(tmp_path, grace.Began("i-1", -0.1))
        assert grace.read(tmp_path, uptime=10.0) is None
        (tmp_path / grace.FILE).write_text("[]")
        assert grace.read(tmp_path, uptime=10.0) is None

    def test_a_directory_that_takes_nothing_is_no_trouble(self, tmp_path: Path) -> None:
        """The grace is then only had once more."""
        assert not grace.write(tmp_path / "missing", grace.Began("i-1", 5.0))
        assert grace.read(tmp_path / "missing", uptime=10.0) is None

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
    @pytest.mark.parametrize("times", [1, 2, 3])
    def test_what_the_system_refuses_just_then_is_read_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, number: int
    ) -> None:
        """A doubt, and what is waited for, are not forgotten for that; what we may not read is not waited for."""
        began, failed = grace.Began("i-1", 5.0, "boot", doubted=True, awaited=(Cloud.AWS,)), list[Path]()
        grace.write(tmp_path, began)

        def failing(path: Path, most: int) -> bytes:
            if len(failed) < times:
                failed.append(path)
                raise OSError(number, os.strerror(number))
            return read_plain(path, most)

        monkeypatch.setattr(files, "read_plain", failing)
        monkeypatch.setattr(grace, "AGAIN_SECONDS", (0.0, 0.0))
        passes = number != errno.EACCES
        assert grace.read(tmp_path, uptime=10.0) == (began if passes and times < 3 else None)
        assert len(failed) == (times if passes else 1)

    def test_an_earlier_version_reads_what_it_knows(self, tmp_path: Path) -> None:
        """What a later version notes is passed over by one that does not know it, and missing members count as none."""

        class Former(msgspec.Struct, frozen=True):
            instance_id: str
            began: float

        grace.write(tmp_path, grace.Began("i-1", 5.0, "boot", doubted=True, gap=Known(3, 4.0)))
        assert decode((tmp_path / grace.FILE).read_bytes(), Former) == Former("i-1", 5.0)
        (tmp_path / grace.FILE).write_bytes(msgspec.json.encode(Former("i-1", 5.0)))
        assert grace.read(tmp_path, uptime=10.0) == grace.Began("i-1", 5.0)

    def test_another_memory_is_another_one(self) -> None:
        """By each thing that was accepted, forgotten or decided; not by the order, or by what is known beside it."""
        one, two = Mark("issuer", "a", 1, "0" * 64, START), Mark("issuer", "b", 2, "1" * 64, START)
        memory = Memory("i-1", (one, two), {Cloud.AWS: None}, two, {"issuer": START}, "boot", {"product_uuid": "u"})
        changes: list[dict[str, Any]] = [
            {"instance_id": "i-2"},
            {"marks": (one,)},
            {"marks": (one, msgspec.structs.replace(two, seq=3))},
            {"decided": {}},
            {"decided": {Cloud.AWS: OnExpiry.DENY}},
            {"decided": {Cloud.AWS: OnExpiry.FALLBACK}},
            {"active": None},
            {"active": one},
            {"floors": {}},
        ]
        others = [msgspec.structs.replace(memory, **change) for change in changes]
        assert len({grace.digest(each) for each in (memory, *others)}) == 1 + len(others)
        older = tuple(msgspec.structs.replace(mark, issued_at=None) for mark in (two, one))
        same = msgspec.structs.replace(memory, marks=older, active=older[0], boot_id="", firmware={})
        assert grace.digest(same) == grace.digest(memory)

    def test_the_newest_is_what_lies_there(self, tmp_path: Path) -> None:
        """Whatever changes while it is being written is written next; what could not be written is tried again."""

        async def main() -> None:
            note = grace.Note(tmp_path / "run")
            note.keep(grace.Began("i-1", 1.0))
            await note.last(30)
            (tmp_path / "run").mkdir()
            for number in range(5):
                note.keep(grace.Began("i-1", 1.0, doubted=number % 2 == 0))
            note.keep(grace.Began("i-1", 1.0))
            await note.last(30)
            assert grace.read(tmp_path / "run", uptime=10.0) == grace.Began("i-1", 1.0)

        asyncio.run(main())

    def test_what_could_not_be_written_is_tried_again_with_the_next_word(self, tmp_path: Path) -> None:
        """Though that says the same; and what was written, only once somebody has removed it."""
        directory, began = tmp_path / "run", grace.Began("i-1", 1.0)

        async def main() -> None:
            note = grace.Note(directory)
            note.again()  # nothing was to be kept yet
            note.keep(began)
            await note.last(30)
            directory.mkdir()
            note.keep(began)
            await note.last(30)
            assert grace.read(directory, uptime=10.0) == began
            (directory / grace.FILE).unlink()
            note.keep(began)
            await note.last(30)
            assert grace.read(directory, uptime=10.0) is None
            note.again()
            await note.last(30)
            assert grace.read(directory, uptime=10.0) == began

        asyncio.run(main())

    def test_a_word_that_comes_while_another_fails_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A disk that is full for one attempt loses nothing that was said during it."""
        later = grace.Began("i-1", 1.0, doubted=True)
        write = grace.write

        async def main() -> None:
            note, loop = grace.Note(tmp_path), asyncio.get_running_loop()

            def fails_once(directory: Path, began: grace.Began) -> bool:
                monkeypatch.setattr(grace, "write", write)
                asyncio.run_coroutine_threadsafe(said(), loop).result(30)
                return False

            async def said() -> None:
                note.keep(later)

            monkeypatch.setattr(grace, "write", fails_once)
            note.keep(grace.Began("i-1", 1.0))
            await note.last(30)
            assert grace.read(tmp_path, uptime=10.0) == later

        asyncio.run(main())
