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


def knows(memory: Memory, mark: Mark) -> bool:
    """Whether ``memory`` is no earlier than that acceptance: by its stream's mark, or by a forgotten one's floor."""
    ours = memory.mark(mark.issuer, mark.subject)
    if ours is not None:
        return ours.seq >= mark.seq
    return mark.issued_at is not None and mark.issued_at <= floor(memory, mark.issuer)


def covers(memory: Memory, other: Memory) -> bool:
    """Whether ``memory`` refuses whatever ``other`` would refuse as played again."""
    floors = all(floor(memory, name) >= at for name, at in other.floors.items())
    # A stream that the other may have forgotten: its number may have been higher there.
    forgotten = any(other.mark(*mark.stream) is None and knows(other, mark) for mark in memory.marks)
    return floors and not forgotten and all(knows(memory, mark) for mark in other.marks)


def united(one: Memory, other: Memory) -> Memory:
    """Two memories of one machine, so that nothing which either knows is taken back.

    Each may know of a stream what the other does not: the disk is a backup that somebody put back, say. A stream that
    one of them may have forgotten is forgotten: its number may have been higher there. What is in force is what ``one``
    says, unless ``other`` knows that it was replaced: then what ``other`` says, if ``one`` does not know better of
    that; else nothing is.
    """
    marks = {mark.stream: mark for mark in other.marks if not knows(one, mark)}
    for mark in one.marks:
        there = other.mark(mark.issuer, mark.subject)
        if mark.stream not in marks and (there is not None or not knows(other, mark)):
            marks[mark.stream] = mark
    names = one.floors.keys() | other.floors.keys()
    floors = {name: max(one.floors.get(name, _ALWAYS), other.floors.get(name, _ALWAYS)) for name in names}
    active = one.active
    if active is not None and marks.get(active.stream) != active:
        active = other.active
    if active is not None and marks.get(active.stream) != active:
        active = None
    both = msgspec.structs.replace(one, marks=tuple(marks.values()), floors=floors, active=active)
    return closed_by(both, other)


def closed_by(one: Memory, other: Memory) -> Memory:
    """``one``, in which every cloud is decided that ``other`` knows to be: none comes back to the machine's own."""
    if one.decided.keys() >= other.decided.keys():
        return one
    return msgspec.structs.replace(one, decided={**other.decided, **one.decided})


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
