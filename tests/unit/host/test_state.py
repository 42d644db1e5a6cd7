"""What outlives the process: any crash between any two system calls leaves the old or the new state, whole."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.core.errors import HostError
from agent.core.history import Entry
from agent.core.model import Cloud, OnExpiry
from agent.core.verdict import Mark, Memory
from agent.host import threads
from agent.host.files import MAX_FILLED_BYTES, write_atomic
from agent.host.loop import Loop
from agent.host.state import HISTORY_FILE, MEMORY_FILE, SPARE_FILE, Lived, StateDirectory, closed_memory
from tests.fakes.clock import START


def memory(seq: int) -> Memory:
    mark = Mark("cp", "team", seq, hashlib.sha256(b"%d" % seq).hexdigest())
    return Memory("i-1", (mark,), {Cloud.AWS: OnExpiry.DENY, Cloud.GCP: None}, mark)


def save(directory: Path, what: Memory, sealed: bytes | None) -> None:
    asyncio.run(StateDirectory(directory).save(what, sealed))


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


class Crash(BaseException):
    """The process was killed here."""


class Syscalls:
    """Counts the system calls that change the disk, and crashes before or after the n-th."""

    def __init__(self, patch: pytest.MonkeyPatch, *, crash_at: int | None, after: bool) -> None:
        self.count = 0
        self._crash_at = crash_at
        self._after = after
        for name in ("open", "fchmod", "fsync", "close", "pwrite"):
            patch.setattr(os, name, self._counted(getattr(os, name)))
        for name in ("replace", "unlink", "hardlink_to"):
            patch.setattr(Path, name, self._counted(getattr(Path, name)))

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            dying = self.count == self._crash_at
            if dying and not self._after:
                raise Crash
            try:
                return real(*args, **kwargs)
            finally:
                if dying:  # also after a call that failed
                    raise Crash

        return call


class Failing:
    """Lets the n-th system call that changes the disk fail, and each after it if the trouble lasts."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, number: int, *, lasting: bool) -> None:
        self.count = 0
        self._at, self._number, self._lasting = at, number, lasting
        for name in ("open", "fchmod", "fsync", "pwrite"):
            patch.setattr(os, name, self._failing(getattr(os, name)))
        for name in ("replace", "unlink", "hardlink_to"):
            patch.setattr(Path, name, self._failing(getattr(Path, name)))

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self._at or (self._lasting and self.count > self._at):
                raise OSError(self._number, os.strerror(self._number))
            return real(*args, **kwargs)

        return call


def troubled(patch: pytest.MonkeyPatch, act: Callable[[], Any], at: int, number: int, *, lasting: bool) -> bool | None:
    """Do it on a disk that fails at that step; whether it went well, or ``None`` if it has not so many steps."""
    with patch.context() as inner:
        failing = Failing(inner, at, number, lasting=lasting)
        try:
            act()
        except HostError:
            return False
    return True if failing.count >= at else None


TROUBLES = [
    pytest.param(number, lasting, id=f"{errno.errorcode[number]}{', lasting' if lasting else ''}")
    for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)
    for lasting in (False, True)
]


@pytest.mark.parametrize(("number", "lasting"), TROUBLES)
@pytest.mark.parametrize("what", ["acceptance", "withdrawal", "history"])
def test_a_disk_that_fails_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, number: int, lasting: bool
) -> None:
    """Whatever call fails, and how: it is told or it did no harm; what can be read is the old or the new; it heals."""
    old, new = memory(1), memory(2)
    if what == "withdrawal":
        new = Memory("i-1", new.marks, old.decided, None)
    before, after = (Entry(at=START, kind="started", about="agent", said=said) for said in ("before", "after"))
    for step in range(1, 60):
        directory = tmp_path / f"{step}"
        directory.mkdir()
        save(directory, old, b"one")
        asyncio.run(StateDirectory(directory).note((before,)))
        state = StateDirectory(directory)
        state.load()
        act = {
            "acceptance": lambda state=state: asyncio.run(state.save(new, b"two")),
            "withdrawal": lambda state=state: asyncio.run(state.save(new, None)),
            "history": lambda directory=directory: write_history(directory, after),
        }[what]
        well = troubled(monkeypatch, act, step, number, lasting=lasting)
        found = StateDirectory(directory).load()
        if what == "history":
            assert found == (old, b"one")
            assert StateDirectory(directory).history() in [(before,), (after,)]
        elif what == "acceptance":
            assert found in ([(new, b"two")] if well is not False else [(old, b"one"), (new, b"two")]), step
        else:
            assert found in ([(new, None)] if well is not False else [(old, b"one"), (old, None), (new, None)]), step
        save(directory, memory(3), b"three")
        assert StateDirectory(directory).load() == (memory(3), b"three")
        if well is None:
            assert step > 3
            return
    pytest.fail("the steps did not end")


