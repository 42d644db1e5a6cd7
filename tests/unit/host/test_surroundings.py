"""What no rule can mend is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.host.surroundings import Surroundings

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

    def process(self, pid: int, uid: int, group: str) -> None:
        (self.proc / str(pid)).mkdir()
        (self.proc / str(pid) / "status").write_text(f"Name:\tx\nUid:\t0\t{uid}\t{uid}\t{uid}\n")
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
