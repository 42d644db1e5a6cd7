"""How each cloud stands: the closed set of its states, and the answer in each.

======================  ===================================================================  ========================
standing                when                                                                 answer
======================  ===================================================================  ========================
:class:`Routed`         the bundle in force says what serves it                              its credential; the one
                                                                                             before; pending; why not
:class:`LeaseOver`      it did, and its sender's lease is over                               ended
:class:`Machines`       no bundle ever decided it, or one that is lost allowed it, and the   the machine's own
                        operator allows it
:class:`Grace`          a first bundle is waited for                                         pending
:class:`Doubted`        a bundle decided it, of a machine that may not be this one           pending
:class:`Resuming`       a bundle decided it, and is being opened again after a restart       pending
:class:`Closed`         a bundle decided it and is gone (sticky), or nothing is allowed      ended
======================  ===================================================================  ========================

Pure, and quick: a request costs one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, NamedTuple, assert_never

import msgspec
from msgspec.structs import replace

from agent.core.model import AwsCredential, Cloud, Credential, Env, Grant, IdToken, base_of, mints_id_tokens
from agent.core.secret import Secret
from agent.core.verdict import SlotStatus
from agent.core.view import Absent, Answer, Ended, Facts, Live, Origin, Pending
from agent.identity.slots import Slot
from agent.identity.state import (
    InForce,
    State,
    digest_of,
    is_routed,
    lease_over,
    may_fall_back,
    name_of,
    serves,
    slot_at,
    slots_of,
    source_of,
)

ID_TOKEN_LEFT: Final = timedelta(minutes=10)
"""An identity token with less than this left is minted anew rather than served."""


class Routed(msgspec.Struct, frozen=True):
    """The bundle in force says what serves this cloud."""

    identity: InForce
    slot: Slot


class LeaseOver(msgspec.Struct, frozen=True):
    """The bundle in force says what serves this cloud, and its lease is over."""

    seq: int


class Machines(msgspec.Struct, frozen=True):
    """The machine's own identity is this cloud's."""

    slot: Slot


class Grace(msgspec.Struct, frozen=True):
    """A first bundle is waited for.

    Attributes:
        until: how long in any case.
        why: what is waited for after that.
    """

    until: datetime
    why: str | None


class Doubted(msgspec.Struct, frozen=True):
    """The bundle that decided this cloud may be another machine's."""

    why: str


class Resuming(msgspec.Struct, frozen=True):
    """The bundle that decided this cloud is being opened again."""

    why: str


class Closed(msgspec.Struct, frozen=True):
    """This cloud has no identity."""

    why: str


Standing = Routed | LeaseOver | Machines | Grace | Doubted | Resuming | Closed


def standing(state: State, cloud: Cloud, now: datetime) -> Standing:
    """How ``cloud`` stands at ``now``."""
    identity = state.identity
    slot = identity.routed(cloud) if identity is not None else None
    if identity is not None and slot is not None:
        over = identity.lease_over(now)
        if slot.live(now) and not over:
            return Routed(identity, slot)  # nearly always: the rest need not be asked
        if may_fall_back(state, cloud) and is_lost(identity, cloud, slot, now):
            return _machines(state, cloud)
        return LeaseOver(identity.bundle.seq) if over else Routed(identity, slot)
    if cloud in state.memory.decided:
        opened = state.being_opened
        # Not lost: it may be in force again in a moment.
        set_aside = state.doubt is not None and identity is None and state.memory.active is not None
        if opened is None and not set_aside and may_fall_back(state, cloud):
            return _machines(state, cloud)
        if state.doubt is not None:
            return Doubted(state.doubt)
        return Resuming(opened) if opened is not None else Closed(_closed(state, cloud))
    if identity is None and (now < state.grace_until or cloud in state.awaited):
        return Grace(state.grace_until, state.awaited.get(cloud))
    if cloud in state.policy.fallback:
        return _machines(state, cloud)
    return Closed(
        f"no bundle with an identity for {cloud} has arrived, and the configuration allows no fallback to the "
        "machine's own"
    )


