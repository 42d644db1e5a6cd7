"""Control groups have names by their ids, on the real hierarchy and on one of a worker's making."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from agent.host import cgroups
from agent.host.sockdiag import SocketDiagnosis


def test_a_group_is_found_by_the_inode_of_its_directory(tmp_path: Path) -> None:
    """Its path below the root; what is not there is not named, and what is no text does no harm."""
    (tmp_path / "cgroup.controllers").touch()
    inner = tmp_path / "a.slice" / "b.service"
    inner.mkdir(parents=True)
    strange = inner / os.fsdecode(b"\xff")
    strange.mkdir()
    ids = {inner.stat().st_ino: "/a.slice/b.service", strange.stat().st_ino: "/a.slice/b.service/\udcff"}
    assert cgroups.names({*ids, 1 << 60}, tmp_path) == {**ids, 1 << 60: None}
    assert cgroups.names({tmp_path.stat().st_ino}, tmp_path) == {tmp_path.stat().st_ino: "/"}
    assert cgroups.names({1}, tmp_path / "nowhere") == {}
    (inner / "again").symlink_to(tmp_path)
    assert [path for _, path in cgroups.walk(inner)] == [b"", b"/\xff"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOENT])
def test_what_cannot_be_looked_into_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """For want of a descriptor, or of a right, a group may be there; only what was looked at everywhere is gone."""
    (tmp_path / "cgroup.controllers").touch()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    ids, look = {(tmp_path / name).stat().st_ino: f"/{name}" for name in ("a", "b")}, os.scandir

    def scandir(path: bytes) -> object:
        if path.endswith(b"/a"):
            raise OSError(number, os.strerror(number))
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)
    gone = {1 << 60: None} if number == errno.ENOENT else {}
    assert cgroups.names({*ids, 1 << 60}, tmp_path) == {**ids, **gone}


def test_beside_version_1_it_is_in_unified(tmp_path: Path) -> None:
    """Where the root has controllers of version 1, the one hierarchy of version 2 is below it."""
    group = tmp_path / "unified" / "x.scope"
    group.mkdir(parents=True)
    assert cgroups.names({group.stat().st_ino}, tmp_path) == {group.stat().st_ino: "/x.scope"}


def test_a_worker_that_makes_groups_bounds_the_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more are looked at than a bound, and those near the root first."""
    (tmp_path / "cgroup.controllers").touch()
    monkeypatch.setattr(cgroups, "MOST", 4)
    near = tmp_path / "near"
    near.mkdir()
    for number in range(20):
        (near / f"{number}").mkdir()
    assert cgroups.names({near.stat().st_ino}, tmp_path) == {near.stat().st_ino: "/near"}
    last = [one for one in near.iterdir()][-1]  # noqa: C416 - as the directory gives them
    assert cgroups.names({last.stat().st_ino}, tmp_path) == {}


def test_the_kernel_tells_the_group_of_a_socket() -> None:
    """Of a process here: the group that the kernel itself says it is in."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        closing(SocketDiagnosis()) as asked,
    ):
        connection, peer = server.accept()
        with connection:
            holder = asked.holder(peer, client.getpeername())
    assert holder is not None
    assert holder.user == os.getuid()
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    named = cgroups.names({holder.cgroup})
    assert named.get(holder.cgroup, line[3:]) == line[3:]
    assert holder.cgroup > 0
