"""The effect of each event: ``(state, event, now, rng) -> (state, effects)``, one small pure function each.

=====================  ==============================================================================================
event                  what it does
=====================  ==============================================================================================
``BundleAccepted``     a set: the bundle is in force; what it shares with the one before is carried over, and what that
                       one serves is served until the new one has a credential. A withdrawal of what is in force: purged
``BundleBrought``      it counts as brought to this machine, and not only as found on it
``BundleRevoked``      purged; the memory stays
``TrustNarrowed``      what an earlier bundle left goes, but for that of signers who are believed as before
``CredentialIssued``   the slot holds it (or knows that there is none), and what stands on it is due
``IssuingFailed``      the slot fails; what it holds stays
``IdTokenMinted``      kept for its audience
``TimePassed``         what is due is begun, unless its source is not there
``Ticked``             what changed for a cloud is told, once
``ClockMoved``         what was counted on our clock moves along
``TimeDoubted``        everything is due within half a minute, once a minute at most
``PolicyChanged``      the machine's own slots come and go
``GraceMoved``         the boot grace ends at another instant
``FirstAwaited``       a first bundle is waited for though the grace is over, or no longer
``MachineObserved``    region, zone and the like are known
``MemoryAdopted``      the memory bears this machine's name; no doubt is left
``MemoryReset``        nothing is left of what was the other machine's; what was brought to this one stays remembered
``MemoryRecalled``     what the disk knew counts, unless in doubt; what is in force ends, if the disk knows better
``MemoryDoubted``      what the memory decided is pending
``BundleResuming``     what was in force is pending, or no longer
``Holding``            (at a start) the slot holds what an earlier process held
``Waiting``            (at a start) the slot goes on with its retries
``Remnant``            (at a start) what an earlier bundle left is served on
=====================  ==============================================================================================

Long because it is one table: whoever asks what an event does, or what else is done to the same part of the state, reads
this file and no other.

What they must keep, in every order (``tests/properties`` drives them):

1. A bundle beats the machine's own identity, cloud by cloud: what a bundle does not route stays with the machine.
2. **Sticky.** Once a bundle decided a cloud on this machine, losing it closes that cloud. Only an explicit
   ``on_expiry = "fallback"`` lets the machine's identity back. The memory of it outlives the process: else a restart
   would *be* the downgrade.
3. Absence is not withdrawal: nothing ends because a source fell silent. Only a signed withdrawal, the lease or the
   credential's own end purges.
4. Make before break: a credential is replaced only by one that is in hand and alive. A new bundle that must first mint
   leaves the old *bundle's* identity in place until it has. The machine's own is not left in place: from the moment a
   bundle decides a cloud no request is answered as the machine, so until its first mint the cloud is pending.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from msgspec.structs import replace

from agent.core.model import INSTANCE, Action, Bundle, Cloud, base_cloud_of, base_of
from agent.core.verdict import Failure, Key, Work
from agent.core.view import Live, Origin
from agent.identity import admission, slots, streams
from agent.identity.events import (
    Applied,
    BundleAccepted,
    BundleBrought,
    BundleResuming,
    BundleRevoked,
    ClockMoved,
    CredentialIssued,
    Effect,
    Event,
    FirstAwaited,
    GraceMoved,
    Holding,
    IdTokenMinted,
    IssuingFailed,
    MachineObserved,
    MemoryAdopted,
    MemoryDoubted,
    MemoryRecalled,
    MemoryReset,
    PolicyChanged,
    Remnant,
    Ticked,
    TimeDoubted,
    TimePassed,
    TrustNarrowed,
    Waiting,
)
from agent.identity.graph import reachable, ready, same_chain
from agent.identity.notices import notice
from agent.identity.slots import Slot
from agent.identity.standing import Machines, standing, view
from agent.identity.state import (
    InForce,
    Previous,
    State,
    changed,
    digest_of,
    is_routed,
    lease_over,
    may_fall_back,
    named,
    serves,
    slot_at,
    slots_of,
    source_of,
    was_brought,
    with_slot,
)
from agent.identity.whose import said_of

ID_TOKEN_AUDIENCES: Final = 1024
"""How many audiences are kept: an audience is the caller's free choice, so this bounds what one can make us hold."""
HURRY_EVERY: Final = timedelta(minutes=1)
"""A wall clock that somebody steps to and fro must not storm the clouds."""
HURRY_SPREAD: Final = timedelta(seconds=30)

