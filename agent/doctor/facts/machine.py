"""Facts of the machine: disks, memory, the clock, the releases that are installed."""

from __future__ import annotations

import msgspec


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A directory that the service writes to, as the service sees it.

    Attributes:
        key: of the configuration that names it.
        there: whether it is. ``may_write``: whether the service may. ``read_only``: its file system is.
        free_bytes, free_files: what is left for the service; ``free_files`` of -1: the file system does not count them.
        owner: the name or number of its owner.
    """

    key: str
    path: str
    there: bool = True
    may_write: bool = True
    read_only: bool = False
    free_bytes: int = 1 << 40
    free_files: int = -1
    owner: str = ""


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Every directory that the service writes to."""

    places: tuple[Place, ...] = ()


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory, in bytes.

    Attributes:
        total, available: of the machine (proc(5), ``MemAvailable``).
        used, limit: of the service's control group; 0: not known, or no limit.
        killed: how often the kernel ended a process of that group for want of memory.
        waiting: the share of the last ten seconds, in per cent, in which somebody waited for a processor (PSI).
        pressure: the share of the last ten seconds, in per cent, in which everything waited for memory (PSI).
    """

    total: int = 0
    available: int = 0
    used: int = 0
    limit: int = 0
    killed: int = 0
    waiting: float = 0.0
    pressure: float = 0.0


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """The clock. ``synchronised``: whether the kernel says that it is kept right."""

    synchronised: bool


class Releases(msgspec.Struct, frozen=True, kw_only=True):
    """What is installed and what runs.

    Attributes:
        ours: the version of this program.
        missing: packages that this program stands on, and that are not there.
        installed: the release that a start would run. ``running``: that of the daemon's process. Empty: not known.
    """

    ours: str
    installed: str = ""
    running: str = ""
    missing: tuple[str, ...] = ()
