"""Permissions, tried as those to whom they are given: a user in one of our groups, and a user in none.

Mode bits alone do not tell: there are access control lists, mounts, and directories on the way.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from msgspec.structs import replace

from agent import config
from agent.core.announced import FILE
from agent.core.installed import CONFIG_PATH, OPERATORS, OWNER, PROGRAM, SERVE_SOCKET, SERVICE_USER, WORKERS
from agent.doctor.facts import Access, Exposed, Inside, Way
from agent.doctor.probes.settings import settings_of
from agent.host import arrival

NOBODY: Final = 65534
_MODES: Final = {"read": os.R_OK, "connect to": os.W_OK, "run": os.R_OK | os.X_OK}


def look_at_access(path: Path, *, root: bool) -> Access:
    """Try each.

    Args:
        path: the configuration; defaults where it cannot be read.
        root: whether we are root, and so can become others. This process does.
    """
    settings = settings_of(path)
    ways = [_tried(way, root=root) for way in _ways(settings, installed=path == CONFIG_PATH)]
    known = path != CONFIG_PATH or _there(SERVICE_USER)  # whose else would everything be?
    exposed = _exposed(settings, path) if root and known else ()
    return Access(ways=tuple(way for way in ways if way is not None), exposed=tuple(exposed))


def look_inside(path: Path, pid: int, *, root: bool) -> Inside:
    """See the paths that the service needs as its process sees them: through its mounts (proc(5), ``/proc/PID/root``).

    Args:
        path: the configuration; defaults where it cannot be read.
        pid: of the process; 0: there is none.
        root: whether we are root, who alone may look there.
    """
    if not pid or not root:
        return Inside()
    settings = settings_of(path)
    around = Path(f"/proc/{pid}/root")
    written = [Path(settings.state.directory), Path(settings.environment.file).parent]
    read = [path, *(Path(entry.key) for entry in settings.signers)]
    read += [Path(entry.path) for entry in settings.keys if isinstance(entry, config.FileKey)]
    return Inside(
        read_only=tuple(str(one) for one in dict.fromkeys(written) if _read_only(around, one)),
        hidden=tuple(str(one) for one in dict.fromkeys(read) if _hidden(around, one)),
    )


def _read_only(around: Path, path: Path) -> bool:
    """Whether it is there, and not outside."""
    try:
        inside, outside = os.statvfs(_below(around, path)), os.statvfs(path)
    except OSError:
        return False
    return bool(inside.f_flag & os.ST_RDONLY) and not outside.f_flag & os.ST_RDONLY


def _hidden(around: Path, path: Path) -> bool:
    """Whether something else stands there, or in the place of a directory on the way (``InaccessiblePaths=``)."""
    for one in (*reversed(path.parents), path):
        try:
            outside = one.stat()
        except OSError:
            return False  # it is not there at all, which others tell
        try:
            inside = _below(around, one).stat()
        except OSError:
            return True
        if stat.S_IMODE(inside.st_mode) == 0 != stat.S_IMODE(outside.st_mode):
            return True
    return False


def _below(around: Path, path: Path) -> Path:
    return around / path.relative_to("/")


def _ways(settings: config.Config, *, installed: bool) -> Iterator[Way]:
    """What there is for others to use."""
    control, environment = Path(settings.listen.control), settings.environment
    if installed:
        yield Way(path=str(control.with_name(FILE)), act="read", wanted="0644")
        yield Way(path=str(arrival.STATE), act="read", wanted="0644")
        yield Way(path=str(PROGRAM), act="run", wanted="0755")
        yield Way(path=str(control), act="connect to", group=OPERATORS, wanted="0660")
        yield Way(path=str(SERVE_SOCKET), act="connect to", user=SERVICE_USER, wanted="0600")
    courier = config.courier_path(settings.listen)
    group = WORKERS if installed else environment.group
    if courier is not None and group:
        yield Way(path=str(courier), act="connect to", group=group, wanted="0660")
    if environment.group and int(environment.mode, 8) & stat.S_IRGRP:
        for file in (environment.file, environment.shell_file, environment.token_file, environment.container_file):
            if file:
                yield Way(path=file, act="read", group=environment.group, wanted=environment.mode)


def _tried(way: Way, *, root: bool) -> Way | None:
    """The way as it is; ``None``: this user cannot tell."""
    groups = []
    if way.group:
        try:
            groups = [grp.getgrnam(way.group).gr_gid]
        except KeyError:
            return None  # the configuration's check says so
    if not root:
        if way.user or (groups and groups[0] not in os.getgroups()):
            return None
        return _state(way)
    try:
        uid = pwd.getpwnam(way.user).pw_uid if way.user else NOBODY
    except KeyError:
        return None
    with _as(uid, groups):
        return _state(way)


@contextlib.contextmanager
def _as(uid: int, groups: list[int]) -> Iterator[None]:
    """Be that user, in these groups alone. (By the effective ids, since we come back.)."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(NOBODY)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