Step = tuple[State, tuple[Effect, ...]]
NOTHING: Final[tuple[Effect, ...]] = ()
APPLIED: Final[tuple[Effect, ...]] = (Applied(),)


# -- bundles ----------------------------------------------------------------------------------------------------------


def bundle_accepted(state: State, event: BundleAccepted, now: datetime, rng: random.Random) -> Step:
    """Put an accepted bundle in force, or purge what it withdraws."""
    bundle, active = event.verdict.bundle, state.memory.active
    brought = state.brought if event.again else admission.brought(state, bundle, now)
    state = replace(state, memory=event.verdict.memory, brought=brought)
    if bundle.action is Action.SET:
        return _in_force(state, bundle, now, rng), APPLIED
    if active is not None and active.stream == (bundle.issuer, bundle.subject):
        return _purged(state, now), APPLIED
    return _left_nothing_of(state, (bundle.issuer, bundle.subject)), APPLIED


def _left_nothing_of(state: State, stream: tuple[str, str]) -> State:
    """What was withdrawn is not served on because its successor, another sender's, has no credential yet."""
    return _left_but(state, lambda one: one.stream not in {None, stream})


def _left_but(state: State, stays: Callable[[Previous], bool]) -> State:
    if (identity := state.identity) is None:
        return state
    rest = {cloud: one for cloud, one in identity.previous.items() if stays(one)}
    if len(rest) == len(identity.previous):
        return state
    return changed(replace(state, identity=replace(identity, previous=rest)))


def bundle_brought(state: State, event: BundleBrought, now: datetime, _rng: random.Random) -> Step:
    """A source has what this machine had accepted before."""
    return replace(state, brought=admission.brought_again(state, event.bundle, now)), NOTHING


def bundle_revoked(state: State, _event: BundleRevoked, now: datetime, _rng: random.Random) -> Step:
    """End the bundle in force without a withdrawal."""
    return _purged(state, now), APPLIED


def trust_narrowed(state: State, event: TrustNarrowed, _now: datetime, _rng: random.Random) -> Step:
    """Serve on nothing of a signer who may say less than before: its bundle cannot be evaluated again."""
    return _left_but(state, lambda one: one.signer in event.kept), NOTHING


def bundle_resuming(state: State, event: BundleResuming, _now: datetime, _rng: random.Random) -> Step:
    """The clouds that the memory decided are pending until its bundle is opened."""
    return (state if event.why == state.resuming else changed(replace(state, resuming=event.why))), APPLIED


def _in_force(state: State, bundle: Bundle, now: datetime, rng: random.Random) -> State:
    """Put ``bundle`` in force, carrying over every slot whose grant, sources included, is unchanged."""
    old = state.identity
    left = {cloud: previous for cloud in bundle.routes if (previous := _left(state, cloud, now)) is not None}
    made: dict[Key, Slot] = {}
    numbered = state.numbered
    for key, grant in reachable(bundle):
        kept = old.slots.get(key) if old is not None else None
        if kept is not None and old is not None and same_chain(old.bundle, bundle, key.grant_id):
            made[key] = replace(kept, grant=grant)
            continue
        numbered += 1
        due_at = now + state.policy.spread * rng.random()
        finished = ready(grant, bundle)
        made[key] = (
            slots.finished_slot(key, numbered, grant, finished)
            if finished is not None
            else slots.new_slot(key, numbered, grant, due_at)
        )
    routes = {cloud: Key(cloud, grant_id) for cloud, grant_id in bundle.routes.items()}
    routed = {cloud: made[key] for cloud, key in routes.items()}
    left = {cloud: one for cloud, one in left.items() if not routed[cloud].live(now)}
    identity = InForce(bundle, routes, made, left)
    state = replace(state, identity=identity, resuming=None, numbered=numbered, id_tokens={})
    for cloud, slot in routed.items():
        if slot.credential is not None:
            state = named(state, cloud, slot.credential)
    return changed(_machines_kept(state, now))


