"""Everything that can happen to a worker's identity, and everything that is to be done about it: frozen values.

The shell (:class:`agent.identity.store.Store`) turns calls into events and hands the effects back. Each has one
function that says what it does, in the table of :mod:`agent.identity.transitions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec

from agent.core.model import Bundle, Cloud, Credential, Grant, IdToken
from agent.core.verdict import Accepted, Failure, Key, Memory, Notice, Policy, Work
from agent.core.view import Facts

# -- the events -------------------------------------------------------------------------------------------------------


class BundleAccepted(msgspec.Struct, frozen=True):
    """A bundle was accepted, and what must be remembered of it is written down.

    Attributes:
        again: it is our own copy of what was accepted before, by an earlier process or by this one: nobody brought it.
    """

    verdict: Accepted
    again: bool = False


class BundleBrought(msgspec.Struct, frozen=True):
    """A bundle that was accepted before was brought to this process as well."""

    bundle: Bundle


class BundleRevoked(msgspec.Struct, frozen=True):
    """The bundle in force would not be resumed any more (its signer is not believed). The memory stays as it is."""


class TrustNarrowed(msgspec.Struct, frozen=True):
    """Some signer may say less than before, or we answer to fewer audiences.

    Attributes:
        kept: the key ids of those who may say all that they might.
    """

    kept: frozenset[str]


class CredentialIssued(msgspec.Struct, frozen=True):
    """A credential was issued.

    Attributes:
        credential: ``None`` says that the machine has no identity in that cloud (only of the machine's own).
        ends: its end on our own clock, counted from the moment of asking; ``None`` when only the instant that it names
            is known. With it, a clock that is hours off hides no live credential and shows no dead one.
        began: the moment of asking, from which ``ends`` was counted; ``None``: now.
    """

    work: Work
    credential: Credential | None
    ends: datetime | None = None
    began: datetime | None = None


class IssuingFailed(msgspec.Struct, frozen=True):
    """A credential could not be issued."""

    work: Work
    failure: Failure


class IdTokenMinted(msgspec.Struct, frozen=True):
    """An identity token was minted, from ``grant`` as :func:`agent.identity.standing.google_source` had said."""

    token: IdToken
    grant: Grant | None


class TimePassed(msgspec.Struct, frozen=True):
    """Look at what is due. Effects: each :class:`Work` that is to be begun now."""


class Ticked(msgspec.Struct, frozen=True):
    """Look at what became of each cloud. Effects: each :class:`Notice`, once."""


class ClockMoved(msgspec.Struct, frozen=True):
    """Our clock was moved by this; negative is back."""

    by: timedelta


class TimeDoubted(msgspec.Struct, frozen=True):
    """There is doubt about our clock, and the clouds' answers say what time it is: ask for everything anew soon."""


class PolicyChanged(msgspec.Struct, frozen=True):
    """The operator decided otherwise (a reload). The grace is not started anew."""

    policy: Policy


class GraceMoved(msgspec.Struct, frozen=True):
    """A first bundle is waited for until then: what would bring it could not be asked so far."""

    until: datetime


class FirstAwaited(msgspec.Struct, frozen=True):
    """A first bundle may be here that could not be looked at yet.

    Attributes:
        why: what is waited for, by cloud, after the boot grace too. Not in clouds in which nothing was waited for when
            the grace ended: what is served there since then goes on.
    """

    why: Mapping[Cloud, str]


class MachineObserved(msgspec.Struct, frozen=True):
    """The machine's real metadata said where it stands."""

    facts: Facts


class MemoryAdopted(msgspec.Struct, frozen=True):
    """The memory is this machine's, under the name it has, learned now or late.

    Attributes:
        instance_id: empty while it is not known, which takes no known name away.
        boot_id: of the running kernel.
        firmware: what the firmware says this machine is.
    """

    instance_id: str
    boot_id: str = ""
    firmware: Mapping[str, str] = {}


class MemoryReset(msgspec.Struct, frozen=True):
    """The memory is another machine's: this one was made from an image of it. What was brought to this one stays."""

    instance_id: str
    boot_id: str = ""
    firmware: Mapping[str, str] = {}


class MemoryRecalled(msgspec.Struct, frozen=True):
    """The memory that the system refused to read at the start was read after all, and is this machine's."""

    memory: Memory


class MemoryDoubted(msgspec.Struct, frozen=True):
    """It is not known whether the memory is this machine's."""

    why: str


class BundleResuming(msgspec.Struct, frozen=True):
    """The bundle in force before a restart is being opened; ``None``: it cannot be opened, for good."""

    why: str | None


class Holding(NamedTuple):
    """A credential that an earlier process held, or that is left to the next one.

    Attributes:
        digest: of the bundle it came of; empty for the machine's own.
        ends: its end, counted on our clock; ``None`` when the instant that it names is its end.
    """

    key: Key
    digest: str
    credential: Credential
    ends: datetime | None


class Waiting(NamedTuple):
    """A credential that could not be issued so far, for the process that comes after this one.

    Attributes:
        digest: as in :class:`Holding`.
        attempts: failures in a row.
        again_at: when the next attempt was due, on our clock.
    """

    key: Key
    digest: str
    attempts: int
    again_at: datetime
    failure: Failure


class MintedFor(NamedTuple):
    """An identity token of an earlier process, by grant (or the machine's own) and bundle. No event of its own."""

    token: IdToken
    grant_id: str
    digest: str


class Remnant(NamedTuple):
    """A credential of an earlier bundle in one cloud, served until the one in force has a credential of its own.

    Attributes:
        digest: of the bundle *in force*, beside which it is served.
        ends: as in :class:`Holding`.
        name: under which it is listed.
        lease: of the bundle that it came of; so are ``stream`` (issuer and subject) and ``signer`` (a key id). Those
            two are empty where an earlier version left it.
    """

    cloud: Cloud
    digest: str
    credential: Credential
    ends: datetime | None
    name: str
    lease: datetime | None
    stream: tuple[str, str] | None = None
    signer: str = ""


Event = (
    BundleAccepted
    | BundleBrought
    | BundleRevoked
    | TrustNarrowed
    | CredentialIssued
    | IssuingFailed
    | IdTokenMinted
    | TimePassed
    | Ticked
    | ClockMoved
    | TimeDoubted
    | PolicyChanged
    | GraceMoved
    | FirstAwaited
    | MachineObserved
    | MemoryAdopted
    | MemoryReset
    | MemoryRecalled
    | MemoryDoubted
    | BundleResuming
    | Holding
    | Waiting
    | Remnant
)

# -- the effects ------------------------------------------------------------------------------------------------------


class Applied(msgspec.Struct, frozen=True):
    """The event had its effect: something that was there to take was taken."""


Effect = Work | Notice | Applied
