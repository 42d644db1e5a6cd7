"""The state of this worker, as one frozen value; and the smallest questions that can be asked of it.

One *identity* is one stream (issuer, subject) is one :class:`InForce`: a bundle, the slots of its grants, and what its
predecessor left. Today at most one is in force. Everything that concerns one identity takes it as a parameter, and its
keys are its own; several side by side are a mapping of them here, and a rule for which of them answers whom.

Beside it are the machine's own slots, one for each cloud, which belong to no bundle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from agent.core.model import (
    INSTANCE,
    Bundle,
    Cloud,
    Credential,
    GoogleToken,
    Grant,
    IdToken,
    OnExpiry,
    base_cloud_of,
    base_of,
)
from agent.core.verdict import Key, Memory, Policy
from agent.core.view import Facts
from agent.identity.graph import role_name_of
from agent.identity.slots import Held, Slot

NAMES_KEPT: Final = 64
"""How many names are answered to: with a role for each job they would grow without end."""


class Previous(NamedTuple):
    """What an earlier bundle left in one cloud, served until the one in force has a credential of its own.

    Attributes:
        name: under which it is listed.
        lease: of the bundle that it came of.
        stream: issuer and subject of that bundle; ``None``: an earlier version left it.
        signer: the key id of its signature; empty: as there.
    """

    held: Held
    name: str
    lease: datetime | None
    stream: tuple[str, str] | None = None
    signer: str = ""

    def live(self, now: datetime) -> bool:
        """Whether it may still be served."""
        return now < self.held.ends and (self.lease is None or now < self.lease)


class InForce(msgspec.Struct, frozen=True):
    """One identity: a bundle that was accepted, and what was made of it.

    Attributes:
        routes: by cloud, the slot that serves it.
        slots: of every grant that a route leads to.
        previous: by cloud, what its predecessor left.
    """

    bundle: Bundle
    routes: Mapping[Cloud, Key]
    slots: Mapping[Key, Slot]
    previous: Mapping[Cloud, Previous]

    def routed(self, cloud: Cloud) -> Slot | None:
        """The slot that ``cloud`` is served from; ``None`` where the bundle says nothing of that cloud."""
        key = self.routes.get(cloud)
        return self.slots[key] if key is not None else None

    def lease_over(self, now: datetime) -> bool:
        """Whether its sender lets nothing of it be served any more."""
        return self.bundle.lease_until is not None and self.bundle.lease_until <= now


class Names(NamedTuple):
    """The names under which one cloud's identities were listed: in order, the newest last; and for looking up."""

    listed: tuple[str, ...] = ()
    known: frozenset[str] = frozenset()

    def and_(self, name: str) -> Names:
        """These names and ``name``, the newest last; the oldest goes when there are too many."""
        if name in self.known:
            return self
        listed = (*self.listed, name)[-NAMES_KEPT:]
        return Names(listed, frozenset(listed))


class Told(NamedTuple):
    """The last notice of one cloud (:func:`agent.identity.notices.notice`)."""

    standing: tuple[object, ...] | None = None
    warned: bool = False


class State(msgspec.Struct, frozen=True):
    """See the module. Nothing else is remembered from one event to the next.

    Attributes:
        policy: what the operator decided.
        memory: what must outlive the process.
        brought: what the memory would be had this machine begun with none: of the bundles that were brought to it,
            and not of what it found. Should the memory turn out to be another machine's, this is ours.
        grace_until: how long a first bundle is waited for.
        awaited: by cloud, why one is waited for longer than that.
        identity: what is in force; ``None``: no bundle.
        machine: the machine's own slots, where its identity is served, may be, or is a source.
        resuming: why the bundle in force before a restart is not in force yet; ``None``: nothing is being opened.
        doubt: why it is not known whether the memory is this machine's; ``None``: it is.
        names: by cloud.
        id_tokens: by audience, with what each was minted from.
        observed: what the machine's real metadata said of region, zone and the like.
        hurried_at: when everything was last asked for anew for the sake of the time.
        told: by cloud.
        lease_told: whether it was noticed that the lease is over.
        numbered: slots made so far.
        version: rises whenever any answer may have changed, apart from the passing of time.
    """

    policy: Policy
    memory: Memory
    grace_until: datetime
    brought: Memory = Memory()
    awaited: Mapping[Cloud, str] = {}
    identity: InForce | None = None
    machine: Mapping[Cloud, Slot] = {}
    resuming: str | None = None
    doubt: str | None = None
    names: Mapping[Cloud, Names] = msgspec.field(default_factory=lambda: dict.fromkeys(Cloud, Names()))
    id_tokens: Mapping[str, tuple[IdToken, Grant | None]] = {}
    observed: Facts = Facts()
    hurried_at: datetime | None = None
    told: Mapping[Cloud, Told] = msgspec.field(default_factory=lambda: dict.fromkeys(Cloud, Told()))
    lease_told: bool = False
    numbered: int = 0
    version: int = 0

    @property
    def bundle(self) -> Bundle | None:
        """The bundle in force."""
        return self.identity.bundle if self.identity is not None else None

    @property
    def being_opened(self) -> str | None:
        """Why the bundle that was in force before the restart is not yet."""
        return self.resuming if self.identity is None and self.memory.active is not None else None