def _state(way: Way) -> Way:
    path = Path(os.path.realpath(way.path)) if os.path.lexists(way.path) else Path(way.path)
    for start in (Path(way.path), path):
        for directory in reversed(start.parents):
            if os.path.isdir(directory) and not os.access(directory, os.X_OK, effective_ids=True):  # noqa: PTH112 - raises nothing
                return replace(way, state="closed", blocked=str(directory))
    try:
        found = path.stat()
    except OSError:
        return replace(way, state="absent")
    if os.access(path, _MODES[way.act], effective_ids=True):
        return way
    if way.act == "run" and os.statvfs(path).f_flag & os.ST_NOEXEC:
        return replace(way, state="noexec")
    owner = f"{_user(found.st_uid)}:{_group(found.st_gid)}"
    return replace(way, path=str(path), state="denied", mode=f"{stat.S_IMODE(found.st_mode):04o}", owner=owner)


def _exposed(settings: config.Config, path: Path) -> Iterator[Exposed]:
    """What decides for every worker, or is the service's alone, and is open to others."""
    decides = [path.parent, path, *(Path(entry.key) for entry in settings.signers)]
    decides += [Path(entry.key).parent for entry in settings.signers]
    decides += [Path(entry.path) for entry in settings.keys if isinstance(entry, config.FileKey)]
    if path == CONFIG_PATH:
        decides += [PROGRAM, PROGRAM.parent, PROGRAM.parent.parent]
    if settings.upstream.ca_file is not None:
        decides.append(Path(settings.upstream.ca_file))
    for one in dict.fromkeys(decides):
        yield from _changed_by(one, "root")
    ours = [
        Path(settings.state.directory),
        Path(settings.listen.control).parent,
        Path(settings.environment.file).parent,
    ]
    for one in dict.fromkeys(ours):
        yield from _changed_by(one, OWNER)
    if path == CONFIG_PATH:
        with contextlib.suppress(OSError):
            if Path(settings.listen.control).stat().st_mode & stat.S_IWOTH:
                name = os.path.realpath(settings.listen.control)
                yield Exposed(path=name, act="ask", whom="every user", owner=f"root:{OPERATORS}", keep="o-rwx")
    mode = int(settings.environment.mode, 8)
    for file in (settings.environment.file, settings.environment.token_file):
        with contextlib.suppress(OSError):
            if Path(file).stat().st_mode & ~mode & stat.S_IROTH:
                group = settings.environment.group or SERVICE_USER
                yield Exposed(path=file, act="read", whom="every user", owner=f"{SERVICE_USER}:{group}", keep="o-rwx")


def _changed_by(path: Path, owner: str) -> Iterator[Exposed]:
    try:
        found = path.stat()
    except OSError:
        return
    act: Literal["change"] = "change"
    users, groups = _service()
    if found.st_uid not in users:
        yield Exposed(path=str(path), act=act, whom=f"user {_user(found.st_uid)}", owner=owner, keep="go-w")
    elif stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return  # as /tmp: others may add to it, and replace nothing that is not theirs
    elif found.st_mode & stat.S_IWOTH:
        yield Exposed(path=str(path), act=act, whom="every user", owner=owner, keep="go-w")
    elif found.st_mode & stat.S_IWGRP and found.st_gid not in groups:
        yield Exposed(path=str(path), act=act, whom=f"the group {_group(found.st_gid)}", owner=owner, keep="go-w")


def _service() -> tuple[set[int], set[int]]:
    """The users and groups who may change anything: root's and the service's."""
    try:
        entry = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return {0}, {0}  # not installed here: it is run by hand
    return {0, entry.pw_uid}, {0, entry.pw_gid}


def _there(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