def _left(state: State, cloud: Cloud, now: datetime) -> Previous | None:
    """The credentials that the bundle in force serves now, to be served on while its successor has none yet."""
    identity = state.identity
    slot = identity.routed(cloud) if identity is not None else None
    if identity is None or slot is None:
        return None
    answer = view(state, cloud, now)
    if not isinstance(answer, Live) or answer.origin is not Origin.BUNDLE:
        return None
    if slot.state.held is not None and slot.live(now):
        bundle = identity.bundle
        stream = (bundle.issuer, bundle.subject)
        return Previous(slot.state.held, answer.name, bundle.lease_until, stream, bundle.signer_kid)
    return identity.previous.get(cloud)


def _purged(state: State, now: datetime) -> State:
    """Drop the bundle in force and every credential that came of it, at once."""
    return changed(_machines_kept(replace(state, identity=None, resuming=None, id_tokens={}), now))


def _machines_kept(state: State, now: datetime) -> State:
    """Keep a slot for each machine identity that is served, or may be, or that a grant stands on; and no other.

    The machine's credential has no business in memory while a bundle decides.
    """
    wanted = set(_machines_wanted(state))
    machine = {cloud: slot for cloud, slot in state.machine.items() if cloud in wanted}
    numbered = state.numbered
    for cloud in Cloud:
        if cloud in wanted and cloud not in machine:
            numbered += 1
            machine[cloud] = slots.new_slot(Key(cloud, INSTANCE), numbered, None, now)
    return replace(state, machine=machine, numbered=numbered)


def _machines_wanted(state: State) -> Iterator[Cloud]:
    for cloud in state.policy.fallback:
        managed = is_routed(state, cloud) or cloud in state.memory.decided
        if not managed or may_fall_back(state, cloud):
            yield cloud
    for slot in state.identity.slots.values() if state.identity is not None else ():
        if slot.grant is not None and base_of(slot.grant) == INSTANCE:
            cloud_ = base_cloud_of(slot.grant)
            if cloud_ is None:
                raise AssertionError("internal error: a source without a cloud")
            yield cloud_


# -- credentials ------------------------------------------------------------------------------------------------------


def credential_issued(state: State, event: CredentialIssued, now: datetime, rng: random.Random) -> Step:
    """Take a credential. A result for a bundle that was replaced meanwhile changes nothing."""
    slot = _slot_of(state, event.work)
    if slot is None:
        return state, NOTHING
    if event.credential is None:
        state = with_slot(state, slots.found_none(slot, now, rng))
        return (state, NOTHING) if slot.is_absent else (changed(state), APPLIED)
    held = slots.hold(event.credential, event.ends, event.began or now)
    if held.ends <= now:
        late = Failure("expired", "the credential that was issued had already expired", False, now)
        return changed(with_slot(state, slots.failed(slot, late, now, rng))), NOTHING
    fresh = slot.credential != event.credential
    news = fresh or slot.state.failure is not None or slot.is_absent
    state = with_slot(state, slots.issued(slot, held, now, rng))
    if fresh:
        state = _woken(state, slot.key, now)
    state = _served_by(state, slot.key, held)
    return (changed(state), APPLIED) if news else (state, NOTHING)


def issuing_failed(state: State, event: IssuingFailed, now: datetime, rng: random.Random) -> Step:
    """Take note that it could not be issued."""
    slot = _slot_of(state, event.work)
    if slot is None:
        return state, NOTHING
    return changed(with_slot(state, slots.failed(slot, event.failure, now, rng))), APPLIED


def id_token_minted(state: State, event: IdTokenMinted, _now: datetime, _rng: random.Random) -> Step:
    """Keep it while its source is served: what comes after a withdrawal speaks for nobody."""
    kept = dict(state.id_tokens)
    audience = event.token.audience
    if len(kept) >= ID_TOKEN_AUDIENCES and audience not in kept:
        del kept[min(kept, key=lambda a: kept[a][0].expires_at)]
    kept[audience] = (event.token, event.grant)
    return changed(replace(state, id_tokens=kept)), APPLIED


