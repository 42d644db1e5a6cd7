"""The bundles of one forwarding: one stream, numbered, each to a group of agents; how long they are leased for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from agent import bundle
from agent.forward.enrolling import Agent
from agent.forward.local import Local
from agent.sender import assemble


class Sealer:
    """Seals what this computer sends. Safe to call from several threads at once.

    Args:
        local: what is sent.
        signer: our key.
        issuer: as whom we speak.
        subject: the stream of our bundles.
        lease: how long a worker serves at most without hearing from us; ``None``: as long as the credentials live.
        now: time, aware.
    """

    def __init__(
        self,
        local: Local,
        *,
        signer: bundle.SigningKey,
        issuer: str,
        subject: str,
        lease: timedelta | None,
        now: Callable[[], datetime],
    ) -> None:
        self._local = local
        self._signer = signer
        self._issuer = issuer
        self._subject = subject
        self._lease = lease
        self._now = now
        self._lock = threading.Lock()
        self._seq = 0
        self._renewal: datetime | None = None
        self._ends: tuple[int, datetime] | None = None  # of which version, and when the first of its leases ends
        self._over = False

    @property
    def renewal_due(self) -> datetime | None:
        """When leases are to be renewed."""
        return self._renewal

    @property
    def first_end(self) -> datetime | None:
        """When the first of the leases ends that the workers have now."""
        return None if self._ends is None else self._ends[1]

    def begin(self) -> None:
        """A new version is about to be sealed."""
        # A lease is renewed when a third of it is gone: who misses one renewal has another.
        self._renewal = None if self._lease is None else self._now() + self._lease / 3

    def seal(self, group: Sequence[Agent], longest: int | None, version: int) -> tuple[bytes | None, int]:
        """The bundle and its number; no bytes: there is nothing that could be sent.

        Args:
            group: agents that have been admitted, 256 at most.
            longest: how long they let us lease to them, in seconds.
            version: of what is sent.
        """
        now = self._now()
        collected, more = self._local.collected(now), self._local.more()
        with self._lock:
            if self._over or not (collected or more):
                return None, 0
            for agent in group:
                # Before the end can come: who ends it takes back what is on its way.
                agent.in_doubt = True
            lease = self._lease
            if longest is not None and (lease is None or lease.total_seconds() > longest):
                lease = timedelta(seconds=longest)
                soon = now + lease / 3
                self._renewal = soon if self._renewal is None else min(soon, self._renewal)
            if lease is not None:
                ends = now + lease
                if self._ends is not None and self._ends[0] == version:
                    ends = min(ends, self._ends[1])
                self._ends = version, ends
            seq = self._next(now)
        until = None if lease is None else now + lease
        return self._assembled(group, now, seq, collected=collected, more=more, lease_until=until), seq

    def withdrawal(self, group: Sequence[Agent]) -> bytes:
        """The bundle that takes it away from them."""
        now = self._now()
        with self._lock:
            seq = self._next(now)
        return self._assembled(group, now, seq, withdraw=True)

    def end(self) -> None:
        """Nothing is given to anybody from now on: what is taken away stays so."""
        with self._lock:
            self._over = True

    def _next(self, now: datetime) -> int:
        self._seq = max(int(now.timestamp() * 1000), self._seq + 1)
        return self._seq

    def _assembled(self, group: Sequence[Agent], now: datetime, seq: int, **content: Any) -> bytes:
        return assemble.assemble(
            signer=self._signer,
            recipients=_keys(group),
            now=now,
            issuer=self._issuer,
            subject=self._subject,
            seq=seq,
            **content,
        ).sealed


def _keys(group: Sequence[Agent]) -> list[bundle.RecipientKey]:
    # Two agents with one key (of an image, or handed out by a person) are one recipient.
    known = [found.recipient for one in group if (found := one.enrolment or one.former) is not None]
    return list({recipient.kid: recipient for recipient in known}.values())
