"""The bundles of one forwarding: one stream, numbered, each to a group of agents; how long they are leased for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from agent import bundle
from agent.enrol import Enrolment
from agent.forward.agents import Agent
from agent.forward.local import Local
from agent.sender import assemble


class Sealed(NamedTuple):
    """A bundle.

    Attributes:
        data: its bytes.
        seq: its number.
        ends: when the lease ends that it gives; ``None``: it gives none.
        renewal: when that is to be renewed.
    """

    data: bytes
    seq: int
    ends: datetime | None
    renewal: datetime | None


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
        self._over = False

    def seal(self, group: Sequence[Agent], keys: Sequence[Enrolment], longest: int | None) -> Sealed | None:
        """A bundle for agents; ``None``: there is nothing that could be sent.

        Args:
            group: the agents.
            keys: theirs, by which they have been admitted; 256 at most.
            longest: how long they let us lease to them, in seconds.
        """
        now = self._now()
        collected, more = self._local.collected(now), self._local.more()
        with self._lock:
            if self._over or not (collected or more):
                return None
            for agent in group:
                # Before the end can come: who ends it takes back what is on its way.
                agent.in_doubt = True
            seq = self._next(now)
        lease = self._lease
        if longest is not None and (lease is None or lease.total_seconds() > longest):
            lease = timedelta(seconds=longest)
        ends = None if lease is None else now + lease
        sealed = self._assembled(_recipients(keys), now, seq, collected=collected, more=more, lease_until=ends)
        # A lease is renewed when a third of it is gone: who misses one renewal has another.
        return Sealed(sealed, seq, ends, None if lease is None else now + lease / 3)

    def withdrawal(self, group: Sequence[Agent]) -> bytes:
        """The bundle that takes it away from them, sealed to whatever key they may have by now: it holds no secret."""
        keys = [key for one in group for key in one.every_key()]
        now = self._now()
        with self._lock:
            seq = self._next(now)
        return self._assembled(_recipients(keys), now, seq, withdraw=True)

    def end(self) -> None:
        """Nothing is given to anybody from now on: what is taken away stays so."""
        with self._lock:
            self._over = True

    def _next(self, now: datetime) -> int:
        self._seq = max(int(now.timestamp() * 1000), self._seq + 1)
        return self._seq

    def _assembled(self, recipients: list[bundle.RecipientKey], now: datetime, seq: int, **content: Any) -> bytes:
        return assemble.assemble(
            signer=self._signer,
            recipients=recipients,
            now=now,
            issuer=self._issuer,
            subject=self._subject,
            seq=seq,
            **content,
        ).sealed


def _recipients(known: Iterable[Enrolment]) -> list[bundle.RecipientKey]:
    # Two agents with one key (of an image, or handed out by a person) are one recipient.
    return list({found.thumbprint: found.recipient for found in known}.values())
