"""What no rule can mend is said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agent.host.surroundings import MOST_GROUPS, MOST_NAMED, Surroundings

SLICE = "credential.slice/workers.slice"


class World:
    def __init__(self, root: Path) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        self.looks = Surroundings(self.proc, self.cgroups)
        (self.proc / "sys/net/netfilter").mkdir(parents=True)
        self.connections(10, 1000)

    def connections(self, count: int, most: int) -> None:
        for name, value in (("count", count), ("max", most)):
            (self.proc / f"sys/net/netfilter/nf_conntrack_{name}").write_text(f"{value}\n")

    def process(self, pid: int, uid: int, group: str, *, name: bytes = b"x") -> None:
        (self.proc / str(pid)).mkdir()
        status = b"Name:\t%b\nUid:\t0\t%d\t%d\t%d\n" % (name, uid, uid, uid)
        (self.proc / str(pid) / "status").write_bytes(status)
        directory = self.cgroups / group
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "cgroup.procs").open("a") as file:
            file.write(f"{pid}\n")

    def notes(self, answer: str | None = "agent") -> list[str]:
        self.looks.look(groups=[SLICE], uids=[[500, 500], [1000, 60000]], answer=answer)
        return self.looks.notes


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_who_is_a_worker_by_its_slice_alone_is_named(world: World) -> None:
    """A system user's job could leave it; root's may do anything, and other workers are workers wherever they are."""
    for number, uid in enumerate((0, 500, 1000, 7)):
        world.process(100 + number, uid, f"{SLICE}/job-{number}.service")
    world.process(200, 8, "system.slice/other.service")
    (note,) = world.notes()
    assert "uid 7 " in note
    assert "redirect.users" in note


def test_a_process_that_ends_meanwhile_is_nobody(world: World) -> None:
    """Its number is still on the list."""
    world.process(100, 7, f"{SLICE}/job.service")
    (world.proc / "100/status").unlink()
    assert world.notes() == []


def test_a_group_that_goes_away_meanwhile_ends_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs end while they are looked at, and a worker may make and remove groups below its own all the time."""
    world.process(100, 7, f"{SLICE}/job.service")
    gone = world.cgroups / SLICE / "gone.scope"
    gone.mkdir()
    scandir = os.scandir

    def looked(path: Any = ".") -> Any:
        if os.fspath(path) == str(gone):
            raise FileNotFoundError(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", looked)
    (note,) = world.notes()
    assert "uid 7 " in note


def test_a_worker_with_many_groups_is_not_looked_at_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of them are opened than is allowed."""
    monkeypatch.setattr("agent.host.surroundings.MOST_GROUPS", 5)
    assert MOST_GROUPS > 5
    for number in range(10):
        world.process(100 + number, 1 + number, f"{SLICE}/job-{number}.service")
    assert len(world.notes()) == 4


def test_a_worker_that_is_many_users_is_told_in_few_words(world: World) -> None:
    """The state must stay readable for `status` and `wait`, which read 64 kB of it."""
    for uid in range(1, 400):
        world.process(1000 + uid, uid, f"{SLICE}/job.service")
    notes = world.notes()
    assert len(notes) == MOST_NAMED + 1
    assert f"{399 - MOST_NAMED} more" in notes[-1]


@pytest.mark.parametrize("name", [b"\xff", b"a\x0bUid:\t0\t0\t0", b"a\x1cUid:\t0\t0\t0"])
def test_a_process_hides_nobody_by_its_name(world: World, name: bytes) -> None:
    """It may call itself anything: bytes that are no text, or what looks like a line of its own."""
    world.process(100, 7, f"{SLICE}/job.service", name=name)
    (note,) = world.notes()
    assert "uid 7 " in note


def test_a_full_table_of_connections_is_said(world: World) -> None:
    """The probe times out then, which looks like an agent that hangs."""
    assert world.notes("timeout") == []
    world.connections(960, 1000)
    (note,) = world.notes("timeout")
    assert "960 of 1000" in note
    (world.proc / "sys/net/netfilter/nf_conntrack_max").unlink()  # a kernel that counts none
    assert world.notes("timeout") == []


def test_ports_that_are_all_taken_are_said(world: World) -> None:
    """Connecting fails in the kernel, before any rule."""
    (note,) = world.notes("failed: cannot assign requested address")
    assert "every port" in note
