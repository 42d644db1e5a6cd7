"""Whose are subordinate uids? One user may have 65,536 of them (subuid(5)), and use any in a user namespace.

A count by uid would count such a user once for each, but it is one worker. Nobody but root writes the file.
"""

from __future__ import annotations

import errno
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from agent.core.errors import HostError
from agent.core.looks import Look, look_of
from agent.core.text import os_reason
from agent.host.files import read_at_most
from agent.host.ranges import MAX_UID, merge

FILE: Final = Path("/etc/subuid")
PASSWD: Final = Path("/etc/passwd")
MOST_BYTES: Final = 8 << 20
"""Some 250,000 lines."""
LOOK_AGAIN_SECONDS: Final = 10.0
_NONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
"""What a file is read with that gives nobody anything, to newuidmap(1) neither."""

Range = tuple[int, int]


def families(path: Path = FILE, uid_of: Callable[[str], int | None] | None = None) -> tuple[tuple[Range, ...], ...]:
    """For each user with subordinate uids, all ranges of that user, ascending and apart from everybody else's.

    Root's are left out: containers get those, one each. A uid that several users may take belongs to the first of them;
    a user's own uid is that user's whatever the file says. A user without a known uid has the subordinate ones only.

    Args:
        path: of subuid(5): ``NAME_OR_UID:FIRST:COUNT``. If it is not there, nobody has any.
        uid_of: gives the uid of a name; by default from ``/etc/passwd``: a directory (LDAP) may take minutes.

    Raises:
        HostError: it cannot be read.
    """
    by_user = _by_user(path, uid_of or LocalUsers())
    taken = sorted((uid, uid) for uid in by_user if isinstance(uid, int))
    result = []
    for user, wanted in by_user.items():
        ranges = [(user, user)] if isinstance(user, int) else []
        for each in wanted:
            free = _without(each, taken)
            ranges += free
            for one in free:
                insort(taken, one)
        if ranges:
            result.append(merge(ranges))
    return tuple(result)


def _by_user(path: Path, uid_of: Callable[[str], int | None]) -> dict[int | str, list[Range]]:
    """The ranges of each user but root: by uid, and where that is not known by name."""
    found: dict[str, list[Range]] = {}
    for line in _all_lines(path):
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if _is_number(first) and _is_number(count) and int(count):
            found.setdefault(name, []).append((int(first), min(int(first) + int(count) - 1, MAX_UID)))
    own = {name: int(name) if _is_number(name) else uid_of(name) for name in found}
    by_user: dict[int | str, list[Range]] = {}
    for name, wanted in found.items():  # one user may be there by name and by number
        uid = own[name]
        if uid != 0 and name != "root":
            by_user.setdefault(name if uid is None else uid, []).extend(wanted)
    return by_user


def with_subordinates(
    uids: Iterable[Range], path: Path = FILE, uid_of: Callable[[str], int | None] | None = None
) -> tuple[Range, ...]:
    """The uids, and those that a user who is one of them may become.

    A worker may become any of its subordinate uids (newuidmap(1); a rootless container on the host's network). Where a
    configuration names its own alone, the others would be the machine. Root is nobody's.

    Args:
        uids: ranges.
        path: see :func:`families`.
        uid_of: likewise.

    Raises:
        HostError: the file cannot be read.
    """
    found = merge(uids)
    owned = [(user, wanted) for user, wanted in _by_user(path, uid_of or LocalUsers()).items() if isinstance(user, int)]
    while True:
        more = [one for user, wanted in owned if _is_in(found, user) for one in wanted]
        grown = merge((*found, *((max(low, 1), high) for low, high in more if high)))
        if grown == found:
            return found
        found = grown


def unclear(path: Path = FILE, uid_of: Callable[[str], int | None] | None = None) -> tuple[Range, ...]:
    """The subordinate uids of users who are not found: whether those are workers is not known.

    Args:
        path: see :func:`families`.
        uid_of: likewise.

    Raises:
        HostError: the file cannot be read.
    """
    by_user = _by_user(path, uid_of or LocalUsers())
    ranges = (one for user, wanted in by_user.items() if isinstance(user, str) for one in wanted)
    return merge((max(low, 1), high) for low, high in ranges if high)