def is_lost(identity: InForce, cloud: Cloud, slot: Slot, now: datetime) -> bool:
    """Whether a bundle's identity in ``cloud`` is gone for good: not merely away with an upstream outage."""
    if identity.lease_over(now):
        return True
    previous = identity.previous.get(cloud)
    if slot.live(now) or (previous is not None and previous.live(now)):
        return False
    return slot.over_for_good


def _machines(state: State, cloud: Cloud) -> Machines:
    slot = state.machine.get(cloud)
    if slot is None:
        raise AssertionError(f"internal error: no slot for the machine's own identity in {cloud}")
    return Machines(slot)


def _closed(state: State, cloud: Cloud) -> str:
    if state.identity is not None:
        seq = state.identity.bundle.seq
        return f"bundle {seq} no longer carries {cloud}, which an earlier one decided; seal one that does"
    kept = "the machine's own identity is not served in its place; seal a bundle with a higher seq"
    if state.memory.active is not None:
        return f"bundle {state.memory.active.seq}, which was in force, cannot be opened any more (see the log); {kept}"
    return f"the bundle that decided this identity was withdrawn; {kept}"


def is_others(state: State, cloud: Cloud, now: datetime) -> bool:
    """Whether ``cloud`` is refused as it is meant to be: bundles bring another, and the configuration allows nothing.

    Its requests are answered as those of any :class:`Closed` cloud: an absent one's would see more of the machine's.
    """
    decided = state.memory.decided
    return bool(decided) and cloud not in decided and isinstance(standing(state, cloud, now), Closed)


# -- what is answered ------------------------------------------------------------------------------------------------


def view(state: State, cloud: Cloud, now: datetime) -> Answer:
    """The answer for ``cloud`` at ``now``. Never an expired credential, nor one beyond the lease."""
    match standing(state, cloud, now):
        case Routed(identity, slot):
            return _from_bundle(state, cloud, identity, slot, now)
        case Machines(slot):
            return _from_machine(state, slot, now)
        case LeaseOver(seq):
            return Ended(f"the lease of bundle {seq} ended; a new bundle must be sealed", passing=False)
        case Grace(until, why):
            said = f"waiting for a first bundle until {until:%H:%M:%SZ}"
            return Pending(said if why is None or now < until else why)
        case Doubted(why) | Resuming(why):
            return Pending(why)
        case Closed(why):
            return Ended(why, passing=False)
        case never:
            assert_never(never)


def _from_bundle(state: State, cloud: Cloud, identity: InForce, slot: Slot, now: datetime) -> Answer:
    held, seq = slot.state.held, identity.bundle.seq
    if held is not None and now < held.ends:
        return Live(held.credential, name_of(state, held.credential), Origin.BUNDLE)
    previous = identity.previous.get(cloud)
    if previous is not None and previous.live(now):
        return Live(previous.held.credential, previous.name, Origin.BUNDLE)
    if slot.state.due_at is None:
        return Ended(
            f"the credential of bundle {seq} expired and nothing here can renew it; seal a new bundle", passing=False
        )
    failure = slot.state.failure
    if failure is not None:
        why = f"bundle {seq}, grant {slot.key.grant_id!r}: {failure.message} ({failure.code})"
        return Ended(why, passing=not failure.denied)
    return Pending(f"bundle {seq} was accepted; its first credential is being issued")


def _from_machine(state: State, slot: Slot, now: datetime) -> Answer:
    held, failure = slot.state.held, slot.state.failure
    if held is not None and now < held.ends:
        return Live(held.credential, name_of(state, held.credential), Origin.FALLBACK)
    if slot.is_absent:
        return Absent("no bundle decides this cloud, and the machine has no identity of its own in it")
    if failure is not None:
        why = f"the machine's own identity could not be read: {failure.message} ({failure.code})"
        return Ended(why, passing=not failure.denied)
    return Pending("the machine's own identity is being read")


