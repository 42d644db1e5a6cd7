"""A file that lines are added to: bounded, whole lines, and nobody else's."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from agent.core.errors import HostError
from agent.host.rotated import KEPT, append

LINE = b"x" * 99 + b"\n"


def write(path: Path, data: bytes = LINE, **how: int) -> None:
    append(path, data, **{"most_bytes": 1000, "mode": 0o600, **how})


def test_it_never_grows_beyond_its_bound_and_keeps_a_few_old_ones(tmp_path: Path) -> None:
    """The newest lines are in it, those before in NAME.1 and so on; what is older than those goes; no line is cut."""
    path = tmp_path / "audit"
    for number in range(200):
        write(path, f"{number:099}\n".encode())
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == sorted(["audit", *(f"audit.{number}" for number in range(1, KEPT + 1))])
    assert all(one.stat().st_size <= 1000 for one in tmp_path.iterdir())
    ordered = [tmp_path / name for name in (*(f"audit.{n}" for n in range(KEPT, 0, -1)), "audit")]
    numbers = [int(line) for one in ordered for line in one.read_text().splitlines()]
    assert numbers == list(range(200 - len(numbers), 200))


def test_what_is_larger_than_the_bound_is_written_whole(tmp_path: Path) -> None:
    """A single piece above the bound is no reason to lose it."""
    path = tmp_path / "audit"
    write(path)
    write(path, LINE * 20)
    assert path.read_bytes() == LINE * 20
    assert (tmp_path / "audit.1").read_bytes() == LINE


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file to another group")
def test_its_group_is_what_is_asked_whatever_there_was(tmp_path: Path) -> None:
    """Of the older files too, though their mode is right; without a group each keeps its own."""
    path, older = tmp_path / "audit", tmp_path / "audit.1"
    for file, gid in ((path, 65534), (older, 65533)):
        file.touch()
        file.chmod(0o640)
        os.chown(file, -1, gid)
    write(path, mode=0o640)
    assert [file.stat().st_gid for file in (path, older)] == [65534, 65533]
    for gid in (65532, 65532, 0):
        write(path, mode=0o640, gid=gid)
        assert [file.stat().st_gid for file in (path, older)] == [gid, gid]


def test_its_mode_is_what_is_asked_whatever_there_was(tmp_path: Path) -> None:
    """A file that was readable to all is not, from the next line on."""
    path = tmp_path / "audit"
    path.touch(mode=0o644)
    write(path, mode=0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_the_older_files_have_the_mode_that_is_asked_now(tmp_path: Path) -> None:
    """A reload takes the group's right away: what it could read of the last days goes with it. Links are let be."""
    path, other = tmp_path / "audit", tmp_path / "other"
    other.touch()
    other.chmod(0o644)
    for _ in range(25):
        write(path, mode=0o640)
    (tmp_path / f"audit.{KEPT}").symlink_to(other)
    write(path, mode=0o600)
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir() if not one.is_symlink()}
    assert modes == {"audit": 0o600, "audit.1": 0o600, "audit.2": 0o600, "other": 0o644}


@pytest.mark.parametrize("trap", ["link", "hard link", "fifo", "directory"])
def test_nobody_leads_it_to_another_file(tmp_path: Path, trap: str) -> None:
    """A link, a second name or a pipe at its place takes no line, and is not changed."""
    path, other = tmp_path / "audit", tmp_path / "other"
    other.write_bytes(b"mine")
    other.chmod(0o644)
    match trap:
        case "link":
            path.symlink_to(other)
        case "hard link":
            os.link(other, path)
        case "fifo":
            os.mkfifo(path)
        case _:
            path.mkdir()
    with pytest.raises(HostError, match=r"audit: (cannot be written|expected a plain file)"):
        write(path)
    assert other.read_bytes() == b"mine"
    assert stat.S_IMODE(other.stat().st_mode) == 0o644


def test_a_disk_that_fills_up_cuts_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written in part is taken back: the next try neither follows half a line nor repeats whole ones."""
    path, real, left = tmp_path / "audit", os.write, [150]
    write(path)

    def full(descriptor: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(len(data), left[0])
        left[0] -= taken
        return real(descriptor, data[:taken])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(HostError, match="no space"):
            write(path, LINE * 3)
    assert path.read_bytes() == LINE
    write(path, LINE * 3)
    assert path.read_bytes() == LINE * 4
