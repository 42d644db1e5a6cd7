"""The values that go in and out of the store: the operator's policy, the memory, verdicts, work, notices."""

from __future__ import annotations

import enum
from datetime import datetime, timedelta
from typing import Final

import msgspec

from agent.core.model import INSTANCE, Bundle, Cloud, Credential, Grant, OnExpiry
from agent.core.view import Facts, Origin

DEFAULT_ROLE_NAME: Final = "credential-agent"


CARDS: Final = "network_cards"
"""Beside the names of the firmware: the addresses that are burnt into this machine's network cards, by spaces."""
MOST_CARDS: Final = 64


class Policy(msgspec.Struct, frozen=True):
    """The operator's policy.

    Attributes:
        fallback: the clouds that may be served from the machine's own identity when no bundle decides them.
        on_expiry: what follows the end of a bundle that does not say so itself.
        grace: how long after the start to wait for a first bundle before falling back.
        horizon_lead: how long before a cloud's horizon ``horizon.near`` is logged.
        spread: the first mint after a new bundle is drawn from this long: a fleet must not arrive in one second.
        role_name: the EC2 role name under which a bundle's identity is listed when nothing better is known.
        facts: what the configuration says of region, project and the like.
    """

    fallback: frozenset[Cloud] = frozenset(Cloud)
    on_expiry: OnExpiry = OnExpiry.DENY
    grace: timedelta = timedelta(0)
    horizon_lead: timedelta = timedelta(hours=1)
    spread: timedelta = timedelta(0)
    role_name: str = DEFAULT_ROLE_NAME
    facts: Facts = Facts()


class Mark(msgspec.Struct, frozen=True):
    """The highest sequence number accepted from one stream, its bundle's digest, and when that was issued."""

    issuer: str
    subject: str
    seq: int
    digest: str
    issued_at: datetime | None = None  # earlier versions did not write it

    @property
    def stream(self) -> tuple[str, str]:
        """The stream that the sequence number counts in: issuer and subject."""
        return self.issuer, self.subject


class Memory(msgspec.Struct, frozen=True):
    """The state that must outlive the process.

    Attributes:
        instance_id: the machine it is about; on another machine (an image made from a running worker) it is void.
        marks: the high-water mark of each stream.
        decided: the clouds that a bundle once decided, with its ``on_expiry`` (``None``: it said nothing).
        active: the mark of the bundle in force, if its sealed bytes are kept; ``None`` after a withdrawal.
        floors: by issuer, what a bundle of a stream without a mark must have been issued after
            (:mod:`agent.identity.streams`).
        boot_id: the boot of the kernel in which it was written; empty when that was not known.
        firmware: what the firmware of the machine said it is, by the names of ``/sys/class/dmi/id``, and :data:`CARDS`.
    """

    instance_id: str = ""
    marks: tuple[Mark, ...] = ()
    decided: dict[Cloud, OnExpiry | None] = {}
    active: Mark | None = None
    floors: dict[str, datetime] = {}
    boot_id: str = ""
    firmware: dict[str, str] = {}

    def mark(self, issuer: str, subject: str) -> Mark | None:
        """The mark of that stream."""
        return next((m for m in self.marks if m.stream == (issuer, subject)), None)


class Accepted(msgspec.Struct, frozen=True):
    """The bundle is in force. Write ``memory`` down before anything else happens."""

    bundle: Bundle
    memory: Memory


class Same(msgspec.Struct, frozen=True):
    """Nothing new: this very content was accepted before."""

    seq: int


class Refused(msgspec.Struct, frozen=True):
    """The bundle is not taken; nothing changed.

    Attributes:
        code: a stable word for logs, metrics and acknowledgements.
        alarm: true when a person should look: two contents have one sequence number.
    """

    code: str
    reason: str
    alarm: bool = False


Verdict = Accepted | Same | Refused


class Key(msgspec.Struct, frozen=True):
    """Names a slot: a grant of the bundle, or the machine's own identity in one cloud."""

    cloud: Cloud
    grant_id: str

    @property
    def is_instance(self) -> bool:
        """Whether this is the machine's own identity."""
        return self.grant_id == INSTANCE


class Work(msgspec.Struct, frozen=True):
    """One credential to issue. It is not due again before ``CredentialIssued`` or ``IssuingFailed``.

    Attributes:
        grant: what to issue from; ``None`` for the machine's own identity.
        base: the live credential it stands on.
        slot: which slot it is for; a result that comes after another bundle took its place is dropped, one whose
            grant and bases a newer bundle carries on unchanged is taken.
    """

    key: Key
    grant: Grant | None
    base: Credential | None
    slot: int
    attempt: int


class Failure(msgspec.Struct, frozen=True):
    """Why a credential could not be issued, last time."""

    code: str
    message: str
    denied: bool
    at: datetime
    pause_seconds: float = 0.0  # for which the upstream asked not to be asked again


class Event(enum.StrEnum):
    """The notices that ``tick`` gives the controller, once each."""

    IDENTITY = "identity.changed"
    ENDED = "identity.ended"
    HORIZON = "horizon.near"


class Notice(msgspec.Struct, frozen=True):
    """One thing that happened to one cloud."""

    event: Event
    cloud: Cloud
    origin: Origin
    why: str
    horizon: datetime | None = None


class SlotStatus(msgspec.Struct, frozen=True):
    """One slot, for status and metrics: no secret."""

    cloud: Cloud
    id: str
    type: str
    expires_at: datetime | None
    renew_at: datetime | None
    attempts: int
    failure: Failure | None
