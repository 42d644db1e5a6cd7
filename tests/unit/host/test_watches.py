"""The kernel tells of whatever may make a file look otherwise; where it might not, nobody waits for it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.core.looks import Look, look_of
from agent.host import watches
from agent.host.libc import libc
from agent.host.watches import Watches

LINE = "import ctypes; ctypes.CDLL(None).renameat2(-100, {0!r}.encode(), -100, {1!r}.encode(), 2)"


@pytest.fixture(autouse=True)
def _watched_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run on a file system that is not believed elsewhere; what they do themselves it tells."""
    monkeypatch.setattr(watches, "OURS", watches.OURS | {"overlay", "btrfs", "zfs"})


@pytest.fixture
def way(tmp_path: Path) -> Path:
    """A bundle behind two links, one in a directory and one itself."""
    for name in ("real", "other"):
        (tmp_path / name / "in").mkdir(parents=True)
        (tmp_path / name / "in" / "file").write_text(name)
    (tmp_path / "dir").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "in" / "bundle").symlink_to("../in/./file")
    (tmp_path / "other" / "in" / "bundle").symlink_to("file")
    return tmp_path / "dir" / "in" / "bundle"


@pytest.fixture
def watching() -> Iterator[Callable[..., Watches]]:
    """Begins to watch, and ends it. Nothing was told yet: others on this machine mount what they like, at any time."""
    begun: list[Watches] = []

    def begin(*paths: Path) -> Watches:
        while True:
            found = Watches.on(paths)
            if found is None:
                pytest.skip("this machine's kernel or file system does not tell")
            begun.append(found)
            if not found.wait(0):
                return found

    yield begin
    for one in begun:
        one.close()


def look(path: Path) -> Look | None:
    try:
        return look_of(path.stat())
    except OSError:
        return None


def _later(*, than: Path, by: Path) -> None:
    """Until a change has another time than the last one: before Linux 6.13 there is one in some milliseconds."""
    by.touch()
    while by.stat().st_ctime_ns <= than.stat().st_ctime_ns:
        by.touch()


def opened() -> Iterator[str]:
    """What this process has open."""
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield str(one.readlink())


def _replace_link(link: Path, target: str) -> None:
    (link.parent / "new").symlink_to(target)
    (link.parent / "new").replace(link)


