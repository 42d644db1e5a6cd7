"""Workers' requests: what the holder of the rules says, what the kernel has, and who answers just now."""

from __future__ import annotations

import os

from agent.core.errors import HostError
from agent.doctor.facts import Arrival
from agent.host import arrival, nft

ASK_SECONDS = 1.5


def look_at_arrival(*, root: bool) -> Arrival:
    """Look; ``root``: whether the kernel tells us its rules."""
    known = arrival.read()
    table: bool | None = None
    if root:
        try:
            table = nft.show() is not None
        except HostError:
            table = None
    if known is None:
        return Arrival(expected=bool(table), state="unknown", why="nobody looks after the rules", table=table)
    asked = {} if root else {f"uid {os.geteuid()}": arrival.ask(nft.METADATA["ip"][0], 80, timeout=ASK_SECONDS)}
    return Arrival(expected=True, state=known.state, why=known.why, notes=known.notes, table=table, asked=asked)
