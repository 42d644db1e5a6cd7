"""Whether a bundle is taken, and what must be remembered of it. Changes nothing.

The rules:

1. Sequence numbers of one stream (issuer, subject) only rise. The same number with the same content is nothing new; the
   same number with other content is an attack or a broken sender, refused and alarmed.
2. A bundle of a stream that was forgotten is refused by the floor it left (:mod:`agent.identity.streams`).
3. A lease or a finished credential that has ended is not taken. It would replace a live one.
4. A withdrawal closes what the withdrawn bundle decided. The machine's own identity comes back only where the
   withdrawal itself says so, and only in the clouds that the withdrawn bundle carries: one that an earlier bundle
   closed stays closed.
"""

from __future__ import annotations

from datetime import datetime

from msgspec.structs import replace

from agent.core.model import Action, Bundle, Cloud, OnExpiry
from agent.core.text import instant
from agent.core.verdict import Accepted, Mark, Memory, Refused, Same, Verdict
from agent.identity import streams
from agent.identity.graph import dead_on_arrival
from agent.identity.state import State


def evaluate(state: State, bundle: Bundle, now: datetime, *, resume: bool = False) -> Verdict:
    """Evaluate an opened and verified bundle.

    Args:
        state: what is so now.
        bundle: what was opened.
        now: the instant of the evaluation.
        resume: the bytes are our own copy of what was accepted before, read back at the start.

    Returns:
        :class:`Accepted` (its ``memory`` is to be written down before it is put in force), :class:`Same`, or
        :class:`Refused`.
    """
    mark = state.memory.mark(bundle.issuer, bundle.subject)
    same = mark is not None and (bundle.seq, bundle.digest) == (mark.seq, mark.digest)
    if resume:
        if not same:
            return Refused("changed", f"seq {bundle.seq} is not what this instance accepted last")
    else:
        # The same bundle is taken again when it should be in force and is not: its sealed copy was lost with the disk.
        if same and not (state.identity is None and state.memory.active == mark):
            return Same(bundle.seq)
        refused = _replayed(state, bundle, mark, same=same) or _over(bundle, now)
        if refused is not None:
            return refused
    if bundle.action is Action.WITHDRAW:
        return Accepted(bundle, _remembering(state.memory, bundle, now, decided=_after_withdrawal(state, bundle)))
    decided = {**state.memory.decided, **dict.fromkeys(bundle.routes, bundle.on_expiry)}
    return Accepted(bundle, _remembering(state.memory, bundle, now, decided=decided))


def brought(state: State, bundle: Bundle, now: datetime) -> Memory:
    """:attr:`State.brought` after ``bundle`` was taken.

    As if this machine had begun with an empty memory. A bundle that means it only by a name of a metadata service does
    not count: the name is what turns out wrong, where the memory is another machine's.
    """
    before = state.brought
    if bundle.named:
        return replace(before, active=None) if bundle.action is Action.SET else before
    if bundle.action is Action.WITHDRAW:
        decided = _after_withdrawal(replace(state, memory=before), bundle)
    else:
        decided = {**before.decided, **dict.fromkeys(bundle.routes, bundle.on_expiry)}
    return _remembering(before, bundle, now, decided=decided)


def brought_again(state: State, bundle: Bundle, now: datetime) -> Memory:
    """:attr:`State.brought` after ``bundle`` came, which was accepted before: from here, or as it was found.

    It is nothing new if it came from here. Else it counts from now on; but what has replaced it since stays what it is:
    an older bundle that a source shows once more is not in force, nor does it decide what follows the present one.
    """
    before = state.brought
    mark = before.mark(bundle.issuer, bundle.subject)
    if bundle.named or (mark is not None and mark.seq >= bundle.seq):
        return before
    after = brought(state, bundle, now)
    present = state.bundle
    if bundle.action is Action.WITHDRAW or (present is not None and present.digest == bundle.digest):
        return after
    return replace(after, active=before.active, decided={**after.decided, **before.decided})


def _replayed(state: State, bundle: Bundle, mark: Mark | None, *, same: bool) -> Refused | None:
    if mark is None:
        if bundle.issued_at <= streams.floor(state.memory, bundle.issuer):
            return Refused(
                "rollback",
                "it was issued before a stream of its issuer was forgotten, and may be of that one; seal anew",
            )
        return None
    if bundle.seq < mark.seq:
        return Refused("rollback", f"expected a seq above {mark.seq}, got {bundle.seq}: a newer one came before")
    if bundle.seq == mark.seq and not same:
        return Refused("conflict", f"seq {bundle.seq} was accepted before with other content", alarm=True)
    return None


def _over(bundle: Bundle, now: datetime) -> Refused | None:
    if bundle.action is Action.WITHDRAW:
        return None
    if bundle.lease_until is not None and bundle.lease_until <= now:
        return Refused("lease", f"its lease ended at {instant(bundle.lease_until)}")
    dead = dead_on_arrival(bundle, now)
    if dead is not None:
        return Refused("expired", f"the credential of grant {dead!r} has already expired")
    return None


def _after_withdrawal(state: State, bundle: Bundle) -> dict[Cloud, OnExpiry | None]:
    """Every decided cloud then has no identity, whatever the withdrawn bundle or the configuration would allow."""
    active, decided = state.memory.active, state.memory.decided
    if active is None or active.stream != (bundle.issuer, bundle.subject):
        return decided
    if bundle.on_expiry is not OnExpiry.FALLBACK:
        return dict.fromkeys(decided, OnExpiry.DENY)
    carried = state.identity.bundle.routes if state.identity is not None else {}
    return {cloud: OnExpiry.FALLBACK if cloud in carried else before for cloud, before in decided.items()}


def _remembering(memory: Memory, bundle: Bundle, now: datetime, *, decided: dict[Cloud, OnExpiry | None]) -> Memory:
    """The memory after ``bundle``: its mark is the highest of its stream."""
    mark = Mark(bundle.issuer, bundle.subject, bundle.seq, bundle.digest, bundle.issued_at)
    active = memory.active
    if bundle.action is Action.SET:
        active = mark
    elif active is not None and active.stream == mark.stream:
        active = None
    marks = memory.marks
    if mark not in marks:  # else it is our own copy, or brought again: no later acceptance than it was
        marks = (*(m for m in marks if m.stream != mark.stream), mark)
    return streams.bounded(replace(memory, marks=marks, decided=decided, active=active), now)
