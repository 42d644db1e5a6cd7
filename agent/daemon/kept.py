"""Credentials kept over a restart, in memory that systemd holds for us: no file system, no name.

With them a process that was killed under load goes on where it stopped: the same credential, no call to any cloud.
Without them (no systemd, or a stop rather than a restart) everything is minted anew.

What the process before us knew of the time is kept too. No such memory outlives a boot of the kernel, so
CLOCK_BOOTTIME is one and the same for both, and a wall clock that is hours off decides nothing: no living credential is
taken for a dead one, nor a dead one for a living one.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from agent.core.errors import HostError
from agent.core.timekeeping import Witness
from agent.core.verdict import Key
from agent.daemon import codec
from agent.host.clock import SystemClock
from agent.identity import leftovers
from agent.identity.events import Holding, MintedFor
from agent.identity.store import Store

NAME = "credentials"
VERSION = 1


class _Kept(codec.Bearing, frozen=True, kw_only=True):
    key: Key
    digest: str
    ends: datetime | None


class Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one process leaves to the next.

    Attributes:
        uptime: CLOCK_BOOTTIME, in seconds, when it was left.
        now: what that process took the time for, at that instant.
        heard: whether anybody but an unsynchronised wall clock had told it so.
        believed: who had; ``None``: nobody, or a version before this one did not say.
        id_tokens: identity tokens that were minted, each with whom it speaks for.
        wall_error: by how many seconds the wall clock was ahead of ``now``.
        version: of this format. The first is not written: versions before it was there refuse what they do not know.
    """

    instance_id: str
    uptime: float
    now: datetime
    heard: bool
    credentials: list[_Kept]
    believed: Witness | None = None
    wall_error: float | None = None
    version: int = VERSION
    id_tokens: list[MintedFor] = []

    def time(self, clock: SystemClock) -> datetime:
        """What that process would take the time for now."""
        return self.now + timedelta(seconds=clock.uptime() - self.uptime)

    def teach(self, clock: SystemClock) -> None:
        """Tell the time to a clock that nobody has told it yet. To be done before anything is measured by it.

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
        return [
            Holding(kept.key, kept.digest, kept.credential, kept.ends + by if kept.ends is not None else None)
            for kept in self.credentials
            if kept.credential is not None and kept.counts(kept.ends)
        ]


def encode(store: Store, clock: SystemClock) -> bytes:
    """Everything the store holds, in the clear: for the sealed memory that only this unit gets back."""
    kept = [
        _Kept(key=held.key, digest=held.digest, ends=held.ends, **codec.either(held.credential))
        for held in leftovers.holdings(store.state)
    ]
    timekeeper = clock.timekeeper
    content = Kept(
        store.memory.instance_id,
        clock.uptime(),
        clock.now(),
        timekeeper.vouched,
        kept,
        timekeeper.believed if timekeeper.vouched else None,
        clock.wall_error_seconds,
        id_tokens=leftovers.id_tokens(store.state),
    )
    return codec.encode(content)


def decode(data: bytes, clock: SystemClock) -> Kept | None:
    """What was left to us; ``None`` when it makes no sense: everything is then minted anew."""
    try:
        kept = codec.decode(data, Kept, version=VERSION)
    except HostError:
        return None
    if not 0.0 <= kept.uptime <= clock.uptime() or not codec.reckonable(kept.now):
        return None
    return kept
