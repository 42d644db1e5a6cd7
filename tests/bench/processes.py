"""What a server's processes cost: all of them together, children included."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


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
    private = proportional = resident = 0
    pids = family(pid)
    for one in pids:
        text = Path(f"/proc/{one}/smaps_rollup").read_text()
        sizes = {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
        private += sizes["Private_Clean"] + sizes["Private_Dirty"]
        proportional += sizes["Pss"]
        resident += sizes["Rss"]
    return Memory(private / 1024, proportional / 1024, resident / 1024, len(pids))


def cpu_seconds(pid: int) -> float:
    """What its threads that live have used, to the nanosecond where the kernel says it."""
    total = 0.0
    for one in family(pid):
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0]) / 1e9
        except OSError:
            continue
    return total