def _slot_of(state: State, work: Work) -> Slot | None:
    slot = slot_at(state, work.key)
    return slot if slot is not None and slot.number == work.slot else None


def _woken(state: State, source: Key, now: datetime) -> State:
    """Slots that stand on ``source`` are due."""
    for slot in state.identity.slots.values() if state.identity is not None else ():
        below = source_of(state, slot)
        if below is not None and below.key == source:
            woken = slots.source_came(slot, now)
            state = state if woken is slot else with_slot(state, woken)
    return state


def _served_by(state: State, key: Key, held: slots.Held) -> State:
    """``key`` has a credential: the cloud that it serves has a name, and nothing of a predecessor is left."""
    if serves(state, key.cloud) != key:
        return state
    identity = state.identity
    if identity is not None and key.cloud in identity.previous:
        rest = {cloud: previous for cloud, previous in identity.previous.items() if cloud is not key.cloud}
        state = replace(state, identity=replace(identity, previous=rest))
    return named(state, key.cloud, held.credential)


# -- time -------------------------------------------------------------------------------------------------------------


def time_passed(state: State, _event: TimePassed, now: datetime, _rng: random.Random) -> Step:
    """Begin everything that is due."""
    work: list[Effect] = []
    for slot in list(slots_of(state)):
        due_at = slot.state.due_at
        if slot.asking or due_at is None or due_at > now or _is_over(state, slot, now):
            continue
        source = source_of(state, slot)
        if source is not None and not source.live(now):
            blocked = slots.blocked(slot, source, now)
            state = state if blocked is slot else changed(with_slot(state, blocked))
            continue
        state = with_slot(state, slots.asked(slot))
        credential = source.credential if source is not None else None
        work.append(Work(slot.key, slot.grant, credential, slot.number, slot.state.attempts + 1))
    return state, tuple(work)


def _is_over(state: State, slot: Slot, now: datetime) -> bool:
    """Whether nobody is served from ``slot`` any more since the lease is over: nothing is asked of anybody for it.

    It is not dropped: should our clock turn out to have been ahead, the lease goes on.
    """
    if not lease_over(state, now):
        return False
    return not (slot.key.is_instance and isinstance(standing(state, slot.key.cloud, now), Machines))


def clock_moved(state: State, event: ClockMoved, now: datetime, rng: random.Random) -> Step:
    """Move what was counted from a moment of our clock, and nothing that somebody else named.

    Without it a retry planned for ten seconds hence would wait for hours when the clock goes back, and a token counted
    as good for an hour would be shown for as long as the clock was wrong.
    """
    by = event.by
    hurried_at = state.hurried_at + by if state.hurried_at is not None else None
    state = replace(state, grace_until=state.grace_until + by, hurried_at=hurried_at)
    for slot in list(slots_of(state)):
        state = with_slot(state, slots.moved(slot, by, now, rng))
    if state.identity is not None:
        previous = {
            cloud: before._replace(held=before.held.moved(by)) for cloud, before in state.identity.previous.items()
        }
        state = replace(state, identity=replace(state.identity, previous=previous))
    return changed(state), APPLIED


def time_doubted(state: State, _event: TimeDoubted, now: datetime, rng: random.Random) -> Step:
    """Ask for everything anew within half a minute.

    If not applied, it must be asked for again: a doubt that is dropped lets an expired credential be served until the
    next renewal.
    """
    if state.hurried_at is not None and timedelta() <= now - state.hurried_at < HURRY_EVERY:
        return state, NOTHING
    state = replace(state, hurried_at=now)
    for slot in list(slots_of(state)):
        if slot.state.due_at is None or slot.state.failure is not None:
            continue
        soon = slots.hurried(slot, now + HURRY_SPREAD * rng.random())
        state = state if soon is slot else with_slot(state, soon)
    return state, APPLIED


def grace_moved(state: State, event: GraceMoved, _now: datetime, _rng: random.Random) -> Step:
    """Wait for a first bundle until another instant."""
    return changed(replace(state, grace_until=event.until)), APPLIED


