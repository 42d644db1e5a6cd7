"""What does a process use, and what ends it first? As the kernel counts it (proc(5))."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from agent.host.libc import libc

_PROC: Final = Path("/proc/self")
_SCORE: Final = _PROC / "oom_score_adj"
_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4


class Usage(msgspec.Struct, frozen=True):
    """The resources that one process uses.

    Attributes:
        resident_bytes: memory in RAM; 0 where the kernel does not say.
        cpu_seconds: of all its threads, in the kernel too.
        descriptors: open files and sockets; 0 where the kernel does not say.
    """

    resident_bytes: int
    cpu_seconds: float
    descriptors: int


def usage() -> Usage:
    """Of the process that calls. Costs some 50 microseconds, and waits for nothing: procfs is no disk."""
    resident = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        resident = int((_PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Usage(resident, time.process_time(), open_descriptors())


class Watched:
    """The same of a process whose figures are opened once: later it can open nothing, or is shown to nobody.

    Args:
        pid: of another process; ``None``: this one.

    Raises:
        OSError: the kernel does not show it.

    *Resources*: a descriptor, as long as this is there.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._file = (Path("/proc") / ("self" if pid is None else str(pid)) / "stat").open("rb", buffering=0)
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._tick = os.sysconf("SC_CLK_TCK")

    def usage(self) -> Usage:
        """What it uses now, but for the descriptors, which stand elsewhere; once it has ended, nothing."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            self._file.seek(0)
            fields = self._file.read(4096).rpartition(b")")[2].split()  # from the third on: the second may be anything
            cpu = (int(fields[11]) + int(fields[12])) / self._tick
            return Usage(int(fields[21]) * self._page, cpu, 0)
        return Usage(0, 0.0, 0)

    def close(self) -> None:
        """Look no more."""
        self._file.close()


def open_descriptors() -> int:
    """How many files and sockets this process has open; 0: the kernel does not say."""
    with contextlib.suppress(OSError):
        return len(os.listdir(_PROC / "fd")) - 1  # noqa: PTH208 - as many objects otherwise
    return 0


def give_up_precedence(least: int = 0) -> None:
    """Be ended as others are when memory runs out, if the service manager has spared us (``OOMScoreAdjust=``).

    What a stranger may have made grow must not be spared at others' cost. A score may be raised without a privilege.

    Args:
        least: the score to have, unless it is higher; 0: that of a process that nobody has given one (proc(5)).
    """
    zero = ctypes.c_ulong(0)
    with contextlib.suppress(OSError, ValueError):
        if int(_SCORE.read_text()) >= least:
            return
        # The files of an undumpable process are root's: it is a dumpable one for this moment.
        dumpable = libc().prctl(_PR_GET_DUMPABLE, zero, zero, zero, zero)
        libc().prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(1), zero, zero, zero)
        try:
            _SCORE.write_text(str(least))
        finally:
            libc().prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(max(0, dumpable)), zero, zero, zero)
