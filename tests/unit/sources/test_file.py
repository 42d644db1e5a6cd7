"""The file source."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.core.errors import SourceError, UnansweredError
from agent.core.source import Ack, Source
from agent.host import patience
from agent.sources.file import LOOK_SECONDS, RETRY_LOOKS, SETTLE_LOOKS, SETTLE_SECONDS, FileSettings, FileSource
from tests.fakes.silent_files import silent
from tests.unit.sources.support import START, Listener, StepClock, run, watching


def put(path: Path, data: bytes) -> None:
    """Write aside and rename into place, as a careful sender does."""
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(data)
    aside.replace(path)


LONG_AGO = datetime(1990, 1, 1, tzinfo=UTC)


def make(path: Path, *, now: datetime = LONG_AGO, **settings: Any) -> tuple[FileSource, StepClock, Listener]:
    """``now``: by which files are old; without it none is."""
    clock = StepClock(now)
    return FileSource(FileSettings(path=path, **settings), clock=clock), clock, Listener()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_it_has_the_shape_of_a_source(tmp_path: Path) -> None:
    """A file source is a Source and carries its configured name into what it submits."""
    source: Source = FileSource(FileSettings(path=tmp_path / "b", name="drop"), clock=StepClock())
    (tmp_path / "b").write_bytes(b"x")
    found = asyncio.run(source.fetch())
    assert found is not None
    assert (source.name, found.origin, found.data) == ("drop", "drop", b"x")
    asyncio.run(source.acknowledge(Ack(origin="drop", outcome="accepted", at=START, seq=1)))


def test_a_file_that_does_not_answer_has_said_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that hangs says neither that a bundle is there nor that there is none."""
    (tmp_path / "b").write_bytes(b"x")
    monkeypatch.setattr(patience, "WAIT_SECONDS", 0.01)
    source, _, _ = make(tmp_path / "b")

    async def test() -> None:
        with silent(tmp_path / "b"), pytest.raises(UnansweredError, match="does not answer"):
            await source.fetch()

    run(test())


def test_a_rename_into_place_is_submitted_within_a_second(tmp_path: Path) -> None:
    """A bundle renamed into place is submitted after less than a second of the clock."""

    async def test() -> None:
        source, clock, heard = make(tmp_path / "bundle.jose")
        async with watching(source, heard):
            await clock.asleep()
            put(tmp_path / "bundle.jose", b"one")
            started = clock.passed
            while not heard.submitted:
                await clock.step()
                await asyncio.sleep(0)
                await clock.asleep()
            assert clock.passed - started <= LOOK_SECONDS + SETTLE_SECONDS < 1
            assert heard.bodies == [b"one"]

    run(test())


def test_a_bundle_already_there_is_submitted_at_once(tmp_path: Path) -> None:
    """At the start of the watch the file that is there is submitted without waiting for a change."""
    (tmp_path / "b").write_bytes(b"there")

    async def test() -> None:
        source, clock, heard = make(tmp_path / "b")
        async with watching(source, heard):
            assert await clock.step() == SETTLE_SECONDS
            await heard.until(lambda h: h.submitted)
            assert heard.bodies == [b"there"]

    run(test())


@pytest.mark.parametrize(
    ("age", "waited"), [(SETTLE_SECONDS + 0.001, False), (SETTLE_SECONDS - 0.001, True), (-3600.0, True)]
)
def test_what_has_lain_there_for_long_is_read_at_once(tmp_path: Path, age: float, waited: bool) -> None:
    """A start does not wait to see whether a file is being written that by its file system's marks is not."""
    path = tmp_path / "b"
    path.write_bytes(b"there")
    changed = path.stat().st_ctime

    async def test() -> None:
        source, clock, heard = make(path, now=datetime.fromtimestamp(changed + age, UTC))
        async with watching(source, heard):
            await clock.asleep()
            assert (heard.bodies == []) is waited
            while not heard.submitted:
                await clock.step()
                await clock.asleep()
            assert heard.bodies == [b"there"]

    run(test())


def test_a_file_that_only_looks_old_is_read_again(tmp_path: Path) -> None:
    """By a clock that is wrong a half written file may look old: it is read, and again as soon as it is another."""
    path = tmp_path / "b"
    path.write_bytes(b"hal")

    async def test() -> None:
        source, clock, heard = make(path, now=datetime(2200, 1, 1, tzinfo=UTC))
        async with watching(source, heard):
            await clock.asleep()
            path.write_bytes(b"half and whole")
            while len(heard.submitted) < 2:
                await clock.step()
                await clock.asleep()
            assert heard.bodies == [b"hal", b"half and whole"]

    run(test())


