"""Short time slices are asked for where the kernel knows of them, and nothing else of how a process runs changes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from agent.host import slices
from tests.system.harness import REPOSITORY

KNOWN = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 12)
"""Whether this kernel gives slices of their own (sched(7))."""

_ASKED = """
import os
from agent.host import slices
os.nice({nice})
before = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
asked = slices.ask_for_short()
after = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
child = os.fork()
if not child:
    os._exit(round(slices.slice_seconds() * 1e6))
print(before == after, asked, round(slices.slice_seconds() * 1e6), os.waitstatus_to_exitcode(os.wait()[1]))
"""


def _asked(*through: str, nice: int = 0) -> list[str]:
    argv = [*through, sys.executable, "-c", _ASKED.format(nice=nice)]
    done = subprocess.run(argv, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.split()


@pytest.mark.skipif(not KNOWN, reason="the kernel has slices of its own only since 6.12")
@pytest.mark.parametrize("nice", [0, 7])
def test_a_process_and_its_children_have_them(nice: int) -> None:
    """Policy and nice value, which say how much time it gets, stay as they are."""
    assert _asked(nice=nice) == ["True", "True", "100", "100"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be given another policy")
def test_whoever_runs_by_another_policy_keeps_it() -> None:
    """An operator may have given it real time, or only what nobody else wants: that is not undone."""
    assert _asked("chrt", "--idle", "0")[:3] == ["True", "False", "0"]


def test_where_there_are_none_all_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose numbers are not known, and a process that does not exist, have none, and nothing is raised."""
    assert slices.slice_seconds(0x7FFFFFFF) == 0
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert not slices.ask_for_short()
    assert slices.slice_seconds() == 0
