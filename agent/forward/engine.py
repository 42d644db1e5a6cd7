"""One round of a forwarding: look who is there, enrol new workers, seal and deliver what is due.

No thread and no clock of its own: :mod:`agent.forward.session` drives it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from agent import bundle
from agent.core.errors import AgentError, CourierError
from agent.forward import signing
from agent.forward.courier import Courier, Job, Reply
from agent.forward.enrolling import Admission, Agent, Roster, answered
from agent.forward.local import Local
from agent.forward.status import CloudStatus, State, Status
from agent.sender import assemble
from agent.wire import names

GROUP: Final = 16
"""Recipients of one bundle. It may have 256 (FORMAT.md), but each recipient gets the entries of all: what a scheduler
sends out grows with the group, and what a smaller group saves there it costs in seals and in bytes to the scheduler.
``tests/simulation/forwarding.py`` measures it."""

CHUNK: Final = 512
"""So many workers are dealt with before we look whether somebody new waits."""

_ENROL_AGAIN: Final = frozenset({"recipient", "unwrap", "forwarded", "audience"})
"""Refusals that say that the agent has another key than the one it enrolled with."""

T = TypeVar("T")


class Engine:
    """Serves an identity to the workers of a courier.

    Args:
        courier: reaches them.
        local: what is sent.
        admission: who may have it; ``None``: made from the identity, once that is known.
        signer: our key.
        issuer: as whom we speak.
        subject: the stream of our bundles.
        lease: how long a worker serves at most without hearing from us; ``None``: as long as the credentials live.
        now: time, aware.
        group: recipients of one bundle, 256 at most.
    """

    def __init__(
        self,
        courier: Courier,
        local: Local,
        admission: Callable[[Local], Admission],
        *,
        signer: bundle.SigningKey,
        issuer: str,
        subject: str,
        lease: timedelta | None,
        now: Callable[[], datetime],
        group: int = GROUP,
    ) -> None:
        self._courier = courier
        self._local = local
        self._admission = admission
        self._signer = signer
        self._issuer = issuer
        self._subject = subject
        self._lease = lease
        self._now = now
        self._group = group
        self._roster = Roster(courier, session=subject, kid=signer.kid)
        self._version = 0
        self._seq = 0
        self._leased: datetime | None = None
        self._ends: tuple[int, datetime] | None = None  # of which version, and when the first of its leases ends
        self._trouble: str | None = None
        self.renewals = 0

    # -- the identity

    def collect(self) -> bool:
        """Look at this computer; true if there is something new to deliver.

        Raises:
            AgentError: the first time: there is nothing to send.
        """
        now = self._now()
        if self._local.collect(now) or self._version == 0 or (self._leased is not None and now >= self._leased):
            self._version += 1
            self.renewals = self._version - 1
            # A lease is renewed when a third of it is gone: who misses one renewal has another.
            self._leased = None if self._lease is None else now + self._lease / 3
            return True
        return False

    def due(self) -> datetime | None:
        """When :meth:`collect` is due."""
        return min((at for at in (self._local.due(), self._leased) if at is not None), default=None)

    # -- the workers

    def present(self) -> Sequence[str]:
        """Look who is there now, and forget who is gone."""
        names = self._courier.workers()
        self._roster.keep(set(names))
        self._trouble = None
        return names

    def lost(self, error: Exception) -> None:
        """The cluster cannot be reached."""
        message = error.message if isinstance(error, AgentError) else f"{type(error).__name__}: {error}"
        self._trouble = f"the cluster cannot be reached: {message}"[:400]

    def serve(self, names: Sequence[str]) -> None:
        """Give the identity to workers that do not have it; at most :data:`CHUNK` of them."""
        documents = self._roster.look(names)
        roster = self._roster
        reached = [roster.agents[at] for at in documents]
        for agent in reached:
            self._compare(agent, documents[agent.id])
        wanting = [agent for agent in reached if agent.version < self._version]
        told = self._bring(wanting)
        waiting = [name for name in names if name not in told]
        if waiting:
            roster.ask(Job(steps=(), after="refused", session=self._subject), waiting)

    def renew(self) -> Iterator[None]:
        """Deliver what is new to the agents that we know; yields between chunks."""
        known = [agent for agent in self._roster.agents.values() if agent.workers and agent.version < self._version]
        for some in _slices(known, CHUNK):
            self._bring(some)
            yield

    def _compare(self, agent: Agent, document: dict[str, Any]) -> None:
        """Has it still what we brought? Somebody may have taken that away, or its memory was lost."""
        keys = document.get("keys")
        if agent.enrolment is not None and isinstance(keys, list) and agent.enrolment.recipient.kid not in keys:
            agent.enrolment = None
        if agent.version <= 0:
            return
        found = document.get("bundle")
        if not isinstance(found, dict):
            agent.version = 0
        elif found.get("issuer") != self._issuer:
            agent.say(State.ANOTHER, f"it serves a bundle of {str(found.get('issuer'))[:100]!r} that came after ours")
        elif agent.state is State.ANOTHER:
            agent.version = 0

    def _bring(self, agents: Sequence[Agent]) -> set[str]:
        """Enrol and deliver; returns the workers that were told."""
        if not agents:
            return set()
        admission = self._admission(self._local)
        # Who may have the identity of another account is asked anew: somebody may have signed on as another meanwhile.
        unknown = [one for one in agents if one.workers and (one.enrolment is None or one.admission != admission)]
        if unknown:
            self._roster.enrol(unknown, admission)
        again, told = self._deliver([agent for agent in agents if agent.enrolment is not None and agent.workers])
        if again:
            self._roster.enrol(again, admission)
            _, more = self._deliver([agent for agent in again if agent.enrolment is not None])
            told |= more
        return told

    def _deliver(self, agents: Sequence[Agent]) -> tuple[list[Agent], set[str]]:
        again: list[Agent] = []
        told: set[str] = set()
        by_lease: dict[int | None, list[Agent]] = defaultdict(list)
        for agent in agents:
            by_lease[agent.longest].append(agent)
        for longest, some in by_lease.items():
            for group in _slices(some, self._group):
                sealed, seq = self._seal(group, longest)
                if sealed is None:
                    continue
                job = Job(steps=(("PUT", names.BUNDLE_PATH, sealed),), after="served", session=self._subject)
                replies = self._roster.ask(job, [self._roster.speaker(agent) for agent in group])
                for agent in group:
                    speaker = self._roster.speaker(agent)
                    told.add(speaker)
                    if not self._hear(agent, replies[speaker], seq):
                        again.append(agent)
        return again, told

    def _seal(self, group: Sequence[Agent], longest: int | None) -> tuple[bytes | None, int]:
        now = self._now()
        collected, more = self._local.collected(now), self._local.more()
        if not collected and not more:
            for agent in group:
                agent.say(State.WAITING, "the identity that was forwarded has ended", "sign in again on this computer")
            return None, 0
        lease = self._lease
        if longest is not None and (lease is None or lease.total_seconds() > longest):
            lease = timedelta(seconds=longest)
            soon = now + lease / 3
            self._leased = soon if self._leased is None else min(soon, self._leased)
        if lease is not None:
            ends = now + lease
            if self._ends is not None and self._ends[0] == self._version:
                ends = min(ends, self._ends[1])
            self._ends = self._version, ends
        until = None if lease is None else now + lease
        return self._assembled(group, now, collected=collected, more=more, lease_until=until), self._seq

    def _assembled(self, group: Sequence[Agent], now: datetime, **content: Any) -> bytes:
        """The next bundle of our stream, to the keys of these agents."""
        self._seq = max(int(now.timestamp() * 1000), self._seq + 1)
        return assemble.assemble(
            signer=self._signer,
            recipients=_keys(group),
            now=now,
            issuer=self._issuer,
            subject=self._subject,
            seq=self._seq,
            **content,
        ).sealed

    def _hear(self, agent: Agent, reply: Reply | CourierError, seq: int) -> bool:
        """Take note of a verdict; false: enrol anew and try again."""
        try:
            answer = answered(reply)
            verdict = json.loads(answer.text)
            if not isinstance(verdict, dict):
                raise CourierError(f"the agent on this worker said {answer.status}")  # noqa: TRY301
        except (CourierError, ValueError, RecursionError) as error:
            agent.say(State.UNREACHABLE, str(error)[:300])
            return True
        if answer.status == 200:
            agent.version, agent.seq = self._version, seq
            agent.say(State.SERVED)
            return True
        code, reason = str(verdict.get("code")), str(verdict.get("reason") or verdict.get("error"))[:400]
        if code in _ENROL_AGAIN and agent.version != -1:
            agent.version, agent.enrolment = -1, None
            return False
        if code in {"signer", "issuer"}:
            agent.say(State.UNKNOWN_SIGNER, reason, signing.at_launch(self._signer, self._issuer))
        else:
            agent.say(State.REFUSED, reason)
        return True

    def withdraw(self) -> int:
        """Take the identity away from every agent that has it from us; returns from how many."""
        having = [agent for agent in self._roster.agents.values() if agent.version > 0 and agent.workers]
        taken = 0
        for group in _slices([agent for agent in having if agent.enrolment or agent.former], self._group):
            sealed = self._assembled(group, self._now(), withdraw=True)
            job = Job(steps=(("PUT", names.BUNDLE_PATH, sealed),), after="withdrawn", session=self._subject)
            replies = self._roster.ask(job, [self._roster.speaker(agent) for agent in group])
            for agent in group:
                reply = replies[self._roster.speaker(agent)]
                if isinstance(reply, Reply) and reply.answers and reply.answers[0].status == 200:
                    taken += 1
                    agent.version = 0
                    agent.say(State.WAITING, "withdrawn")
        return taken

    # -- what is said of it

    def status(self) -> Status:
        """How the forwarding stands: its clouds and its workers."""
        leased = None if self._ends is None else self._ends[1]
        clouds = []
        for cloud, part in self._local.parts.items():
            ends = [at for at in (part.forecast.until, leased) if at is not None]
            clouds.append(
                CloudStatus(
                    cloud=cloud,
                    who=part.collected.who,
                    until=min(ends, default=None),
                    renewed_by=part.forecast.renewed_by,
                    trouble=part.trouble,
                )
            )
        return Status(
            issuer=self._issuer,
            key=signing.public_line(self._signer),
            clouds=tuple(clouds),
            variables=self._local.variables,
            workers=self._roster.statuses(),
            renewals=self.renewals,
            trouble=self._trouble,
        )


def _keys(group: Sequence[Agent]) -> list[bundle.RecipientKey]:
    # Two agents with one key (of an image, or handed out by a person) are one recipient.
    known = [found.recipient for one in group if (found := one.enrolment or one.former) is not None]
    return list({recipient.kid: recipient for recipient in known}.values())


def _slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