def test_only_changed_bytes_are_submitted(tmp_path: Path) -> None:
    """Touching the file, or writing the same bytes again, submits nothing; other bytes do, and the old ones once more."""
    path = tmp_path / "b"

    async def test() -> None:
        source, clock, heard = make(path)
        async with watching(source, heard):
            for index, data in enumerate([b"1", b"1", b"2", b"1"]):
                put(path, data)
                before = heard.oks
                while heard.oks == before:
                    await clock.step()
                    await clock.asleep()
                assert heard.oks >= index + 1
            assert heard.bodies == [b"1", b"2", b"1"]

    run(test())


def test_directory_may_come_later_and_go_again(tmp_path: Path) -> None:
    """A directory that does not exist is not trouble; a file that vanishes is not a change."""
    path = tmp_path / "not" / "yet" / "b"

    async def test() -> None:
        source, clock, heard = make(path)
        async with watching(source, heard):
            for _ in range(3):
                await clock.step()
            path.parent.mkdir(parents=True)
            put(path, b"late")
            while not heard.submitted:
                await clock.step()
                await clock.asleep()
            path.unlink()
            path.parent.rmdir()
            for _ in range(3):
                await clock.step()
                await clock.asleep()
            assert heard.bodies == [b"late"]
            assert heard.troubles == []

    run(test())


def test_a_swapped_symbolic_link_is_a_change(tmp_path: Path) -> None:
    """A link that is pointed elsewhere (a Kubernetes volume swaps a directory link) submits the new content."""
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "b").write_text(version)
    (tmp_path / "data").symlink_to("v1")
    (tmp_path / "b").symlink_to("data/b")

    async def test() -> None:
        source, clock, heard = make(tmp_path / "b")
        async with watching(source, heard):
            while len(heard.submitted) < 1:
                await clock.step()
                await clock.asleep()
            (tmp_path / "data.new").symlink_to("v2")
            (tmp_path / "data.new").replace(tmp_path / "data")
            while len(heard.submitted) < 2:
                await clock.step()
                await clock.asleep()
            assert heard.bodies == [b"v1", b"v2"]

    run(test())


def test_a_file_being_written_in_place_is_let_be_until_it_settles(tmp_path: Path) -> None:
    """A file that grows at every look is not read before it stops growing."""
    path = tmp_path / "b"

    async def test() -> None:
        source, clock, heard = make(path)
        async with watching(source, heard):
            await clock.asleep()
            with path.open("wb") as file:
                for _ in range(6):
                    file.write(b"part")
                    file.flush()
                    await clock.step()
                    await clock.asleep()
                    assert heard.submitted == []
            while not heard.submitted:
                await clock.step()
                await clock.asleep()
            assert heard.bodies == [b"part" * 6]

    run(test())


def test_a_file_that_never_settles_does_not_hold_the_watch(tmp_path: Path) -> None:
    """A file written to without end is looked at for a bounded time and then read for what it is."""
    path = tmp_path / "b"

    async def test() -> None:
        source, clock, heard = make(path, max_bytes=8)
        async with watching(source, heard):
            await clock.asleep()
            steps = 0
            with path.open("wb") as file:
                while not heard.troubles:
                    file.write(b"log\n")
                    file.flush()
                    await clock.step()
                    await clock.asleep()
                    steps += 1
            assert steps <= SETTLE_LOOKS + 2
            assert "at most 8 bytes" in str(heard.troubles[0])

    run(test())


