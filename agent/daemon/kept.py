"""Credentials kept over a restart, in memory that systemd holds for us: no file system, no name.

With them a process that was killed under load goes on where it stopped: the same credential, no call to any cloud.
Without them (no systemd, or a stop rather than a restart) everything is minted anew.

The previous process's knowledge of the time is kept too. No such memory outlives a boot of the kernel, so
CLOCK_BOOTTIME
is the same for both, and a wall clock that is hours off decides nothing: no live credential is taken for an ended one,
and no ended one for a live one.
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
    """The credentials that one process leaves to the next.

    Attributes:
        uptime: CLOCK_BOOTTIME, in seconds, when it was left.
        now: the time by that process, at that instant.
        heard: whether anybody but an unsynchronised wall clock had confirmed that.
        believed: who had; ``None``: nobody, or an earlier version did not say.
        id_tokens: identity tokens that were minted, each with its grant and bundle.
        wall_error: by how many seconds the wall clock was ahead of ``now``.
        version: of this format. Version 1 is not written: releases before this member refuse what they do not know.
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
        """The present time by that process."""
        return self.now + timedelta(seconds=clock.uptime() - self.uptime)

    def sync_clock(self, clock: SystemClock) -> None:
        """Set a clock that no witness has set yet. Call it before anything is measured by that clock.

        Bounded by the same rule as any other word of one witness (:mod:`agent.core.timekeeping`).
        """
        if self.heard:
            clock.adopt(self.believed or Witness.LINK, self.time(clock), self.wall_error)

    def holdings(self, instance_id: str, clock: SystemClock) -> list[Holding]:
        """The part that belongs to the machine of that name, with the ends moved to our clock.

        A machine that was copied with its memory (a snapshot of a running one) is another instance: the first one's
        credentials are not the second's.
        """
        if self.instance_id != instance_id:
            return []
        # Never later: that process may have been right, and the machine stopped in between. (An error of its clock that
        # was put right since would have ended them there too.)
        by = min(clock.now() - self.time(clock), timedelta())
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
    """Read what the previous process left; ``None`` when it makes no sense: everything is then minted anew."""
    try:
        kept = codec.decode(data, Kept, version=VERSION)
    except HostError:
        return None
    if not 0.0 <= kept.uptime <= clock.uptime() or not codec.reckonable(kept.now):
        return None
    return kept
