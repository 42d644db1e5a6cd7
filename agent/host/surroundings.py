"""What no rule mends, and an operator should know: what the machine lacks, and workers that may leave their slice."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from agent.host import cgroups, systemctl

LOOK_SECONDS: Final = 30.0
MOST_PROCESSES: Final = 2000
MOST_GROUPS: Final = 2000
#: So many users are named. A worker may be any number of them (subuid(5)), and who reads the state reads 64 kB of it.
MOST_NAMED: Final = 8
_PROC: Final = Path("/proc")
_FULL: Final = 0.95
_NO_PORT: Final = "failed: cannot assign requested address"


class Surroundings:
    """Looks now and then.

    Args:
        proc: where proc(5) is.
        cgroups: where the control groups are.

    Attributes:
        notes: what was found last, in words.
    """

    def __init__(self, proc: Path = _PROC, cgroups: Path = systemctl.UNIFIED) -> None:
        self._proc, self._cgroups = proc, cgroups
        self.notes: list[str] = []

    def look(self, *, groups: Iterable[str], uids: Sequence[Sequence[int]], answer: str | None) -> None:
        """Look at the machine.

        Args:
            groups: control groups whose processes are workers.
            uids: ranges of users who are, wherever they run.
            answer: to the last probe, see :func:`agent.host.arrival.ask`.
        """
        alone = [
            f"uid {user} is a worker in {group} alone: what it leaves to cron, at or a user manager is the "
            "machine; name it in redirect.users"
            for group in groups
            for user in sorted(self._users(group))
            if not any(low <= user <= high for low, high in uids)
        ]
        more = len(alone) - MOST_NAMED
        self.notes = [
            *([_NO_PORT_SAID] if answer == _NO_PORT else []),
            *self._full_table(),
            *alone[:MOST_NAMED],
            *([f"so are {more} more users, in a control group of workers alone"] if more > 0 else []),
        ]

    def _full_table(self) -> Iterable[str]:
        directory = self._proc / "sys/net/netfilter"
        try:
            now, most = (int((directory / f"nf_conntrack_{name}").read_text()) for name in ("count", "max"))
        except (OSError, ValueError):
            return
        if most and now >= most * _FULL:
            yield (
                f"the kernel's table of connections is full ({now} of {most}): new connections fail, workers' too; "
                "net.netfilter.nf_conntrack_max"
            )

    def _users(self, group: str) -> set[int]:
        """Users of processes in a control group and those below it, root left out: root may leave as it likes."""
        found: set[int] = set()
        left = MOST_PROCESSES
        root = self._cgroups / group
        for _, path in islice(cgroups.walk(root), MOST_GROUPS):
            with contextlib.suppress(OSError):
                for pid in Path(f"{root}{os.fsdecode(path)}/cgroup.procs").read_text().split()[:left]:
                    left -= 1
                    with contextlib.suppress(OSError, ValueError, StopIteration):
                        # A process may have any bytes in its name but a line feed: nothing else ends a line here.
                        lines = (self._proc / pid / "status").read_text(errors="replace").split("\n")
                        found.add(int(next(line for line in lines if line.startswith("Uid:")).split()[2]))
        return found - {0}


_NO_PORT_SAID: Final = (
    "every port that connections begin from is bound by somebody: nobody begins a connection, workers and the agent "
    "neither; ss -tanp, net.ipv4.ip_local_port_range"
)