def write_history(directory: Path, entry: Entry) -> None:
    write_atomic(directory / HISTORY_FILE, msgspec.json.encode((entry,)), mode=0o600)


def steps_of_a_save(directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    save(directory, memory(1), b"one")
    with monkeypatch.context() as patch:
        calls = Syscalls(patch, crash_at=None, after=False)
        save(directory, memory(2), b"two")
    return calls.count


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """The memory and the sealed bytes come back as they were."""
    save(tmp_path, memory(3), b"sealed")

    assert StateDirectory(tmp_path).load() == (memory(3), b"sealed")


def test_an_empty_directory_is_an_empty_memory(tmp_path: Path) -> None:
    """A machine that accepted nothing yet remembers nothing."""
    assert StateDirectory(tmp_path).load() == (Memory(), None)


def test_files_are_for_us_alone(tmp_path: Path) -> None:
    """Both files are 0600 whatever the umask."""
    mask = os.umask(0)
    try:
        save(tmp_path, memory(1), b"one")
    finally:
        os.umask(mask)

    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_an_older_bundle_is_removed(tmp_path: Path) -> None:
    """Only the sealed bundle in force is kept; after a withdrawal none is."""
    save(tmp_path, memory(1), b"one")
    save(tmp_path, memory(2), b"two")
    assert len(names(tmp_path) - {SPARE_FILE}) == 2
    withdrawn = Memory("i-1", memory(3).marks, {Cloud.AWS: None}, None)
    save(tmp_path, withdrawn, None)

    assert names(tmp_path) == {MEMORY_FILE, SPARE_FILE}
    assert StateDirectory(tmp_path).load() == (withdrawn, None)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_between_any_two_steps_of_an_acceptance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Killed anywhere while a newer bundle is written down, the old or the new is there, whole, with its own bytes."""
    (tmp_path / "count").mkdir()
    steps = steps_of_a_save(tmp_path / "count", monkeypatch)
    assert steps >= 10
    outcomes = set()
    for step in range(1, steps + 1):
        directory = tmp_path / f"{step}"
        directory.mkdir()
        save(directory, memory(1), b"one")
        with monkeypatch.context() as patch:
            Syscalls(patch, crash_at=step, after=after)
            with pytest.raises(Crash):
                save(directory, memory(2), b"two")

        found = StateDirectory(directory).load()
        assert found in [(memory(1), b"one"), (memory(2), b"two")], f"after step {step}"
        outcomes.add(found[1])
        save(directory, memory(3), b"three")
        assert StateDirectory(directory).load() == (memory(3), b"three")
        assert len(names(directory) - {SPARE_FILE}) == 2, f"something was left behind after step {step}"
    assert outcomes == {b"one", b"two"}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_between_any_two_steps_of_a_withdrawal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Killed anywhere while a withdrawal is written down, it is there or not; never half, never open."""
    withdrawn = Memory("i-1", memory(2).marks, memory(1).decided, None)
    for step in range(1, 30):
        directory = tmp_path / f"{step}"
        directory.mkdir()
        save(directory, memory(1), b"one")
        with monkeypatch.context() as patch:
            Syscalls(patch, crash_at=step, after=after)
            try:
                save(directory, withdrawn, None)
            except Crash:
                pass
            else:
                break

        found = StateDirectory(directory).load()
        # Between the two the copy is gone and the memory not written: the cloud is closed, as if it were.
        assert found in [(memory(1), b"one"), (memory(1), None), (withdrawn, None)], f"after step {step}"
        assert Cloud.AWS in found[0].decided
    else:
        pytest.fail("the steps did not end")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"version":1}',
        b'{"version":1,"memory":{"marks":[{"seq":1}]}}',
        b'{"version":1,"memory":{"decided":{"azure":null}}}',
        b'{"version":1,"memory":{},"more":1}',
        b'{"version":0,"memory":{}}',
        b'{"version":3,"memory":{}}',
        b'{"version":1,"memory":{"marks":[{"issuer":"a","subject":"b","seq":1e400,"digest":"c"}]}}',
        b"[" * 100_000,
    ],
)
def test_a_memory_that_makes_no_sense_is_an_error(tmp_path: Path, content: bytes) -> None:
    """A garbled memory is never taken for an empty one: that would be the way around the sticky rule."""
    (tmp_path / MEMORY_FILE).write_bytes(content)
    with pytest.raises(HostError):
        StateDirectory(tmp_path).load()


