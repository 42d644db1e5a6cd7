"""The machine: directories as the service sees them, memory, the clock, the releases."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import agent
from agent import config
from agent.doctor.facts import Clock, Memory, Place, Places, Releases
from agent.host import clock

CURRENT: Final = Path("/opt/credential-agent/current")
_NEEDED: Final = (
    "aiohttp",
    "boto3",
    "botocore",
    "cryptography",
    "google.auth",
    "msgspec",
    "prometheus_client",
    "structlog",
)
_GROUP: Final = "sys/fs/cgroup/system.slice/credential-agent.service"


def look_at_places(path: Path) -> Places:
    """The directories that the configuration at ``path`` has the service write to.

    Raises:
        ConfigError: it cannot be read.
    """
    settings, _ = config.survey(path)
    environment = settings.environment
    files = {
        "environment.file": environment.file,
        "environment.shell_file": environment.shell_file,
        "environment.token_file": environment.token_file,
    }
    named = {"state.directory": settings.state.directory}
    for key, file in files.items():
        directory = os.path.dirname(file) if file else ""  # noqa: PTH120 - a string of the configuration
        if directory and directory not in named.values():
            named[key] = directory
    return Places(places=tuple(_place(key, Path(directory)) for key, directory in named.items()))


def _place(key: str, path: Path) -> Place:
    try:
        found, system = path.stat(), os.statvfs(path)
    except OSError:
        return Place(key=key, path=str(path), there=False, may_write=False)
    return Place(
        key=key,
        path=str(path),
        may_write=os.access(path, os.W_OK | os.X_OK),
        read_only=bool(system.f_flag & os.ST_RDONLY),
        free_bytes=system.f_bavail * system.f_frsize,
        free_files=system.f_favail if system.f_files else -1,
        owner=_name(found.st_uid),
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def look_at_memory(root: Path = Path("/")) -> Memory:
    """What proc(5) and the control group say; ``root``: where they are."""
    info = dict(_fields(root / "proc/meminfo", ":"))
    events = dict(_fields(root / _GROUP / "memory.events", " "))
    return Memory(
        total=_bytes(info.get("MemTotal", "")),
        available=_bytes(info.get("MemAvailable", "")),
        used=_number(_text(root / _GROUP / "memory.current")),
        limit=_number(_text(root / _GROUP / "memory.max")),
        killed=_number(events.get("oom_kill", "")),
        waiting=_pressure(_text(root / "proc/pressure/cpu"), "some"),
        pressure=_pressure(_text(root / "proc/pressure/memory"), "full"),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _fields(path: Path, mark: str) -> list[tuple[str, str]]:
    lines = (line.partition(mark) for line in _text(path).splitlines())
    return [(name, value.strip()) for name, _, value in lines]


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _bytes(text: str) -> int:
    return _number(text.removesuffix(" kB")) * 1024


def _pressure(text: str, kind: str) -> float:
    for line in text.splitlines():
        if line.startswith(kind):
            for word in line.split():
                with contextlib.suppress(ValueError):
                    if word.startswith("avg10="):
                        return float(word.removeprefix("avg10="))
    return 0.0


def look_at_clock() -> Clock:
    """Whether the kernel's is kept right."""
    return Clock(synchronised=clock.synchronised())


def look_at_releases() -> Releases:
    """What a start would run, and what runs."""
    try:
        installed = CURRENT.readlink().name
    except OSError:
        installed = ""
    return Releases(ours=agent.__version__, installed=installed, running=_running(), missing=tuple(_missing()))


def _missing() -> Iterator[str]:
    """What is imported only when it is needed, perhaps hours after the start."""
    for name in _NEEDED:
        try:
            there = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            there = False
        if not there:
            yield name


def _running() -> str:
    """The release of the daemon's process, by the interpreter that it was started with."""
    for group in (Path("/") / _GROUP).glob("cgroup.procs"):
        for pid in _text(group).split():
            with contextlib.suppress(OSError):
                first = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
                parts = Path(first).parts
                if "releases" in parts[:-1]:
                    return parts[parts.index("releases") + 1]
    return ""
