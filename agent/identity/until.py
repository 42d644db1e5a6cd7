"""Until when each cloud is sure to be served, why no longer, and what follows: for status, metrics and warnings.

:mod:`agent.identity.forecast` answers from the bundle alone. A running worker adds its credentials, and the grants that
give it no more. Pure; asked a few times a minute, and by no request.
"""

from __future__ import annotations

from datetime import datetime

from agent.core.model import Cloud
from agent.identity.forecast import Forecast, Known, forecasts
from agent.identity.slots import Slot
from agent.identity.standing import LeaseOver, Routed, standing
from agent.identity.state import InForce, State, is_routed, may_fall_back, serves, slot_at, source_of


def valid_until(state: State, cloud: Cloud, now: datetime) -> datetime | None:
    """Until when ``cloud`` is sure to be served if things stay as they are; ``None``: nothing ends it.

    An upstream that fails is expected to come back, so it sets no end at first. It does once half of the credential's
    life is gone: renewal is due at a third, so by then the trouble is not passing.
    """
    forecast = forecast_of(state, cloud, now)
    return forecast.until if forecast is not None else None


def why_until(state: State, cloud: Cloud, now: datetime) -> str:
    """Why it ends then, for a person."""
    identity, forecast = state.identity, forecast_of(state, cloud, now)
    if identity is None or forecast is None:
        return "the machine's own identity has no end"
    if forecast.until is not None and forecast.until == identity.bundle.lease_until:
        return f"the lease of the bundle ends; seal a new one with a seq above {identity.bundle.seq}"
    if forecast.renewed_by:
        renewed = f"renewed by {forecast.renewed_by}"
    elif _ends_by_outage(state, cloud, forecast, now):
        renewed = "it is tried again and again"
    else:
        renewed = "nothing on this worker renews it"
    return f"grant {forecast.grant_id!r}: {forecast.cause}; {renewed}"


def what_follows(state: State, cloud: Cloud, now: datetime) -> str:
    """What follows the end of the identity, in words: a person shall know it before it happens."""
    if not is_routed(state, cloud) and cloud not in state.memory.decided:
        return "nothing ends it"
    forecast = forecast_of(state, cloud, now)
    if forecast is not None and _ends_by_outage(state, cloud, forecast, now):
        return "requests are refused until the renewal works again or a new bundle comes"
    if may_fall_back(state, cloud):
        return "the machine's own identity is served"
    return "requests are refused until a new bundle comes"


def forecast_of(state: State, cloud: Cloud, now: datetime) -> Forecast | None:
    """The forecast of ``cloud``; ``None`` while no bundle serves it."""
    if state.identity is None or not isinstance(standing(state, cloud, now), Routed | LeaseOver):
        return None
    return _forecast(state.identity, cloud, now)


def _forecast(identity: InForce, cloud: Cloud, now: datetime) -> Forecast:
    """Add what we know to what the bundle says of itself."""
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
    (forecast,) = forecasts(bundle.grants, {cloud: bundle.routes[cloud]}, bundle.lease_until, now, known)
    return forecast


def _outlasted(slot: Slot, now: datetime) -> bool:
    """Whether an outage that ``slot`` is in has lasted so long that the end of what it holds must be expected."""
    held = slot.state.held
    return held is not None and now >= held.half_gone


def _ends_by_outage(state: State, cloud: Cloud, forecast: Forecast, now: datetime) -> bool:
    """Whether ``cloud`` first ends in an outage, which is no loss."""
    if state.identity is None or forecast.until in (None, state.identity.bundle.lease_until):
        return False
    slot = slot_at(state, serves(state, cloud))
    while slot is not None:
        failure = slot.state.failure
        if failure is not None and (failure.denied or _outlasted(slot, now)):
            return not failure.denied
        slot = source_of(state, slot)
    return False
