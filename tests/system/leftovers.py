"""What a test run makes on this machine must not outlive it, also when it is killed: the next run takes it away.

Each thing (a network namespace, a mount, a control group) is claimed by a file that its maker keeps locked. The kernel
gives a dead process's locks back, so a claim that nobody holds is a thing that nobody wants.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import subprocess
import time
from pathlib import Path
from typing import Self

CLAIMS = Path("/run/credential-agent-tests")


def unified() -> Path | None:
    """Where the version 2 hierarchy of control groups is mounted; ``None``: nowhere."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


class Claim:
    """One thing on this machine, from now until :meth:`release`."""

    def __init__(self, kind: str, name: str) -> None:
        CLAIMS.mkdir(mode=0o700, exist_ok=True)
        self.kind, self.name = kind, name
        self._path = CLAIMS / secrets.token_hex(8)
        # Made under a name that no sweeper looks at: it must not be seen before it is locked.
        new = self._path.with_suffix(".new")
        self._file = new.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        json.dump([kind, name], self._file)
        self._file.flush()
        new.rename(self._path)

    def release(self) -> None:
        """Take the thing away."""
        remove(self.kind, self.name)
        self._path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def group(name: str) -> Claim:
    """A control group of one machine's own: two that share one kill each other's processes."""
    top = unified()
    assert top is not None, "no control groups of version 2"
    place = top / "credential-agent-tests" / name
    claim = Claim("group", str(place))
    place.mkdir(parents=True)
    return claim


def remove(kind: str, name: str) -> None:
    """Take it away, if it is still there."""
    if kind == "netns" and Path("/run/netns", name).exists():
        inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        for pid in inside.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        subprocess.run(["ip", "netns", "delete", name], check=False)
    elif kind == "mount" and os.path.ismount(name):
        subprocess.run(["umount", "--lazy", name], check=False)
    elif kind == "group" and (place := Path(name)).is_dir():
        (place / "cgroup.kill").write_text("1")
        end = time.monotonic() + 20
        while "populated 1" in (place / "cgroup.events").read_text() and time.monotonic() < end:
            time.sleep(0.05)
        for inner in sorted(place.rglob("*/"), key=lambda path: -len(path.parts)):
            inner.rmdir()
        place.rmdir()


def _garbage() -> list[str]:
    """Mounts in what pytest has renamed to remove it: of no run that lives, and no longer where their claims say."""
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [place for place in places if re.search(r"/pytest-of-[^/]+/garbage-[^/]+/", place)]


def sweep() -> None:
    """Take away what killed runs left."""
    found: list[tuple[str, str]] = []
    paths = [path for path in CLAIMS.glob("*") if not path.suffix] if CLAIMS.is_dir() else []
    with contextlib.ExitStack() as held:
        for path in paths:
            try:
                file = held.enter_context(path.open())
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.append(tuple(json.load(file)))
            except (FileNotFoundError, BlockingIOError):  # given back meanwhile, or in use
                continue
            path.unlink(missing_ok=True)
        # Whoever runs in a namespace or on a mount goes first.
        for kind, name in sorted(found, key=lambda claim: ("group", "netns", "mount").index(claim[0])):
            remove(kind, name)
        for place in _garbage():
            remove("mount", place)
