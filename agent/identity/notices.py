"""Which changes of a cloud are told, once each; and when to look again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from agent.core.model import Cloud
from agent.core.verdict import Event, Notice
from agent.core.view import Answer, Ended, Live, Pending
from agent.identity.events import Effect, Ticked
from agent.identity.standing import is_others, origin, view
from agent.identity.state import State, Told, changed, lease_over, slots_of
from agent.identity.until import valid_until, why_until

LOOK_AGAIN: Final = timedelta(minutes=1)
"""At the latest. A slot that is due but blocked is woken by its source; this is the safety net."""


def notice(state: State, _event: Ticked, now: datetime, _rng: random.Random) -> tuple[State, tuple[Effect, ...]]:
    """Tell what happened since the last time: identities that changed or ended, ends that came near."""
    over = lease_over(state, now)
    if over != state.lease_told:
        # Variables end with the lease too, and no cloud's answer need change with them.
        state = changed(replace(state, lease_told=over))
    notices: list[Effect] = []
    for cloud in Cloud:
        answer, whose = view(state, cloud, now), origin(state, cloud, now)
        before = state.told[cloud]
        until = valid_until(state, cloud, now)
        stands = (whose, type(answer), _stands(answer, awaited=cloud in state.awaited))
        if stands != before.standing:
            state = changed(state)
            event = _told_as(answer, before, others=is_others(state, cloud, now))
            if event is not None:
                notices.append(Notice(event, cloud, whose, _why(answer), until))
        near = until is not None and until - now <= state.policy.horizon_lead
        if near and isinstance(answer, Live) and not before.warned:
            # Not at each renewal, which moves the end a little: once, until the end has been far away again.
            notices.append(Notice(Event.HORIZON, cloud, whose, why_until(state, cloud, now), until))
        told = Told(stands, near and (before.warned or isinstance(answer, Live)))
        if told != before:
            state = replace(state, told={**state.told, cloud: told})
    return state, tuple(notices)


def next_look(state: State, now: datetime) -> datetime:
    """The next instant at which something may be due or to be told. Always after ``now``."""
    return min(at for at in _moments(state, now) if at > now)


def _moments(state: State, now: datetime) -> Iterator[datetime]:
    yield now + LOOK_AGAIN
    yield state.grace_until
    for slot in slots_of(state):
        if slot.state.due_at is not None and not slot.asking:
            yield slot.state.due_at
        if slot.state.held is not None:
            yield slot.state.held.ends
    if state.identity is not None:
        yield from (previous.held.ends for previous in state.identity.previous.values())
        if state.identity.bundle.lease_until is not None:
            yield state.identity.bundle.lease_until
    for cloud in Cloud:
        until = valid_until(state, cloud, now)
        if until is not None:
            yield until - state.policy.horizon_lead


def _told_as(answer: Answer, before: Told, *, others: bool) -> Event | None:
    """What is told of an answer that is another than before; ``None``: nothing."""
    if not isinstance(answer, Ended) or others:
        return Event.IDENTITY if before.standing is not None or isinstance(answer, Live) else None
    # Somebody is woken by an end. What has not begun cannot end: a first attempt that fails in passing is told as that,
    # and another reason for the same lack is no other end.
    was_served = before.standing is not None and before.standing[1] is Live
    return Event.ENDED if was_served or not answer.passing else None


def _stands(answer: Answer, *, awaited: bool) -> str:
    if isinstance(answer, Live):
        return answer.name
    # A key service that is asked again and again may fail in another way each time.
    return "" if awaited and isinstance(answer, Pending) else answer.why


def _why(answer: Answer) -> str:
    return f"served as {answer.name}" if isinstance(answer, Live) else answer.why
