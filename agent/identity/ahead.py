"""The answers to come, and when, if nothing new arrives. So whoever answers need not know why.

An answer changes by an event or by the passing of time. The effect of time is known beforehand: between two of the
instants at which something ends nothing changes, so one look at each of them tells everything. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

from agent.core.model import Cloud, Grant, IdToken
from agent.core.scopes import given_by
from agent.core.view import Answer
from agent.identity.standing import ID_TOKEN_LEFT, google_source, id_token, view
from agent.identity.state import State, slots_of

_NEVER: Final = datetime.max.replace(tzinfo=UTC)


class Ahead(NamedTuple):
    """An answer, and its end, exclusive; ``None``: it has none.

    Attributes:
        scopes: of Google: what the identity was given, where tokens for fewer scopes can be minted from it.
    """

    answer: Answer
    scopes: tuple[str, ...]
    until: datetime | None


def answers(state: State, cloud: Cloud, now: datetime) -> tuple[Ahead, ...]:
    """The answers for ``cloud`` from ``now`` on, in order; only the last has no end."""
    found: list[Ahead] = []
    for at in (now, *_ends(state, now)):
        source = google_source(state, at) if cloud is Cloud.GCP else None
        here = Ahead(view(state, cloud, at), given_by(source[0]) if source is not None else (), None)
        if not found:
            found.append(here)
        elif found[-1] != here:
            found[-1] = found[-1]._replace(until=at)
            found.append(here)
    return tuple(found)


def id_tokens(state: State, now: datetime) -> Iterator[tuple[IdToken, datetime]]:
    """The identity tokens that are handed out at ``now``, each with its end, exclusive."""
    for audience, (_, grant) in state.id_tokens.items():
        token = id_token(state, audience, now)
        if token is not None:
            yield token, min(token.expires_at - ID_TOKEN_LEFT, until_another(state, grant, now) or _NEVER)


def until_another(state: State, grant: Grant | None, now: datetime) -> datetime | None:
    """When Google's tokens begin to be minted from another grant, if nothing arrives; ``None``: never."""
    for at in _ends(state, now):
        source = google_source(state, at)
        if source is None or source[0] != grant:
            return at
    return None


def _ends(state: State, now: datetime) -> list[datetime]:
    """Every instant after ``now`` at which something ends."""
    found = {state.grace_until}
    found.update(slot.state.held.ends for slot in slots_of(state) if slot.state.held is not None)
    if state.identity is not None:
        leases = [state.identity.bundle.lease_until]
        for previous in state.identity.previous.values():
            found.add(previous.held.ends)
            leases.append(previous.lease)
        found.update(lease for lease in leases if lease is not None)
    return sorted(end for end in found if end > now)