def first_awaited(state: State, event: FirstAwaited, now: datetime, _rng: random.Random) -> Step:
    """Wait for what may be a first bundle, longer than the grace. Once that is over in a cloud, it is for good."""
    over = now >= state.grace_until
    awaited = {cloud: why for cloud, why in event.why.items() if cloud in state.awaited or not over}
    if awaited == state.awaited:
        return state, NOTHING
    return changed(replace(state, awaited=awaited)), APPLIED


# -- the machine and its memory ---------------------------------------------------------------------------------------


def policy_changed(state: State, event: PolicyChanged, now: datetime, _rng: random.Random) -> Step:
    """Take another policy."""
    return changed(_machines_kept(replace(state, policy=event.policy), now)), APPLIED


def machine_observed(state: State, event: MachineObserved, _now: datetime, _rng: random.Random) -> Step:
    """Take note of where the machine stands."""
    if event.facts == state.observed:
        return state, NOTHING
    return changed(replace(state, observed=event.facts)), APPLIED


def memory_adopted(state: State, event: MemoryAdopted, now: datetime, _rng: random.Random) -> Step:
    """Take the memory as this machine's. Applied: it changed, and is to be written down."""
    before = state.memory
    memory = replace(
        before,
        instance_id=event.instance_id or before.instance_id,
        boot_id=event.boot_id or before.boot_id,
        firmware=said_of(before, event.firmware),
    )
    settled = _settled(state)
    if memory == before:
        return settled, NOTHING
    if before.instance_id and memory.instance_id != before.instance_id:
        # A copy of a machine that runs: the credential that it brings is that one's.
        settled = _machines_kept(replace(settled, machine={}, id_tokens={}), now)
    return changed(replace(settled, memory=memory)), APPLIED  # what is left to the next process names the machine


def memory_reset(state: State, event: MemoryReset, now: datetime, _rng: random.Random) -> Step:
    """Forget everything that belongs to another machine, its own credentials too.

    What was brought to this machine meanwhile, and acknowledged, stays in force where it takes away: no older bundle
    comes after a withdrawal, and a cloud that was decided here is not the machine's. What gives is evaluated anew.
    """
    active = state.brought.active if was_brought(state) else None
    memory = replace(
        state.brought,
        instance_id=event.instance_id,
        boot_id=event.boot_id,
        firmware=dict(event.firmware),
        active=active,
    )
    return _purged(replace(_settled(state), memory=memory, machine={}), now), APPLIED


def memory_recalled(state: State, event: MemoryRecalled, now: datetime, _rng: random.Random) -> Step:
    """Know what the disk knew. Applied: its bundle may come back into force, unless something came meanwhile.

    Where nothing did, what stood for the memory has had its time. What came into force while a slow disk was read
    stays, unless the disk knows better; what that knows of other streams counts all the same.
    """
    read, ours = event.memory, state.memory
    if state.doubt is not None:
        return state, NOTHING
    known = bool(read.marks or read.instance_id)  # else it is gone by now
    both = read if known and not ours.marks and not ours.floors else streams.united(ours, read)
    name = ours.instance_id or read.instance_id
    memory = replace(both, instance_id=name, boot_id=ours.boot_id, firmware=ours.firmware)
    stays = state.bundle is not None and memory.active == ours.active
    if state.bundle is not None and not stays:
        state = replace(_purged(state, now), resuming=state.resuming)  # of what is opened now
    return changed(_machines_kept(replace(state, memory=memory), now)), NOTHING if stays else APPLIED


def memory_doubted(state: State, event: MemoryDoubted, now: datetime, _rng: random.Random) -> Step:
    """The clouds that the memory decided are pending until it is adopted or reset.

    A bundle that comes during the doubt came to this machine, and is in force. One that was in force before it came to
    the machine that this one was taken for (a copy of a machine that runs has its bundle, its keys and its boot): it is
    not served either, and counts as found; nor is the machine's own credential. What was taken away stays so.
    """
    if state.doubt is None:
        present, brought = state.bundle, state.brought
        if present is not None:
            marks = tuple(mark for mark in brought.marks if mark.digest != present.digest)
            state = _purged(replace(state, brought=replace(brought, active=None, marks=marks)), now)
        state = _machines_kept(replace(state, machine={}, id_tokens={}), now)
    return changed(replace(state, doubt=event.why)), APPLIED


