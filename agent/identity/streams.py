"""How many streams are remembered, and how one is forgotten without opening a replay.

A stream (issuer, subject) costs a mark for ever: what a sender once sealed can be played again until its ``exp``, which
the sender chooses and we need not have seen. A producer that names a subject for each job makes thousands. So marks are
bounded, and a forgotten stream leaves a *floor*: a bundle of a stream that is not remembered must have been issued
after the last bundle of every forgotten stream of that issuer. A sender's numbers rise with its time, so whatever was
older than the forgotten mark was issued before it, and stays refused. A new stream is issued later, and is not touched.

The streams of the issuer that has the most go first, the one longest without an acceptance before others: an issuer
that floods forgets its own. The bundle in force is never forgotten.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Final

import msgspec

from agent.core.verdict import Mark, Memory

MAX_STREAMS: Final = 256
MAX_FLOORS: Final = 64
EVERYBODY: Final = ""
"""The issuer under whose name floors are gathered when there are too many issuers. No issuer's name is empty."""

_ALWAYS: Final = datetime.min.replace(tzinfo=UTC)


def floor(memory: Memory, issuer: str) -> datetime:
    """The instant after which a bundle of a forgotten stream must have been issued."""
    return max(memory.floors.get(issuer, _ALWAYS), memory.floors.get(EVERYBODY, _ALWAYS))


def bounded(memory: Memory, now: datetime) -> Memory:
    """``memory`` with as many streams as may be remembered.

    Args:
        memory: its marks stand in the order of their last acceptance, the oldest first.
        now: the floor of a mark that does not say when its bundle was issued (an earlier version wrote it).
    """
    marks, floors = list(memory.marks), dict(memory.floors)
    while len(marks) > MAX_STREAMS:
        gone = _next_to_go(marks, memory.active)
        marks.remove(gone)
        floors[gone.issuer] = max(floors.get(gone.issuer, _ALWAYS), gone.issued_at or now)
    while len(floors) > MAX_FLOORS:
        low = min((name for name in floors if name != EVERYBODY), key=floors.__getitem__)
        floors[EVERYBODY] = max(floors.get(EVERYBODY, _ALWAYS), floors.pop(low))
    return msgspec.structs.replace(memory, marks=tuple(marks), floors=floors)


def _next_to_go(marks: list[Mark], active: Mark | None) -> Mark:
    may_go = [mark for mark in marks if active is None or mark.stream != active.stream]
    count = Counter(mark.issuer for mark in may_go)
    most = max(count.values())
    return next(mark for mark in may_go if count[mark.issuer] == most)