def _exchange(one: Path, other: Path) -> None:
    subprocess.run([sys.executable, "-c", LINE.format(str(one), str(other))], check=True)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written in place": lambda top: (top / "real/in/file").write_text("more than before"),
    "cut": lambda top: os.truncate(top / "real/in/file", 1),
    "another mode": lambda top: (top / "real/in/file").chmod(0o640),
    "another time": lambda top: os.utime(top / "real/in/file", (1, 1)),
    "another name": lambda top: os.link(top / "real/in/file", top / "second"),
    "removed": lambda top: (top / "real/in/file").unlink(),
    "renamed": lambda top: (top / "real/in/file").rename(top / "real/in/away"),
    "renamed into place": lambda top: (top / "other/in/file").replace(top / "real/in/file"),
    "exchanged": lambda top: _exchange(top / "other/in/file", top / "real/in/file"),
    "the link removed": lambda top: (top / "real/in/bundle").unlink(),
    "the link elsewhere": lambda top: _replace_link(top / "real/in/bundle", str(top / "other/in/file")),
    "the directory's link elsewhere": lambda top: _replace_link(top / "dir", "other"),
    "the directory's link removed": lambda top: (top / "dir").unlink(),
    "the directories exchanged": lambda top: _exchange(top / "real", top / "other"),
    "the directory renamed": lambda top: (top / "real/in").rename(top / "real/out"),
    "a directory above renamed": lambda top: (top / "real").rename(top / "away"),
    "all removed": lambda top: shutil.rmtree(top / "real"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_makes_a_file_look_otherwise_is_told(
    tmp_path: Path, way: Path, watching: Callable[..., Watches], change: str
) -> None:
    """On each step of the way, by each call that can do it."""
    before = look(way)
    _later(than=way, by=tmp_path / "clock")
    told = watching(way)
    CHANGES[change](tmp_path)
    assert look(way) != before
    assert told.wait(0)


@pytest.mark.parametrize("absent", ["real/in/file", "real/in/bundle", "real/in", "dir", "real"])
def test_what_is_not_there_yet_is_told_when_it_comes(
    tmp_path: Path, way: Path, watching: Callable[..., Watches], absent: str
) -> None:
    """Also when a link leads to where nothing is, and a directory comes with all that is in it."""
    (tmp_path / absent).rename(tmp_path / "away")
    told = watching(way)
    assert look(way) is None
    (tmp_path / "away").rename(tmp_path / absent)
    assert look(way) is not None
    assert told.wait(0)


def test_a_directory_that_is_removed_while_somebody_has_it_open_is_told(
    way: Path, watching: Callable[..., Watches]
) -> None:
    """The kernel says so of the directory itself only once it is let go; another one has its name by then."""
    (way.parent / "file").unlink()
    way.unlink()
    told = watching(way)
    held = os.open(way.parent, os.O_RDONLY)
    try:
        way.parent.rmdir()
        assert told.wait(0)
    finally:
        os.close(held)


def test_what_happens_beside_it_is_not_told(tmp_path: Path, way: Path, watching: Callable[..., Watches]) -> None:
    """Other files of its directory, and of those above, are written, made and removed by others all the time."""

    def tells() -> bool:
        told = watching(way)
        for directory in (tmp_path, tmp_path / "real", tmp_path / "real" / "in"):
            (directory / "beside").write_text("text")
            (directory / "beside").chmod(0o600)
            (directory / "beside").rename(directory / "renamed")
            (directory / "renamed").unlink()
        return told.wait(0)

    assert not all(tells() for _ in range(20))  # others mount what they like


def test_too_much_beside_it_is_told(tmp_path: Path, way: Path, watching: Callable[..., Watches]) -> None:
    """Whoever is woken for nothing again and again had better look by himself."""
    told = watching(way)
    for number in range(watches.MOST_OTHERS + 1):
        (tmp_path / "real" / "in").joinpath(f"beside-{number}").touch(0o600)
        (tmp_path / "real" / "in").joinpath(f"beside-{number}").chmod(0o640)
        last = told.wait(0)
    assert last


def test_who_waits_is_woken(way: Path, watching: Callable[..., Watches]) -> None:
    """From another thread, at any time, also after the end."""
    told = watching(way)
    assert {"anon_inode:inotify"} <= set(opened())
    told.wake()
    assert told.wait(0)
    told.close()
    told.wake()


def test_where_another_machine_may_write_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that is not known to be this kernel's alone must be looked at."""
    monkeypatch.setattr(watches, "OURS", frozenset())
    assert Watches.on([tmp_path / "bundle"]) is None
    assert Watches.on([Path("/proc/self/status")]) is None


@pytest.mark.parametrize("refused", ["inotify_init1", "inotify_add_watch"])
def test_a_kernel_without_room_for_watches_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """It is looked for then, and each attempt gives back what it had."""
    real = libc()

    class Libc:
        def __getattr__(self, name: str) -> object:
            return (lambda *_: -1) if name == refused else getattr(real, name)

    def ours() -> int:
        return sum(name.endswith(("inotify", "/mountinfo")) for name in opened())

    monkeypatch.setattr(watches, "libc", Libc)
    before = ours()  # a thread of a test before this one may be about to close its own
    assert Watches.on([tmp_path / "bundle"]) is None
    assert ours() <= before


def test_links_without_end_are_not_followed(tmp_path: Path) -> None:
    """As the kernel gives up, so do we."""
    (tmp_path / "round").symlink_to("round")
    assert Watches.on([tmp_path / "round"]) is None
    with pytest.raises(OSError) as caught:
        (tmp_path / "round").stat()
    assert caught.value.errno == errno.ELOOP


MOUNTS = """
import os, pathlib, subprocess, sys
from agent.host import watches
watches.OURS |= {"overlay", "btrfs", "zfs"}
path = pathlib.Path(sys.argv[1]) / "in" / "bundle"
told = watches.Watches.on([path])
assert told is None or not told.wait(0)
subprocess.run(["mount", "-t", "tmpfs", "none", sys.argv[1]], check=True)
assert told is None or told.wait(0)
"""


MOUNTED_MEANWHILE = """
import os, pathlib, subprocess, sys
from agent.host import watches
watches.OURS |= {"overlay", "btrfs", "zfs"}
path = pathlib.Path(sys.argv[1]) / "in" / "bundle"
watch = watches._watch
def mounted(*args):
    watch(*args)
    subprocess.run(["mount", "-t", "tmpfs", "none", sys.argv[1]], check=True)
watches._watch = mounted
told = watches.Watches.on([path])
assert told is None or told.wait(0)
"""


@pytest.mark.parametrize("program", [MOUNTS, MOUNTED_MEANWHILE], ids=["later", "meanwhile"])
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounts need root and unshare")
def test_what_is_mounted_over_it_is_told(tmp_path: Path, way: Path, program: str) -> None:
    """Inotify does not tell of that; the kernel's table of mounts does, also of what comes while we begin."""
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", program, str(tmp_path / "real")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "unshare" in done.stderr:
        pytest.skip(f"this machine makes no mount namespace: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert way.exists()
