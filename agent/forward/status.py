"""The status of a forwarding: values for programs, sentences for people. No secret is in them."""

from __future__ import annotations

import enum
from datetime import datetime

import msgspec

from agent.core.model import Cloud


class State(enum.StrEnum):
    """How one worker stands."""

    WAITING = "waiting"  # not asked yet, or about to be asked again
    SERVED = "served"
    NO_AGENT = "no-agent"
    NOT_ALLOWED = "not-allowed"  # the worker's user may not speak to its agent
    UNKNOWN_SIGNER = "unknown-signer"  # its agent was not told to believe this key
    EVIDENCE = "evidence"  # it did not prove to be one of those who may have the identity
    REFUSED = "refused"  # its agent refused the bundle
    ANOTHER = "another"  # somebody else's bundle came later
    UNREACHABLE = "unreachable"


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker.

    Attributes:
        name: the courier's name of it: the address of a Dask worker, a host.
        host: what it says that it is called.
        machine: whom its evidence proved it to be.
        reason: why it is not served, for a person.
        hint: what that person can do.
    """

    name: str
    state: State
    host: str = ""
    machine: str | None = None
    reason: str | None = None
    hint: str | None = None


class CloudStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the workers are served in one cloud.

    Attributes:
        who: as whom they act.
        until: until when with this program gone; ``None``: nothing ends it.
        renewed_by: what renews it on the workers, in words; ``None``: nothing but this program.
        trouble: why it could not be renewed here, last time.
    """

    cloud: Cloud
    who: str
    until: datetime | None
    renewed_by: str | None = None
    trouble: str | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, at one moment.

    Attributes:
        issuer: as whom bundles are signed.
        key: the public key they are signed with, on one line.
        until: until when the workers are served without this program: the first cloud's end.
        variables: names of the variables that are sent.
        trouble: why the cluster cannot be reached at the moment.
    """

    issuer: str
    key: str
    clouds: tuple[CloudStatus, ...] = ()
    variables: tuple[str, ...] = ()
    workers: tuple[WorkerStatus, ...] = ()
    renewals: int = 0
    trouble: str | None = None

    @property
    def served(self) -> int:
        """How many workers have the identity."""
        return sum(one.state is State.SERVED for one in self.workers)

    @property
    def until(self) -> datetime | None:
        """Until when the workers are served without this program; ``None``: nothing ends it."""
        return min((one.until for one in self.clouds if one.until is not None), default=None)

    def not_served(self) -> tuple[WorkerStatus, ...]:
        """Those that are not, each with its reason."""
        return tuple(one for one in self.workers if one.state is not State.SERVED)
