"""How a file looks from outside: what differs after it was written, replaced or renamed into place."""

from __future__ import annotations

from typing import Protocol


class Status(Protocol):
    """The part of ``os.stat_result`` that is looked at."""

    @property
    def st_dev(self) -> int: ...  # noqa: D102
    @property
    def st_ino(self) -> int: ...  # noqa: D102
    @property
    def st_size(self) -> int: ...  # noqa: D102
    @property
    def st_mtime_ns(self) -> int: ...  # noqa: D102
    @property
    def st_ctime_ns(self) -> int: ...  # noqa: D102


Look = tuple[int, int, int, int, int]
"""Device, inode, size, time of writing, time of any change. Nobody can set the last: another content of the same size
shows, whatever its time of writing says."""


def look_of(status: Status) -> Look:
    """The look that stat(2) took."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def last_change(look: Look) -> float:
    """When it was last written or changed in any way, in seconds since 1970 by the clock of its file system."""
    return max(look[3:]) / 1e9