class Whose:
    """The uid that stands for a user: the first of the user's uids.

    Looks at the file again when it has changed, and not more often than each ten seconds.

    Args:
        path: see :func:`families`.
        clock: seconds that never go back.
    """

    def __init__(self, path: Path = FILE, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._seen: Look | None = None
        self._looked = float("-inf")
        self._firsts: list[int] = []
        self._ends: list[tuple[int, int]] = []  # the last of a range, and the uid that stands for its user

    def __call__(self, uid: int) -> int:
        """The uid that stands for the user of ``uid``."""
        if self._clock() - self._looked > LOOK_AGAIN_SECONDS:
            self._look()
        at = bisect_right(self._firsts, uid) - 1
        if at < 0:
            return uid
        last, owner = self._ends[at]
        return owner if uid <= last else uid

    def rows(self) -> tuple[tuple[int, int, int], ...]:
        """The first and last uid of each range, and the uid that stands for its user; ascending."""
        if self._clock() - self._looked > LOOK_AGAIN_SECONDS:
            self._look()
        return tuple((first, last, owner) for first, (last, owner) in zip(self._firsts, self._ends, strict=True))

    def _look(self) -> None:
        self._looked = self._clock()
        try:
            seen: Look | None = look_of(self._path.stat())
        except OSError:
            seen = None
        if seen == self._seen:
            return
        try:
            rows = sorted((low, high, ranges[0][0]) for ranges in families(self._path) for low, high in ranges)
        except HostError:
            return  # what was known stays, and it is looked at again
        self._seen = seen
        self._firsts = [low for low, _, _ in rows]
        self._ends = [(high, owner) for _, high, owner in rows]


class LocalUsers:
    """Uids of the users that are in ``/etc/passwd``."""

    def __init__(self, path: Path = PASSWD) -> None:
        rows = (line.split(":") for line in _lines(path))
        self._uids = {row[0]: int(row[2]) for row in rows if len(row) > 2 and _is_number(row[2])}

    def __call__(self, name: str) -> int | None:
        """The uid of a name; ``None``: it is not in the file."""
        return self._uids.get(name)

    def like(self, pattern: str) -> dict[str, int]:
        """The uids of all but root whose name a shell's pattern (fnmatch) matches."""
        return {name: uid for name, uid in self._uids.items() if uid and fnmatchcase(name, pattern)}


def _lines(path: Path) -> list[str]:
    try:
        return _all_lines(path)
    except HostError:
        return []


def _all_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            data = read_at_most(file, MOST_BYTES + 1)
    except OSError as error:
        if error.errno in _NONE:
            return []
        raise HostError(f"{path}: cannot be read: {os_reason(error)}") from None
    if len(data) > MOST_BYTES:
        raise HostError(f"{path}: expected at most {MOST_BYTES} bytes, got more")
    return data.decode(errors="replace").splitlines()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_UID


def _is_in(ranges: Sequence[Range], uid: int) -> bool:
    """Whether one of the ranges (ascending and apart) has it."""
    at = bisect_right(ranges, (uid, MAX_UID)) - 1
    return at >= 0 and uid <= ranges[at][1]


def _without(wanted: Range, taken: list[Range]) -> list[Range]:
    """The parts of a range that are in none of ``taken`` (ascending and apart)."""
    free, (low, high) = [], wanted
    # Of thousands a few are near: from the last that begins before it, to the first that begins behind it.
    for at in range(max(0, bisect_right(taken, (low, MAX_UID)) - 1), len(taken)):
        first, last = taken[at]
        if first > high:
            break
        if last < low:
            continue
        if first > low:
            free.append((low, first - 1))
        low = last + 1
    return [*free, (low, high)] if low <= high else free
