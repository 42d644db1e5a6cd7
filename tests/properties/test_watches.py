"""Whatever is done to files, links and directories in whatever order: what looks otherwise was told."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.looks import Look, look_of
from agent.host import watches
from agent.host.watches import Watches

_EXCHANGE = 2  # renameat2(2)
NAMES = ("a", "b", "file")
PLACES = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(lambda parts: Path(*parts))
PATHS = st.sampled_from(("a/file", "a/b/file", "b/file", "file/file", "b/a/file")).map(Path)
TARGETS = st.sampled_from((".", "..", "a", "b", "file", "../a", "../b/file", "a/../b"))


def _exchange(one: Path, other: Path) -> None:
    ctypes.CDLL(None).renameat2(-100, os.fsencode(one), -100, os.fsencode(other), _EXCHANGE)


def _add(path: Path) -> None:
    with path.open("a") as file:
        file.write("more")


ONE: dict[str, Callable[[Path], object]] = {
    "mkdir": Path.mkdir,
    "rmdir": Path.rmdir,
    "unlink": Path.unlink,
    "write": lambda path: path.write_text("text"),
    "add": _add,
    "chmod": lambda path: path.chmod(0o700),
    "utime": lambda path: os.utime(path, (1, 1)),
}
TWO: dict[str, Callable[[Path, Path], object]] = {
    "rename": os.rename,
    "link": lambda one, other: os.link(one, other, follow_symlinks=False),
    "exchange": _exchange,
}
STEPS = st.one_of(
    st.tuples(st.sampled_from(sorted(ONE)), PLACES, st.none()),
    st.tuples(st.sampled_from(sorted(TWO)), PLACES, PLACES),
    st.tuples(st.just("symlink"), PLACES, TARGETS),
)
Step = tuple[str, Path, Path | str | None]


def _do(top: Path, step: Step) -> None:
    name, one, other = step
    try:
        if name == "symlink":
            (top / one).symlink_to(str(other))
        elif other is None:
            ONE[name](top / one)
        else:
            TWO[name](top / one, top / other)
    except OSError:
        return  # it cannot be done to what is there


def _look(path: Path) -> Look | str | None:
    """Of a directory only that it is one: what is in it is not looked at."""
    try:
        return "directory" if path.is_dir() else look_of(path.stat())
    except OSError:
        return None


@settings(deadline=None)
@given(before=st.lists(STEPS, max_size=3), path=PATHS, after=st.lists(STEPS, min_size=1, max_size=6))
def test_what_looks_otherwise_was_told(before: list[Step], path: Path, after: list[Step]) -> None:
    """After each step from when it was watched on: either nothing looks otherwise, or it was told."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(watches, "OURS", watches.OURS | {"overlay", "btrfs", "zfs"})
        top = Path(name)
        for directory in ("a", "a/b", "b"):
            (top / directory).mkdir()
            (top / directory / "file").write_text(directory)
        (top / "file").symlink_to("a/b")
        for step in before:
            _do(top, step)
        told = Watches.on([top / path])
        if told is None:
            return  # links that lead round, or a file system that does not tell: it must be looked at
        try:
            seen = _look(top / path)
            for step in after:
                _do(top, step)
                if told.wait(0):
                    return
                assert _look(top / path) == seen
        finally:
            told.close()
