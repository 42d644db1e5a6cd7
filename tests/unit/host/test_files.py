"""Writing a file so that every reader, at every instant and after every crash, sees the old or the new one, whole."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.core.errors import HostError
from agent.core.verdict import Memory
from agent.host import subuid
from agent.host.files import overwrite, read_plain, sweep, take_away, write_atomic
from agent.host.state import StateDirectory

STEPS = ("open", "fchmod", "fsync", "close", "replace")


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def break_step(monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    """Let the system call ``step`` fail with ``error``; ``open`` only for writing."""
    if step == "replace":

        def replace(self: Path, target: Path) -> None:
            raise error

        monkeypatch.setattr(Path, "replace", replace)
        return
    real = getattr(os, step)

    def broken(*args: Any, **kwargs: Any) -> Any:
        if step == "open" and not args[1] & os.O_CREAT:
            return real(*args, **kwargs)
        if step == "close":
            real(*args, **kwargs)
        raise error

    monkeypatch.setattr(os, step, broken)


def test_it_writes_content_and_mode(tmp_path: Path) -> None:
    """The file has the whole content and exactly the mode, whatever the umask."""
    mask = os.umask(0o077)
    try:
        write_atomic(tmp_path / "f", b"content", mode=0o644)
    finally:
        os.umask(mask)

    assert (tmp_path / "f").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644
    assert names(tmp_path) == {"f"}


def test_the_mode_is_there_before_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no instant can someone open a file whose content is there and whose mode is not: it begins at 0600."""
    seen: list[tuple[int, int]] = []
    real = os.fchmod

    def fchmod(descriptor: int, mode: int) -> None:
        before = os.fstat(descriptor)
        seen.append((stat.S_IMODE(before.st_mode), before.st_size))
        real(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", fchmod)
    write_atomic(tmp_path / "f", b"secret", mode=0o640)

    assert seen == [(0o600, 0)]


def test_the_group_is_there_before_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group is given while the file is still empty and closed to it."""
    seen: list[tuple[int, int, int]] = []

    def fchown(descriptor: int, uid: int, gid: int) -> None:
        status = os.fstat(descriptor)
        seen.append((uid, gid, status.st_size))
        assert stat.S_IMODE(status.st_mode) == 0o600

    monkeypatch.setattr(os, "fchown", fchown)
    write_atomic(tmp_path / "f", b"secret", mode=0o640, gid=12345)

    assert seen == [(-1, 12345, 0)]


def test_a_symbolic_link_is_replaced_not_followed(tmp_path: Path) -> None:
    """A link laid at the path leads our content nowhere: the link goes, its target stays as it was."""
    target = tmp_path / "victim"
    target.write_bytes(b"untouched")
    (tmp_path / "f").symlink_to(target)
    write_atomic(tmp_path / "f", b"secret", mode=0o600)

    assert target.read_bytes() == b"untouched"
    assert not (tmp_path / "f").is_symlink()
    assert (tmp_path / "f").read_bytes() == b"secret"


def test_a_directory_in_the_way_is_an_error(tmp_path: Path) -> None:
    """Where a directory stands nothing is written, and nothing is left behind."""
    (tmp_path / "f").mkdir()
    with pytest.raises(HostError, match="cannot be written: is a directory"):
        write_atomic(tmp_path / "f", b"x", mode=0o600)

    assert names(tmp_path) == {"f"}


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    """A directory that is not there is named in one line."""
    with pytest.raises(HostError, match="no such file or directory"):
        write_atomic(tmp_path / "none" / "f", b"x", mode=0o600)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_is_not_ours_is_an_error(tmp_path: Path) -> None:
    """Where we may not write, what was there stays."""
    (tmp_path / "f").write_bytes(b"old")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(HostError, match="permission denied"):
            write_atomic(tmp_path / "f", b"new", mode=0o600)
    finally:
        tmp_path.chmod(0o700)

    assert (tmp_path / "f").read_bytes() == b"old"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [*map(OSError, (errno.ENOSPC, errno.EIO, errno.EROFS), ["no"] * 3), MemoryError()])
def test_an_error_at_any_step_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    """Whichever system call fails, or for want of memory, the old content stays whole, and nothing is beside it."""
    (tmp_path / "f").write_bytes(b"old")
    with monkeypatch.context() as patch:
        break_step(patch, step, error)
        with pytest.raises(HostError, match="cannot be written") as raised:
            write_atomic(tmp_path / "f", b"s3cret", mode=0o600)

    assert (tmp_path / "f").read_bytes() == b"old"
    assert names(tmp_path) == {"f"}
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupt_at_any_step_leaves_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Ctrl-C is the caller's; the old content stays whole, and no part of the new one lies about."""
    (tmp_path / "f").write_bytes(b"old")
    with monkeypatch.context() as patch:
        break_step(patch, step, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            write_atomic(tmp_path / "f", b"s3cret", mode=0o600)

    assert (tmp_path / "f").read_bytes() == b"old"
    assert names(tmp_path) == {"f"}


class Crash(BaseException):
    """The power went."""


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A process that dies at any step leaves the old content, and what it left beside it is swept at the next start."""
    (tmp_path / "f").write_bytes(b"old")
    with monkeypatch.context() as patch:
        break_step(patch, step, Crash())
        patch.setattr(Path, "unlink", lambda _: None)  # whoever is dead cleans nothing up
        with pytest.raises(Crash):
            write_atomic(tmp_path / "f", b"new", mode=0o600)
    assert (tmp_path / "f").read_bytes() == b"old"

    sweep(tmp_path / "f")
    assert names(tmp_path) == {"f"}
    write_atomic(tmp_path / "f", b"new", mode=0o600)
    assert (tmp_path / "f").read_bytes() == b"new"


def test_nothing_counts_as_written_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content goes to the disk before the file gets its name, the name after that; so does what is written in place."""
    done: list[object] = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        there = os.fstat(descriptor)
        done.append("directory" if stat.S_ISDIR(there.st_mode) else there.st_size)
        sync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        done.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_atomic(tmp_path / "f", b"four", mode=0o600)
    assert done == [4, "name", "directory"]

    def synced_in_place(descriptor: int) -> None:
        done.append((tmp_path / "f").read_bytes())
        sync(descriptor)

    done.clear()
    monkeypatch.setattr(os, "fsync", synced_in_place)
    assert overwrite(tmp_path / "f", b"two", mode=0o600)
    assert done == [b"two\n"]


@pytest.mark.parametrize(
    ("number", "holds"),
    [(errno.EIO, False), (errno.ENOSPC, False), (errno.ESTALE, False), (errno.EINVAL, True), (errno.EOPNOTSUPP, True)],
)
def test_a_name_that_is_not_on_the_disk_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, holds: bool
) -> None:
    """Whoever writes is told so, unless the file system can sync no directory at all."""
    sync = os.fsync

    def fails(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    with contextlib.nullcontext() if holds else pytest.raises(HostError, match="cannot be synced"):
        write_atomic(tmp_path / "f", b"new", mode=0o600)
    assert names(tmp_path) == {"f"}
    state = StateDirectory(tmp_path)
    for _ in range(2):  # with a spare, and without
        with contextlib.nullcontext() if holds else pytest.raises(HostError, match="cannot be synced"):
            asyncio.run(state.save(Memory(), None))
        monkeypatch.setattr(os, "fsync", sync)
        asyncio.run(state.save(Memory(), None))
        monkeypatch.setattr(os, "fsync", fails)


def test_a_short_file_takes_no_memory_for_a_long_one(tmp_path: Path) -> None:
    """However long it may be: with strict overcommit even a start may have no more than it needs."""
    (tmp_path / "f").write_bytes(b"x" * 200_000)
    tracemalloc.start()
    try:
        assert len(read_plain(tmp_path / "f", 64 << 20)) == 200_000
        assert subuid.families(tmp_path / "f") == ()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert read_plain(tmp_path / "f", 100_000) == b"x" * 100_000


def test_sweeping_takes_only_what_is_ours(tmp_path: Path) -> None:
    """The sweep removes our temporary files and no other file, hidden or not."""
    left = [".f.0123456789ab", ".f.aaaaaaaaaaaa"]
    others = ["f", ".f", ".f.swp", ".g.0123456789ab", "f.0123456789ab", ".f.0123456789AB", ".f.0123456789abc"]
    for name in left + others:
        (tmp_path / name).touch()
    sweep(tmp_path / "f")

    assert names(tmp_path) == set(others)
    sweep(tmp_path / "none" / "f")


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts a small tmpfs")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """On a full disk the old content stays, the error says so, and no half file takes the last room."""
    with small_disk(tmp_path):
        write_atomic(tmp_path / "f", b"old", mode=0o600)
        with pytest.raises(HostError, match="no space left on device"):
            write_atomic(tmp_path / "f", b"x" * 200_000, mode=0o600)

        assert (tmp_path / "f").read_bytes() == b"old"
        assert names(tmp_path) == {"f"}
        write_atomic(tmp_path / "f", b"new", mode=0o600)
        assert (tmp_path / "f").read_bytes() == b"new"


def test_readers_see_whole_files_only(tmp_path: Path) -> None:
    """A reader that reads all the time while the file is replaced a hundred times sees no half and no gap."""
    path = tmp_path / "f"
    contents = [bytes([65 + number % 26]) * 50_000 for number in range(100)]
    write_atomic(path, contents[0], mode=0o600)
    done = threading.Event()
    begun = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())
            begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(20)
    for content in contents:
        write_atomic(path, content, mode=0o600)
    done.set()
    reader.join()

    assert seen <= set(contents)


def test_what_is_no_plain_file_has_no_lines_to_take_away(tmp_path: Path) -> None:
    """A pipe in the place of an environment file is not waited for, and stays whoever's it is."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    taking = threading.Thread(target=take_away, args=(pipe, b"A=1\n"), kwargs={"mode": 0o600}, daemon=True)
    taking.start()
    taking.join(60)
    waits = taking.is_alive()
    os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))  # whoever waits goes on
    assert not waits
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("there", "wanted", "linked", "left"),
    [
        (b"A=1\nB=2\nC=3\n", b"A=1\nC=3\n", False, {b"A=1", b"C=3"}),
        (b"A=1\nB=2\n", b"", False, set()),
        (b"A=1\nB=2\n", b"A=1\nD=a line that the file has no room for\n", False, {b"A=1"}),
        (b"A=1\nB=2\n", b"A=1\n", True, None),  # it is no file of ours alone: not written, and so removed
        (b"A=1\n", b"A=1\nB=2\n", True, {b"A=1"}),  # nothing is to go
    ],
)
def test_what_is_withdrawn_goes_though_nothing_can_be_added(
    tmp_path: Path, there: bytes, wanted: bytes, *, linked: bool, left: set[bytes] | None
) -> None:
    """Of the lines in a file those go that are not wanted; none comes that does not fit; else the file goes."""
    path = tmp_path / "env"
    path.write_bytes(there)
    if linked:
        (tmp_path / "other").hardlink_to(path)
    take_away(path, wanted, mode=0o600)
    assert (set(path.read_bytes().split()) if path.exists() else None) == left
