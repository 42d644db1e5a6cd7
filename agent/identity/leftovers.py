"""What a process leaves to the one that comes after it: what it holds, what it waits for, what is served on."""

from __future__ import annotations

from agent.identity.events import Holding, Remnant, Waiting
from agent.identity.slots import Blocked, Failing, Slot
from agent.identity.state import State, slots_of


def holdings(state: State) -> list[Holding]:
    """Every credential that a later process of this machine may take over."""
    return [
        Holding(slot.key, _digest(state, slot), held.credential, held.counted_end)
        for slot in slots_of(state)
        if (held := slot.state.held) is not None
    ]


def waiting(state: State) -> list[Waiting]:
    """Every credential that could not be issued at the last attempt."""
    return [
        Waiting(slot.key, _digest(state, slot), slot.state.attempts, slot.state.due_at, slot.state.failure)
        for slot in slots_of(state)
        if isinstance(slot.state, Failing | Blocked) and slot.state.attempts
    ]


def remnants(state: State) -> list[Remnant]:
    """What earlier bundles left and is still served."""
    if state.identity is None:
        return []
    digest = state.identity.bundle.digest
    return [
        Remnant(cloud, digest, left.held.credential, left.held.counted_end, left.name, left.lease)
        for cloud, left in state.identity.previous.items()
    ]


def _digest(state: State, slot: Slot) -> str:
    return state.bundle.digest if state.bundle is not None and not slot.key.is_instance else ""