def was_brought(state: State) -> bool:
    """Whether the bundle in force was brought to this machine, and not only found on it."""
    bundle = state.bundle
    mark = state.brought.mark(bundle.issuer, bundle.subject) if bundle is not None else None
    return bundle is not None and mark is not None and (mark.seq, mark.digest) == (bundle.seq, bundle.digest)


def changed(state: State) -> State:
    """An answer may have changed."""
    return replace(state, version=state.version + 1)


def slots_of(state: State) -> Iterator[Slot]:
    """Every slot: the machine's own, then those of the bundle."""
    yield from state.machine.values()
    if state.identity is not None:
        yield from state.identity.slots.values()


def slot_at(state: State, key: Key) -> Slot | None:
    """The slot of that key."""
    if key.is_instance:
        return state.machine.get(key.cloud)
    return state.identity.slots.get(key) if state.identity is not None else None


def with_slot(state: State, slot: Slot) -> State:
    """The state with that slot in its place."""
    if slot.key.is_instance:
        return replace(state, machine={**state.machine, slot.key.cloud: slot})
    if state.identity is None:
        raise AssertionError("internal error: a slot of a bundle that is not in force")
    identity = replace(state.identity, slots={**state.identity.slots, slot.key: slot})
    return replace(state, identity=identity)


def source_of(state: State, slot: Slot) -> Slot | None:
    """The slot whose credential ``slot`` is issued from; ``None``: it needs none."""
    if slot.grant is None:
        return None
    base, cloud = base_of(slot.grant), base_cloud_of(slot.grant)
    if base is None or cloud is None:
        return None
    found = slot_at(state, Key(cloud, base))
    if found is None:
        raise AssertionError(f"internal error: no slot for the source {base!r}")
    return found


def digest_of(state: State, grant: Grant | None) -> str:
    """The digest of the bundle that ``grant`` is of; empty for the machine's own identity, and without a bundle."""
    return state.bundle.digest if state.bundle is not None and grant is not None else ""


def serves(state: State, cloud: Cloud) -> Key:
    """The key of the slot that ``cloud`` is served from, if it is served at all."""
    key = state.identity.routes.get(cloud) if state.identity is not None else None
    return key if key is not None else Key(cloud, INSTANCE)


def is_routed(state: State, cloud: Cloud) -> bool:
    """Whether the bundle in force says what ``cloud`` is served from."""
    return state.identity is not None and cloud in state.identity.routes


def lease_over(state: State, now: datetime) -> bool:
    """Whether the lease of the bundle in force is over."""
    return state.identity is not None and state.identity.lease_over(now)


def on_expiry(state: State, cloud: Cloud) -> OnExpiry:
    """The policy for the end of ``cloud``'s identity: its bundle's, or else the configuration's."""
    bundle = state.bundle
    if bundle is not None and cloud in bundle.routes:
        return bundle.on_expiry or state.policy.on_expiry
    return state.memory.decided.get(cloud) or state.policy.on_expiry


def may_fall_back(state: State, cloud: Cloud) -> bool:
    """Whether the machine's own identity may follow a bundle's in ``cloud``."""
    return cloud in state.policy.fallback and on_expiry(state, cloud) is OnExpiry.FALLBACK


def name_of(state: State, credential: Credential) -> str:
    """The name under which a credential is listed: EC2's role name, or the Google account's e-mail."""
    if isinstance(credential, GoogleToken):
        return credential.email or "default"
    return credential.role_name or role_name_of(credential.role_arn) or state.policy.role_name


def named(state: State, cloud: Cloud, credential: Credential) -> State:
    """The state in which ``credential`` has been listed for ``cloud``."""
    names = state.names[cloud].and_(name_of(state, credential))
    return state if names is state.names[cloud] else replace(state, names={**state.names, cloud: names})