def test_a_memory_truncated_anywhere_is_an_error(tmp_path: Path) -> None:
    """Cut at any byte, the memory is refused."""
    save(tmp_path, memory(1), b"one")
    whole = (tmp_path / MEMORY_FILE).read_bytes()
    for length in range(len(whole)):
        (tmp_path / MEMORY_FILE).write_bytes(whole[:length])
        with pytest.raises(HostError):
            StateDirectory(tmp_path).load()


def test_a_directory_in_place_of_the_memory_is_an_error(tmp_path: Path) -> None:
    """What cannot be read is not the same as what is not there."""
    (tmp_path / MEMORY_FILE).mkdir()
    with pytest.raises(HostError, match="cannot be read"):
        StateDirectory(tmp_path).load()


def _lead_nowhere(state: Path) -> None:
    (state / MEMORY_FILE).unlink()
    (state / MEMORY_FILE).symlink_to("elsewhere")


def _lead_nowhere_by_the_directory(state: Path) -> None:
    state.rename(state.with_name("moved"))
    state.symlink_to("gone")


def _lead_nowhere_above(state: Path) -> None:
    state.parent.rename(state.parent.with_name("moved"))
    state.parent.symlink_to("gone")


@pytest.mark.parametrize(
    "lose",
    [
        _lead_nowhere,
        _lead_nowhere_by_the_directory,
        _lead_nowhere_above,
        lambda state: (state / MEMORY_FILE).unlink(),
        lambda state: (state / MEMORY_FILE).rename(state / "memory.json.old"),
    ],
    ids=["a link that leads nowhere", "its directory's", "one above", "removed", "renamed"],
)
def test_a_memory_that_is_gone_is_not_one_that_never_was(tmp_path: Path, lose: Callable[[Path], object]) -> None:
    """Where there was a memory, its absence is an error, and does not read as "nothing was ever decided here"."""
    state = tmp_path / "lib" / "state"
    state.mkdir(parents=True)
    save(state, memory(1), b"one")
    lose(state)
    with pytest.raises(HostError, match=r"memory\.json: (expected a file or nothing|it is gone)"):
        StateDirectory(state).load()


@pytest.mark.parametrize(
    ("name", "look"), [(SPARE_FILE, "lstat"), ("", "lstat"), ("", "stat"), ("..", "lstat"), ("..", "stat")]
)
def test_a_disk_that_fails_as_it_is_asked_does_not_say_that_there_was_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, look: str
) -> None:
    """It is an error as any other of a memory, after which the agent goes on and nobody is the machine."""
    state, ask = tmp_path / "state", getattr(os, look)
    state.mkdir()
    failing = (state / name).resolve()

    def fails(path: Any, *arguments: Any, **named: Any) -> Any:
        if str(path) == str(failing):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return ask(path, *arguments, **named)

    monkeypatch.setattr(os, look, fails)
    with pytest.raises(HostError, match="input/output error"):
        StateDirectory(state).load()


