"""Until when each cloud is sure to be served, why no longer, and what follows: for status, metrics and warnings.

:mod:`agent.core.horizon` answers from the bundle alone. A running worker lays over it what it holds and what it is
given no more. Pure; asked a few times a minute, and by no request.
"""

from __future__ import annotations

from datetime import datetime

from agent.core.horizon import Horizon, Known, horizon
from agent.core.model import Cloud
from agent.identity.slots import Slot
from agent.identity.standing import LeaseOver, Routed, standing
from agent.identity.state import InForce, State, is_routed, may_fall_back, serves, slot_at, source_of


def valid_until(state: State, cloud: Cloud, now: datetime) -> datetime | None:
    """Until when ``cloud`` is sure to be served if things stay as they are; ``None``: nothing ends it.

    An upstream that fails is expected to come back, so it sets no end at first. It does once half of the life of what
    is held is gone: renewal is due at a third, so that is no passing trouble any more.
    """
    outlook = outlook_of(state, cloud, now)
    return outlook.until if outlook is not None else None


def why_until(state: State, cloud: Cloud, now: datetime) -> str:
    """Why it ends then, for a person."""
    identity, outlook = state.identity, outlook_of(state, cloud, now)
    if identity is None or outlook is None:
        return "the machine's own identity has no end"
    if outlook.until is not None and outlook.until == identity.bundle.lease_until:
        return f"the lease of the bundle ends; seal a new one with a seq above {identity.bundle.seq}"
    if outlook.renewed_by:
        renewed = f"renewed by {outlook.renewed_by}"
    elif _ends_by_outage(state, cloud, outlook, now):
        renewed = "it is tried again and again"
    else:
        renewed = "nothing on this worker renews it"
    return f"grant {outlook.grant_id!r}: {outlook.cause}; {renewed}"


def what_follows(state: State, cloud: Cloud, now: datetime) -> str:
    """What will follow the end of what is served, in words: it is to be known before it happens."""
    if not is_routed(state, cloud) and cloud not in state.memory.decided:
        return "nothing ends it"
    outlook = outlook_of(state, cloud, now)
    if outlook is not None and _ends_by_outage(state, cloud, outlook, now):
        return "requests are refused until the renewal works again or a new bundle comes"
    if may_fall_back(state, cloud):
        return "the machine's own identity is served"
    return "requests are refused until a new bundle comes"


def outlook_of(state: State, cloud: Cloud, now: datetime) -> Horizon | None:
    """The outlook of ``cloud``; ``None`` while no bundle serves it."""
    if state.identity is None or not isinstance(standing(state, cloud, now), Routed | LeaseOver):
        return None
    return _look_out(state.identity, cloud, now)


def _look_out(identity: InForce, cloud: Cloud, now: datetime) -> Horizon:
    """Lay what we know over what the bundle says of itself."""
    known = {}
    for slot in identity.slots.values():
        held, failure = slot.state.held, slot.state.failure
        stopped = None
        if failure is not None and (failure.denied or _outlasted(slot, now)):
            what = "it is refused" if failure.denied else "it cannot be renewed so far"
            stopped = f"{what} ({failure.code}): {failure.message}"
        if held is not None:
            known[slot.key.grant_id] = Known(held.ends, held.ends - held.began, stopped)
        elif failure is not None and stopped is not None:
            known[slot.key.grant_id] = Known(failure.at, None, stopped)
    bundle = identity.bundle
    (outlook,) = horizon(bundle.grants, {cloud: bundle.routes[cloud]}, bundle.lease_until, now, known)
    return outlook


def _outlasted(slot: Slot, now: datetime) -> bool:
    """Whether an outage has lasted so long that the end of what ``slot`` holds must be reckoned with."""
    held = slot.state.held
    return slot.state.failure is not None and held is not None and now >= held.half_gone


def _ends_by_outage(state: State, cloud: Cloud, outlook: Horizon, now: datetime) -> bool:
    """Whether an outage, which is no loss, is what ends ``cloud`` first."""
    if state.identity is None or outlook.until in (None, state.identity.bundle.lease_until):
        return False
    slot = slot_at(state, serves(state, cloud))
    while slot is not None:
        failure = slot.state.failure
        if failure is not None and (failure.denied or _outlasted(slot, now)):
            return not failure.denied
        slot = source_of(state, slot)
    return False
