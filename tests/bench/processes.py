"""What a server's processes cost: all of them together, children included."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple

_SCHEDULED = 2
"""Of the clock of a process's CPU time (clock_getcpuclockid(3)): as the scheduler counts it."""


class Memory(NamedTuple):
    """In MB. ``uss``: private to the processes; ``pss``: shared pages too, each once; ``rss``: once for each process."""

    uss: float
    pss: float
    rss: float
    processes: int


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                stat = (directory / "stat").read_text()
            except OSError:
                continue  # it has ended meanwhile
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(directory.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def memory(pid: int) -> Memory:
    """Of a server now."""
    found = list(map(memory_of, family(pid)))
    return Memory(
        sum(one.uss for one in found), sum(one.pss for one in found), sum(one.rss for one in found), len(found)
    )


def memory_of(pid: int) -> Memory:
    """Of one process now."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {name: int(size) / 1024 for name, size in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    return Memory(sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Pss"], sizes["Rss"], 1)


def cpu_seconds(pid: int) -> float:
    """What its processes have used, to the nanosecond: also threads that have ended, whose time is nowhere else."""
    total = 0.0
    for one in family(pid):
        try:
            total += time.clock_gettime(~one << 3 | _SCHEDULED)
        except OSError:
            continue  # it has ended meanwhile
    return total
