"""Workers' requests: what the holder of the rules says, what the kernel has, and who answers one just now."""

from __future__ import annotations

import fcntl
import os
import pwd
import socket
import struct
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from agent import config
from agent.core.errors import ConfigError, HostError
from agent.doctor.facts import Arrival, Rules
from agent.host import arrival, nft, ranges

ASK_SECONDS = 1.2
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 0x1


def look_at_arrival(path: Path, *, root: bool, ask: bool = True) -> Arrival:
    """Look.

    Args:
        path: the configuration; what it says of workers counts only if it can be read.
        root: whether the kernel tells us its rules, and we can ask as a worker. This process becomes one.
        ask: whether to ask as a worker: that starts an agent that is stopped.
    """
    known, loopback = arrival.read(), _loopback()
    if known is None:
        return Arrival(expected=False, state="unknown", why="nobody looks after the rules")
    worker, strangers = _workers(path)
    asked = {}
    if not ask:
        pass
    elif not loopback:
        pass  # it would wait for nothing
    elif not root:
        asked[f"uid {os.geteuid()}"] = _ask()
    elif worker is not None:
        os.setgroups([])
        os.setresgid(worker, worker, worker)
        # Not the real user: another process of that one could stop us.
        os.seteuid(worker)
        asked[f"uid {worker}"] = _ask()
    return Arrival(
        expected=True,
        state=known.state,
        why=known.why,
        notes=known.notes,
        asked=asked,
        strangers=tuple(strangers),
        loopback=loopback,
    )


def look_at_rules(*, root: bool) -> Rules:
    """Ask the kernel, which may take its time: apart from asking as a worker, who waits for his answer too."""
    return Rules(table=_table() if root else None)


def _loopback() -> bool:
    """Whether ``lo`` is up (netdevice(7), ``SIOCGIFFLAGS``)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        except OSError:
            return True  # not ours to ask
    flags: int = struct.unpack("16sH14x", answer)[1]
    return bool(flags & _IFF_UP)


def _ask() -> str:
    return arrival.ask(nft.METADATA["ip"][0], 80, timeout=ASK_SECONDS)


def _table() -> bool | None:
    try:
        return nft.show() is not None
    except HostError:
        return None


def _workers(path: Path) -> tuple[int | None, list[str]]:
    """A uid that is a worker's, a real user's if there is one; and users that are named and not there.

    No more is looked up than that: a directory may take its time, and to ask as a worker needs what is left.
    """
    try:
        section = config.load_redirect(path).section
        spans = [low for low, _ in ranges.parse_uids(section.uids)]
    except (ConfigError, HostError):
        return None, []
    uids, strangers = [], []
    for name in section.users:
        try:
            uids.append(pwd.getpwnam(name).pw_uid)
        except (KeyError, ValueError):  # a name with a NUL in it is nobody's
            strangers.append(name)
    return next(chain(uids, _known(spans), spans), None), strangers


def _known(spans: list[int]) -> Iterator[int]:
    """Those of which there is a user."""
    for uid in spans:
        try:
            yield pwd.getpwuid(uid).pw_uid
        except KeyError:
            continue
