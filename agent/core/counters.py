"""The counters behind the metrics: plain numbers, written by the controller, read by the report."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

MAX_KEYS: Final = 256
OUTCOMES: Final = ("issued", "failed", "denied")
"""The result of an attempt to issue a credential. ``failed``: it may work the next time; ``denied``: it will not."""

UNREADABLE: Final = "unreadable"
"""Counted beside the codes of refusals: a source holds something that looks like a bundle and is none."""


class Counters(msgspec.Struct):
    """Since the start of the process.

    Attributes:
        accepted, same: verdicts on bundles.
        refused: refusals by code.
        source_troubles: failed attempts by source.
        issued, failures: by ``cloud:grant`` and ``cloud:grant:code``.
        renewals: by ``cloud:outcome``, of :data:`OUTCOMES`.
        last_issued: when each credential last came.
    """

    accepted: int = 0
    same: int = 0
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    source_troubles: dict[str, int] = msgspec.field(default_factory=dict)
    issued: dict[str, int] = msgspec.field(default_factory=dict)
    failures: dict[str, int] = msgspec.field(default_factory=dict)
    renewals: dict[str, int] = msgspec.field(default_factory=dict)
    last_issued: dict[str, datetime] = msgspec.field(default_factory=dict)


def bump(table: dict[str, int], key: str) -> None:
    """Count one more ``key``; the number of keys is bounded.

    Senders name the grants, perhaps one for each job, and failures have the codes of upstreams. After the first
    :data:`MAX_KEYS` keys, all others are counted as ``other`` of their cloud.
    """
    if key not in table and len(table) >= MAX_KEYS:
        first, *rest = key.split(":", 2)
        key = ":".join((first, *("other" for _ in rest)))
    table[key] = table.get(key, 0) + 1