def test_what_somebody_takes_away_is_missed(tmp_path: Path) -> None:
    """The memory and the bundle that it names, from when they were written or read; not a copy that was lost before."""
    state = StateDirectory(tmp_path)
    assert not state.lacks()
    asyncio.run(state.save(memory(1), b"one"))
    again = StateDirectory(tmp_path)
    again.load()
    for name in ("memory.json", "bundle-*"):
        assert not state.lacks()
        (path,) = tmp_path.glob(name)
        path.unlink()
        assert state.lacks()
        assert again.lacks()
        asyncio.run(state.save(memory(1), b"one"))
    (path,) = tmp_path.glob("bundle-*")
    path.unlink()
    lost = StateDirectory(tmp_path)
    lost.load()
    assert not lost.lacks()
    asyncio.run(lost.save(memory(1), None))
    assert not lost.lacks()


def test_a_lost_copy_leaves_the_memory(tmp_path: Path) -> None:
    """When the sealed copy is gone the memory still says what was decided, and names what is missing."""
    save(tmp_path, memory(1), b"one")
    next(tmp_path.glob("bundle-*")).unlink()

    assert StateDirectory(tmp_path).load() == (memory(1), None)


def test_a_digest_that_is_no_digest_leads_nowhere_else(tmp_path: Path) -> None:
    """A memory whose digest was edited into a path reads no file outside its directory."""
    directory = tmp_path / "state"
    directory.mkdir()
    (tmp_path / "x.jose").write_bytes(b"elsewhere")
    mark = Mark("cp", "team", 1, "x/../../x")
    save(directory, Memory("i-1", (mark,), {}, None), None)
    path = directory / MEMORY_FILE
    path.write_bytes(
        path.read_bytes().replace(
            b'"active":null', b'"active":{"issuer":"cp","subject":"team","seq":1,"digest":"/../../x"}'
        )
    )
    (directory / "bundle-").mkdir()
    with pytest.raises(HostError, match="digest"):
        StateDirectory(directory).load()


def test_a_broken_memory_is_kept_for_a_person(tmp_path: Path) -> None:
    """A broken memory gets a second name to be looked at by, and stays where it is until a good one replaces it."""
    (tmp_path / MEMORY_FILE).write_bytes(b"{")
    (tmp_path / (MEMORY_FILE + ".broken")).write_bytes(b"of last year")
    StateDirectory(tmp_path).keep_broken()
    with pytest.raises(HostError):
        StateDirectory(tmp_path).load()
    save(tmp_path, memory(1), b"one")

    assert (tmp_path / (MEMORY_FILE + ".broken")).read_bytes() == b"{"
    assert StateDirectory(tmp_path).load() == (memory(1), b"one")


def refusing(number: int) -> Callable[..., Any]:
    def refused(*_args: object, **_more: object) -> Any:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ESTALE])