def origin(state: State, cloud: Cloud, now: datetime) -> Origin:
    """The origin of the identity that ``cloud`` has."""
    match standing(state, cloud, now):
        case Routed(identity, slot):
            answer = _from_bundle(state, cloud, identity, slot, now)
            return Origin.CLOSED if isinstance(answer, Ended) else Origin.BUNDLE
        case Machines():
            return Origin.FALLBACK
        case Grace() | Doubted() | Resuming():
            return Origin.WAITING
        case LeaseOver() | Closed():
            return Origin.CLOSED
        case never:
            assert_never(never)


def google_source(state: State, now: datetime) -> tuple[Grant | None, Credential | None] | None:
    """The source of an identity token: the grant and its source credential.

    ``(None, None)`` is the machine's own identity; ``None``: Google is not served.
    """
    match standing(state, Cloud.GCP, now):
        case Machines():
            return None, None
        case Routed(_, slot):
            source = source_of(state, slot)
            return slot.grant, source.credential if source is not None else None
        case _:
            return None


def lacks_base(source: tuple[Grant | None, Credential | None]) -> bool:
    """Whether nothing can be minted from ``source`` yet: what its grant stands on has no credential."""
    grant, base = source
    return grant is not None and base is None and base_of(grant) is not None


class MintedFrom(NamedTuple):
    """Whose a Google token is: a grant (``None``: the machine's own), whose text may be the same in another bundle."""

    grant: Grant | None
    bundle: str


def minted_from(state: State, now: datetime) -> MintedFrom | None:
    """Whose a token would be that is minted now; ``None``: Google is not served."""
    source = google_source(state, now)
    return None if source is None else MintedFrom(source[0], digest_of(state, source[0]))


def id_token(state: State, audience: str, now: datetime) -> IdToken | None:
    """A minted identity token for ``audience`` with at least ten minutes left, of whoever is served now."""
    token, grant = state.id_tokens.get(audience, (None, None))
    if token is None or token.expires_at - now < ID_TOKEN_LEFT:
        return None
    served = google_source(state, now)
    return token if served is not None and served[0] == grant else None


def can_mint_id_tokens(state: State) -> bool:
    """Whether the Google identity could mint one at all."""
    if is_routed(state, Cloud.GCP):
        slot = slot_at(state, serves(state, Cloud.GCP))
        return slot is not None and slot.grant is not None and mints_id_tokens(slot.grant)
    own = state.machine.get(Cloud.GCP)
    return own is not None and own.credential is not None


def variables(state: State, now: datetime) -> Mapping[str, Secret]:
    """The opaque variables of the bundle in force, until its lease ends."""
    if state.identity is None or lease_over(state, now):
        return {}
    merged: dict[str, Secret] = {}
    for grant in state.identity.bundle.grants:
        if isinstance(grant, Env):
            merged.update(grant.variables)
    return merged


def facts(state: State) -> Facts:
    """Region, zone, project: what the bundle says first, then the configuration, then what the machine said."""
    region = project = account = None
    bundle = state.bundle
    if bundle is not None:
        aws, google = (bundle.grant(bundle.routes.get(cloud, "")) for cloud in (Cloud.AWS, Cloud.GCP))
        region = getattr(aws, "region", None)
        project = getattr(aws, "project_id", None) or getattr(google, "project_id", None)
    served = slot_at(state, serves(state, Cloud.AWS))
    if served is not None and isinstance(served.credential, AwsCredential):
        account = served.credential.account_id
    own, seen = state.policy.facts, state.observed
    if project not in (None, seen.project_id):
        # The number belongs to the machine's project: with another project from the bundle it would be wrong.
        seen = replace(seen, numeric_project_id=None)
    said = Facts(region=region, account_id=account, project_id=project)
    return Facts(*(getattr(said, n) or getattr(own, n) or getattr(seen, n) for n in Facts.__struct_fields__))


def statuses(state: State) -> list[SlotStatus]:
    """Every slot, for status and metrics."""
    return [
        SlotStatus(
            cloud=slot.key.cloud,
            id=slot.key.grant_id,
            type="instance" if slot.grant is None else str(slot.grant.__struct_config__.tag),
            expires_at=slot.credential.expires_at if slot.credential is not None else None,
            renew_at=slot.state.due_at,
            attempts=slot.state.attempts,
            failure=slot.state.failure,
        )
        for slot in slots_of(state)
    ]
