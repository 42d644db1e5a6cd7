"""The state that a process leaves to the next: the credentials, the retries, the ones served on."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from agent.core.model import INSTANCE
from agent.identity.events import Holding, IdTokenMinted, MintedFor, Remnant, Waiting
from agent.identity.slots import Blocked, Failing
from agent.identity.standing import google_source
from agent.identity.state import State, digest_of, slots_of


def holdings(state: State) -> list[Holding]:
    """Every credential that a later process of this machine may take over."""
    return [
        Holding(slot.key, digest_of(state, slot.grant), held.credential, held.counted_end)
        for slot in slots_of(state)
        if (held := slot.state.held) is not None
    ]


MOST_ID_TOKENS: Final = 16
"""Those that live longest; the others are minted again when somebody asks."""


def id_tokens(state: State) -> list[MintedFor]:
    """The identity tokens that a later process of this machine may take over."""
    newest = sorted(state.id_tokens.values(), key=lambda one: one[0].expires_at, reverse=True)
    return [
        MintedFor(token, grant.id if grant is not None else INSTANCE, digest_of(state, grant))
        for token, grant in newest[:MOST_ID_TOKENS]
    ]


def minted(state: State, left: MintedFor, now: datetime) -> IdTokenMinted | None:
    """The event that brings ``left`` back if it speaks for whoever is served now; else ``None``."""
    served = google_source(state, now)
    if served is None:
        return None
    grant = served[0]
    of = grant.id if grant is not None else INSTANCE
    return IdTokenMinted(left.token, grant) if (of, digest_of(state, grant)) == left[1:] else None


def waiting(state: State) -> list[Waiting]:
    """Every credential that could not be issued at the last attempt."""
    return [
        Waiting(slot.key, digest_of(state, slot.grant), slot.state.attempts, slot.state.due_at, slot.state.failure)
        for slot in slots_of(state)
        if isinstance(slot.state, Failing | Blocked) and slot.state.attempts
    ]


def remnants(state: State) -> list[Remnant]:
    """The credentials of earlier bundles that are still served."""
    if state.identity is None:
        return []
    digest = state.identity.bundle.digest
    return [
        Remnant(cloud, digest, left.held.credential, left.held.counted_end, *left[1:])
        for cloud, left in state.identity.previous.items()
    ]
