"""Credentials kept over a restart, in memory that systemd holds for us: no file system, no name.

With them a process that was killed under load goes on where it stopped: the same credential, no call to any cloud.
Without them (no systemd, or a stop rather than a restart) everything is minted anew.

What the process before us knew of the time is kept too. No such memory outlives a boot of the kernel, so
CLOCK_BOOTTIME is one and the same for both, and a wall clock that is hours off judges nothing: neither takes it a
living credential for a dead one, nor the other way round.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from agent.core.model import AwsCredential, GoogleToken
from agent.core.secret import Secret
from agent.core.timekeeping import Witness
from agent.core.verdict import Key
from agent.host.clock import SystemClock
from agent.identity import leftovers
from agent.identity.events import Holding
from agent.identity.store import Store

NAME = "credentials"
FIRST_YEAR, LAST_YEAR = 1970, 9000


class _Kept(msgspec.Struct, frozen=True):
    key: Key
    digest: str
    ends: datetime | None
    aws: AwsCredential | None = None
    google: GoogleToken | None = None


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one process leaves to the next.

    Attributes:
        uptime: CLOCK_BOOTTIME, in seconds, when it was left.
        now: what that process took the time for, at that instant.
        heard: whether anybody but an unsynchronised wall clock had told it so.
        believed: who had; ``None``: nobody, or a version before this one did not say.
        wall_error: by how many seconds the wall clock was ahead of ``now``.
    """

    instance_id: str
    uptime: float
    now: datetime
    heard: bool
    credentials: list[_Kept]
    believed: Witness | None = None
    wall_error: float | None = None

    def time(self, clock: SystemClock) -> datetime:
        """What that process would take the time for now."""
        return self.now + timedelta(seconds=clock.uptime() - self.uptime)

    def teach(self, clock: SystemClock) -> None:
        """Tell the time to a clock that nobody has told it yet. To be done before anything is judged by it.

        Bounded by the same rule as any other word of one witness (:mod:`agent.core.timekeeping`).
        """
        if self.heard:
            clock.adopt(self.believed or Witness.LINK, self.time(clock), self.wall_error)

    def holdings(self, instance_id: str, clock: SystemClock) -> list[Holding]:
        """What of it may still belong to the machine of that name, with its ends moved to our clock.

        A machine that was copied with its memory (a snapshot of a running one) is another instance: what was the first
        one's own is not the second's.
        """
        if self.instance_id != instance_id:
            return []
        by = clock.now() - self.time(clock)
        if self.heard and by > timedelta():
            by = timedelta()  # that process was right: the machine was stopped in between, and no end is later for it
        found = [(kept, kept.aws or kept.google) for kept in self.credentials]
        return [
            Holding(kept.key, kept.digest, credential, kept.ends + by if kept.ends is not None else None)
            for kept, credential in found
            if credential is not None
        ]


def encode(store: Store, clock: SystemClock) -> bytes:
    """Everything the store holds, in the clear: for the sealed memory that only this unit gets back."""
    kept = [
        _Kept(
            held.key,
            held.digest,
            held.ends,
            held.credential if isinstance(held.credential, AwsCredential) else None,
            held.credential if isinstance(held.credential, GoogleToken) else None,
        )
        for held in leftovers.holdings(store.state)
    ]
    keeper = clock.keeper
    content = Kept(
        store.memory.instance_id,
        clock.uptime(),
        clock.now(),
        keeper.vouched,
        kept,
        keeper.believed if keeper.vouched else None,
        clock.wall_error_seconds,
    )
    return msgspec.json.encode(content, enc_hook=reveal)


def decode(data: bytes, clock: SystemClock) -> Kept | None:
    """What was left to us; ``None`` when it makes no sense: everything is then minted anew."""
    try:
        kept = msgspec.json.decode(data, type=Kept, dec_hook=hide)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    instants = [kept.now]
    for one in kept.credentials:
        credential = one.aws or one.google
        if credential is not None:
            instants += [credential.issued_at, credential.expires_at, one.ends or kept.now]
    if any(instant.tzinfo != UTC for instant in instants) or not 0.0 <= kept.uptime <= clock.uptime():
        return None
    # What is counted from such a time cannot be reckoned with: a datetime ends with the year 9999.
    if any(
        not FIRST_YEAR <= instant.year < LAST_YEAR
        for instant in (kept.now, *(one.ends or kept.now for one in kept.credentials))
    ):
        return None
    return kept


def reveal(value: Any) -> Any:
    """A secret in the clear: for what this unit alone gets back, and nothing else."""
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError


def hide(kind: type, value: Any) -> Any:
    """The other way round."""
    return kind(value)