def _settled(state: State) -> State:
    return state if state.doubt is None else changed(replace(state, doubt=None))


# -- what an earlier process left -------------------------------------------------------------------------------------


def holding_restored(state: State, event: Holding, now: datetime, rng: random.Random) -> Step:
    """Hold it again, if the same bundle is in force, the slot has nothing yet, and it is alive."""
    slot = _left_for(state, event.key, event.digest)
    if slot is None or slot.state.held is not None:
        return state, NOTHING
    held = slots.hold_again(event.credential, event.ends, now)
    if held.ends <= now:
        return state, NOTHING
    state = with_slot(state, replace(slots.issued(slot, held, now, rng), asking=slot.asking))
    if serves(state, slot.key.cloud) == slot.key:
        state = named(state, slot.key.cloud, held.credential)
    return changed(state), APPLIED


def waiting_restored(state: State, event: Waiting, now: datetime, _rng: random.Random) -> Step:
    """Go on with the retries where an earlier process stood: a restart in an outage must not storm."""
    slot = _left_for(state, event.key, event.digest)
    if slot is None or slot.state.failure is not None or slot.asking:
        return state, NOTHING
    again = slots.retried(slot, event.failure, event.attempts, event.again_at, now)
    return changed(with_slot(state, again)), APPLIED


def remnant_restored(state: State, event: Remnant, now: datetime, _rng: random.Random) -> Step:
    """Serve on what an earlier bundle left, if the same bundle is in force and has nothing of its own yet.

    The caller decides whether the earlier one's signer is still believed.
    """
    identity, cloud = state.identity, event.cloud
    slot = identity.routed(cloud) if identity is not None else None
    if identity is None or slot is None or identity.bundle.digest != event.digest or cloud in identity.previous:
        return state, NOTHING
    held = slots.hold_again(event.credential, event.ends, now)
    if held.ends <= now or slot.live(now):
        return state, NOTHING
    previous = {**identity.previous, cloud: Previous(held, *event[4:])}
    state = replace(state, identity=replace(identity, previous=previous))
    return changed(named(state, cloud, held.credential)), APPLIED


def _left_for(state: State, key: Key, digest: str) -> Slot | None:
    """The slot that an earlier process's result is for, if the same bundle is in force."""
    slot = slot_at(state, key)
    return slot if slot is not None and digest == digest_of(state, slot.grant) else None


# -- the table --------------------------------------------------------------------------------------------------------

TRANSITIONS: Final[dict[type[Event], Callable[[State, Any, datetime, random.Random], Step]]] = {
    BundleAccepted: bundle_accepted,
    BundleBrought: bundle_brought,
    BundleRevoked: bundle_revoked,
    TrustNarrowed: trust_narrowed,
    BundleResuming: bundle_resuming,
    CredentialIssued: credential_issued,
    IssuingFailed: issuing_failed,
    IdTokenMinted: id_token_minted,
    TimePassed: time_passed,
    Ticked: notice,
    ClockMoved: clock_moved,
    TimeDoubted: time_doubted,
    PolicyChanged: policy_changed,
    GraceMoved: grace_moved,
    FirstAwaited: first_awaited,
    MachineObserved: machine_observed,
    MemoryAdopted: memory_adopted,
    MemoryReset: memory_reset,
    MemoryRecalled: memory_recalled,
    MemoryDoubted: memory_doubted,
    Holding: holding_restored,
    Waiting: waiting_restored,
    Remnant: remnant_restored,
}


def first(state: State, now: datetime) -> State:
    """The state of a worker that starts, from one that has nothing but its memory."""
    return _machines_kept(state, now)


def transition(state: State, event: Event, now: datetime, rng: random.Random) -> Step:
    """The state after ``event``, and the effects."""
    return TRANSITIONS[type(event)](state, event, now, rng)