def test_a_directory_that_cannot_be_listed_keeps_no_withdrawal_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The list of the directory serves tidiness only: what is withdrawn is removed and written down without it."""
    save(tmp_path, memory(1), b"one")
    state = StateDirectory(tmp_path)
    assert state.load() == (memory(1), b"one")
    withdrawn = Memory("i-1", (Mark("cp", "team", 2, "0" * 64),), {}, None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refusing(number))
        patch.setattr(Path, "glob", refusing(number))
        asyncio.run(state.save(withdrawn, None))

    assert StateDirectory(tmp_path).load() == (withdrawn, None)
    assert not [name for name in names(tmp_path) if name.startswith("bundle-")]


@pytest.mark.parametrize("fresh", [False, True], ids=["loaded", "saved"])
def test_without_a_descriptor_what_is_withdrawn_goes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    """With no descriptor left the bundle is removed, though nothing can be written: a restart is closed."""
    state = StateDirectory(tmp_path)
    asyncio.run(state.save(memory(1), b"one"))
    if not fresh:
        state = StateDirectory(tmp_path)
        state.load()

    async def withdraw() -> None:  # the loop itself needs descriptors, and has them by now
        with monkeypatch.context() as patch:
            for name in ("open", "scandir"):
                patch.setattr(os, name, refusing(errno.EMFILE))
            await state.save(Memory("i-1", memory(1).marks, {}, None), None)

    with pytest.raises(HostError, match="too many open files"):
        asyncio.run(withdraw())

    assert StateDirectory(tmp_path).load() == (memory(1), None)


def test_the_closed_memory_closes_everything() -> None:
    """The memory to go on with after a broken one counts every cloud as decided by a bundle."""
    assert closed_memory("i-1").decided == dict.fromkeys(Cloud, OnExpiry.DENY)
    assert closed_memory("i-1").instance_id == "i-1"
    assert closed_memory("i-1").active is None


@pytest.mark.parametrize("name", ["memory", "bundle"])
def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    """A FIFO in place of a file, which would wait for a writer, is an unreadable memory or a bundle that is away."""
    save(tmp_path, memory(1), b"one")
    (path,) = tmp_path.glob(f"{name}*.js*" if name == "memory" else f"{name}-*")
    path.unlink()
    os.mkfifo(path)
    if name == "memory":
        with pytest.raises(HostError, match="cannot be read"):
            StateDirectory(tmp_path).load()
    else:
        assert StateDirectory(tmp_path).load() == (memory(1), None)
        save(tmp_path, memory(1), b"one")
        assert StateDirectory(tmp_path).load() == (memory(1), b"one")


def test_an_instant_without_a_zone(tmp_path: Path) -> None:
    """A memory whose instants cannot be compared with ours is one that cannot be read: closed, and no crash later."""
    issued = Memory("i-1", (Mark("i", "s", 1, "d", datetime(2026, 11, 24, tzinfo=UTC)),))
    save(tmp_path, issued, None)
    state = StateDirectory(tmp_path)
    assert state.load()[0] == issued
    path = tmp_path / "memory.json"
    path.write_bytes(path.read_bytes().replace(b'Z"', b'"'))
    with pytest.raises(HostError, match="UTC"):
        state.load()


@pytest.mark.parametrize("what", ["save", "note", "live"])
def test_where_there_is_no_thread_nothing_is_written_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It is an error as of a disk that refuses: who writes goes on, and so does the end of the agent."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "KEPT_THREADS", threads.Kept())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    state = StateDirectory(tmp_path)

    async def story() -> None:
        asyncio.get_running_loop().set_default_executor(threads.Threads())
        writes = {
            "save": lambda: state.save(memory(1), b"one"),
            "note": lambda: state.note(()),
            "live": lambda: state.live(Lived(at=START)),
        }
        with pytest.raises(HostError, match="cannot be written: resource temporarily unavailable"):
            await writes[what]()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(story())
    assert names(tmp_path) == set()


def test_a_history_of_no_zone_is_none(tmp_path: Path) -> None:
    """Its instants could not be compared with ours: the start would fail."""
    entry = '{{"at": "2030-01-01T00:00:00{}", "kind": "bundle", "about": "file", "said": "seq 1"}}'
    (tmp_path / "history.json").write_text(f"[{entry.format('Z')}]")
    assert [one.kind for one in StateDirectory(tmp_path).history()] == ["bundle"]
    (tmp_path / "history.json").write_text(f"[{entry.format('Z')}, {entry.format('')}]")
    assert StateDirectory(tmp_path).history() == ()


def test_a_spare_as_long_as_the_disk_holds_up_nobody(tmp_path: Path) -> None:
    """It is not filled up, and a short one takes its place."""
    save(tmp_path, memory(1), None)
    spare = tmp_path / SPARE_FILE
    os.truncate(spare, MAX_FILLED_BYTES + 1)
    for seq in (2, 3):
        save(tmp_path, memory(seq), None)
        assert StateDirectory(tmp_path).load()[0] == memory(seq)
        assert 0 < spare.stat().st_size < 1 << 20
