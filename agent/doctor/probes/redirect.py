"""Workers' requests: what the holder of the rules says, what the kernel has, and who answers one just now."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from agent import config
from agent.core.errors import ConfigError, HostError
from agent.doctor.facts import Arrival
from agent.host import arrival, nft, ranges

ASK_SECONDS = 1.2


def look_at_arrival(path: Path, *, root: bool, ask: bool = True) -> Arrival:
    """Look.

    Args:
        path: the configuration; what it says of workers counts only if it can be read.
        root: whether the kernel tells us its rules, and we can ask as a worker. This process becomes one.
        ask: whether to ask as a worker: that starts an agent that is stopped.
    """
    known = arrival.read()
    table = _table() if root else None
    if known is None:
        return Arrival(expected=bool(table), state="unknown", why="nobody looks after the rules", table=table)
    uids, strangers = _workers(path)
    asked = {}
    if not ask:
        pass
    elif not root:
        asked[f"uid {os.geteuid()}"] = _ask()
    elif uids:
        os.setgroups([])
        os.setresgid(uids[0], uids[0], uids[0])
        # Not the real user: another process of that one could stop us.
        os.seteuid(uids[0])
        asked[f"uid {uids[0]}"] = _ask()
    return Arrival(
        expected=True,
        state=known.state,
        why=known.why,
        notes=known.notes,
        table=table,
        asked=asked,
        strangers=tuple(strangers),
    )


def _ask() -> str:
    return arrival.ask(nft.METADATA["ip"][0], 80, timeout=ASK_SECONDS)


def _table() -> bool | None:
    try:
        return nft.show() is not None
    except HostError:
        return None


def _workers(path: Path) -> tuple[list[int], list[str]]:
    """Uids that are workers', real users first; and users that are named and not there."""
    try:
        section = config.load_redirect(path).section
        spans = [low for low, _ in ranges.parse_uids(section.uids)]
    except (ConfigError, HostError):
        return [], []
    uids, strangers = [], []
    for name in section.users:
        try:
            uids.append(pwd.getpwnam(name).pw_uid)
        except (KeyError, ValueError):  # a name with a NUL in it is nobody's
            strangers.append(name)
    return [*uids, *(_known(spans)), *spans], strangers


def _known(spans: list[int]) -> Iterator[int]:
    """Those of which there is a user."""
    for uid in spans:
        try:
            yield pwd.getpwuid(uid).pw_uid
        except KeyError:
            continue