def test_a_broken_file_is_an_error_and_a_mended_one_is_submitted(tmp_path: Path) -> None:
    """Too long, empty, or not a file: reported, read again now and then, and forgotten once it is a bundle."""
    path = tmp_path / "b"

    async def test() -> None:
        source, clock, heard = make(path, max_bytes=4)
        async with watching(source, heard):
            put(path, b"12345")
            while not heard.troubles:
                await clock.step()
                await clock.asleep()
            for _ in range(RETRY_LOOKS + 1):
                await clock.step()
                await clock.asleep()
            assert len(heard.troubles) == 2, "read again though it looks the same"
            put(path, b"1234")
            while not heard.submitted:
                await clock.step()
                await clock.asleep()
            assert heard.bodies == [b"1234"]

    run(test())


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "loop", "sparse", "socket"])
def test_what_takes_the_place_of_a_file_is_trouble_until_a_file_is_back(tmp_path: Path, kind: str) -> None:
    """While it is watched: whatever stands there hangs nothing and fills nothing, and the next bundle is submitted."""
    path, other = tmp_path / "b", tmp_path / "other"

    async def test() -> None:
        source, clock, heard = make(path, max_bytes=10)
        put(path, b"one")
        async with watching(source, heard):
            while not heard.submitted:
                await clock.step()
                await clock.asleep()
            match kind:
                case "directory":
                    other.mkdir()
                    path.unlink()
                case "fifo":
                    os.mkfifo(other)
                case "device":
                    other.symlink_to("/dev/zero")
                case "loop":
                    other.symlink_to(path)
                case "sparse":
                    other.touch()
                    os.truncate(other, 1 << 40)
                case "socket":
                    with socket.socket(socket.AF_UNIX) as bound:
                        bound.bind(str(other))
            other.rename(path)
            while not heard.troubles:
                await clock.step()
                await clock.asleep()
            if kind == "directory":
                path.rmdir()
            put(path, b"two")
            while len(heard.submitted) < 2:
                await clock.step()
                await clock.asleep()
            assert heard.bodies == [b"one", b"two"]

    run(test())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("directory", "expected a regular file, got a directory"),
        ("fifo", "expected a regular file, got a FIFO"),
        ("device", "expected a regular file, got a device"),
        ("empty", "got an empty file"),
        ("long", "expected at most 10 bytes"),
        ("loop", "cannot be read: too many levels of symbolic links"),
        ("sparse", "expected at most 10 bytes"),
        ("socket", "b: "),
    ],
)
def test_what_is_no_file_of_ours_is_refused_without_hanging(tmp_path: Path, kind: str, said: str) -> None:
    """Whatever lies at the path, reading it ends at once, with one line that names the path and says what is wrong."""
    path = tmp_path / "b"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "empty":
            path.touch()
        case "long":
            path.write_bytes(b"x" * 11)
        case "loop":
            path.symlink_to(path)
        case "sparse":
            path.touch()
            os.truncate(path, 1 << 40)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(path))
    source = FileSource(FileSettings(path=path, max_bytes=10), clock=StepClock())
    with pytest.raises(SourceError) as caught:
        asyncio.run(source.fetch())
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_absent_is_none(tmp_path: Path) -> None:
    """No file, no directory, and a file where a directory should be are all "not here"."""
    (tmp_path / "plain").write_bytes(b"x")
    for path in (tmp_path / "b", tmp_path / "no" / "b", tmp_path / "plain" / "b"):
        assert asyncio.run(FileSource(FileSettings(path=path), clock=StepClock()).fetch()) is None


def test_unreadable_says_who_should_be_let_in(tmp_path: Path) -> None:
    """A file the agent may not read is trouble with a hint that names the reader and the file."""
    path = tmp_path / "b"
    path.write_bytes(b"x")
    path.chmod(0)
    uid = os.geteuid()
    reader = uid or 65534  # root reads every file, so it steps down for a moment
    os.seteuid(reader)
    try:
        with pytest.raises(SourceError) as caught:
            asyncio.run(FileSource(FileSettings(path=path), clock=StepClock()).fetch())
    finally:
        os.seteuid(uid)
    assert "permission denied" in str(caught.value)
    assert f"uid {reader}" in (caught.value.hint or "")


def test_a_file_anyone_may_write_is_still_submitted(tmp_path: Path) -> None:
    """Permissions are not checked: the seal holds wherever the file lies."""
    path = tmp_path / "b"
    path.write_bytes(b"x")
    path.chmod(0o666)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    found = asyncio.run(FileSource(FileSettings(path=path), clock=StepClock()).fetch())
    assert found is not None


def test_looking_leaks_no_descriptor(tmp_path: Path) -> None:
    """A thousand looks, at files and at what is none, leave as many descriptors open as before."""
    (tmp_path / "ok").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    sources = [FileSource(FileSettings(path=tmp_path / n), clock=StepClock()) for n in ("ok", "fifo", "gone", ".")]

    async def test() -> None:
        await sources[0].fetch()
        before = descriptors()
        for _ in range(250):
            for source in sources:
                try:
                    await source.fetch()
                except SourceError:
                    continue
        assert descriptors() <= before  # a thread of a test before this one may close its own

    run(test())


def test_watching_is_cheap(tmp_path: Path) -> None:
    """Ten minutes of looks at an unchanged file cost less than half a per cent of one core."""
    path = tmp_path / "b"
    path.write_bytes(b"x")

    class Racing(StepClock):
        """Never waits; stops the watch after ten minutes."""

        async def sleep(self, seconds: float) -> None:
            self.passed += seconds
            if self.passed >= 600:
                raise asyncio.CancelledError
            await asyncio.sleep(0)

    async def test() -> None:
        heard = Listener()
        source = FileSource(FileSettings(path=path), clock=Racing())
        with pytest.raises(asyncio.CancelledError):
            await source.watch(heard.submit, on_error=heard.trouble, on_success=heard.ok)
        assert heard.bodies == [b"x"]

    began = resource.getrusage(resource.RUSAGE_SELF)
    run(test())
    ended = resource.getrusage(resource.RUSAGE_SELF)
    busy = (ended.ru_utime + ended.ru_stime) - (began.ru_utime + began.ru_stime)
    assert busy / 600 < 0.005, f"{busy:.2f} s of CPU for ten minutes"
