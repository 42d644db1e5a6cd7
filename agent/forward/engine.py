"""One round of a forwarding: look who is there, enrol new workers, seal and deliver what is due.

No clock of its own: :mod:`agent.forward.session` drives it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from agent import bundle
from agent.core.errors import AgentError, CourierError
from agent.forward import signing
from agent.forward.agents import Admission, Agent
from agent.forward.courier import PROMPT_SECONDS, Courier, Job, Reply, group_of, slices
from agent.forward.enrolling import Roster, answered
from agent.forward.local import Local
from agent.forward.sealing import Sealed, Sealer
from agent.forward.status import CloudStatus, State, Status
from agent.forward.taking_back import TakingBack, having, side_by_side
from agent.wire import names

_ENROL_AGAIN: Final = frozenset({"recipient", "unwrap", "forwarded", "audience"})
"""Refusals that say that the agent has another key than the one it enrolled with."""

LAST_TRY: Final = timedelta(seconds=10)
"""So shortly before its end a lease is not tried to be renewed apart from the looks at all workers."""

CHUNK: Final = 512
"""So many workers are dealt with before we look whether somebody new waits."""


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
    ) -> None:
        self._courier = courier
        self._local = local
        self._admission = admission
        self._signer = signer
        self._issuer = issuer
        self._subject = subject
        self._now = now
        self._group = group_of(courier)
        self._roster = Roster(courier, session=subject, kid=signer.kid)
        self._sealer = Sealer(local, signer=signer, issuer=issuer, subject=subject, lease=lease, now=now)
        self._version = 0
        self._trouble: str | None = None
        self.renewals = 0

    # -- the identity

    def collect(self) -> bool:
        """Look at this computer; true if there is something to deliver: :meth:`renew`.

        Raises:
            AgentError: the first time: there is nothing to send.
        """
        now = self._now()
        if self._local.collect(now) or self._version == 0:
            self._version += 1
            self.renewals = self._version - 1
            return True
        return any(at <= now for at in self._leases_due())

    def due(self) -> datetime | None:
        """When :meth:`collect` is due."""
        return min((at for at in (self._local.due(), *self._leases_due()) if at is not None), default=None)

    def _leases_due(self) -> list[datetime]:
        return [one.renewal for one in self._roster.known() if one.renewal is not None and one.workers]

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

    @property
    def late(self) -> frozenset[str]:
        """The workers of whom an answer is outstanding: they are served apart from the others."""
        return frozenset(self._roster.late)

    def serve(self, names: Sequence[str], seconds: float = PROMPT_SECONDS) -> None:
        """Give the identity to workers that do not have it; at most :data:`CHUNK` of them.

        Safe to call from several threads at once, for other workers each.

        Args:
            names: of the workers.
            seconds: how long each may take for each of a few questions; who takes longer is among the late then.
        """
        roster = self._roster
        reached: dict[str, Agent] = {}
        # Each worker's own word counts: another that says it reaches the same agent may not speak the truth.
        for agent, document in roster.look(names, seconds).values():
            self._compare(agent, document)
            reached[agent.id] = agent
        wanting = [agent for agent in reached.values() if agent.version < self._version]
        told = self._bring(wanting, seconds)
        # Who owes an answer may yet be served before its first task.
        waiting = [name for name in names if name not in told and name not in roster.late]
        if waiting:
            roster.ask(Job(steps=(), after="refused", session=self._subject, seconds=seconds), waiting)

    def renew(self) -> Iterator[None]:
        """Deliver what is new, and what is leased anew, to the agents that we know; yields between chunks."""
        now, known = self._now(), []
        for agent in self._roster.known():
            if agent.renewal is not None and agent.renewal <= now:
                # Only this one: how short a lease one worker asks for is nothing to the others.
                agent.version, agent.renewal = min(agent.version, self._version - 1), _once_more(agent.ends, now)
            if agent.version < self._version:
                known.append(agent)
        for some in slices(list(self._roster.speaking(known, late=False).values()), CHUNK):
            self._bring(some, PROMPT_SECONDS)
            yield

    def _compare(self, agent: Agent, document: dict[str, Any]) -> None:
        """Has it still what we brought? Somebody may have taken that away, or its memory was lost."""
        keys, admitted = document.get("keys"), agent.admitted
        if admitted is not None and isinstance(keys, list) and admitted.enrolment.key.get("kid") not in keys:
            # What it has is brought to its new key too: by that alone it can be taken back.
            agent.ask_anew()
            agent.version = min(agent.version, 0)
        if agent.version <= 0:
            return
        found = document.get("bundle")
        issuer, seq = (found.get("issuer"), found.get("seq")) if isinstance(found, dict) else (None, None)
        if issuer == self._issuer and (seq == agent.seq or type(seq) is not int):
            agent.say(State.SERVED)
        elif isinstance(found, dict) and issuer != self._issuer:
            agent.say(State.ANOTHER, f"it serves a bundle of {str(issuer)[:100]!r} that came after ours")
        elif isinstance(seq, int) and agent.seq is not None and seq > agent.seq:
            if self._local.is_served(document.get("clouds")):
                agent.say(State.SERVED)  # by another program of the same person, as the same role
            else:
                agent.say(State.ANOTHER, "it serves what another forwarding of yours has brought after this one")
        else:
            agent.version, agent.ends = 0, None

    def _bring(self, agents: Sequence[Agent], seconds: float) -> set[str]:
        """Enrol and deliver; returns the workers that were told."""
        if not agents:
            return set()
        admission = self._admission(self._local)
        # Who may have the identity of another account is asked anew: somebody may have signed on as another meanwhile.
        unknown = [one for one in agents if one.admitted is None or one.admitted.admission != admission]
        if unknown:
            self._roster.enrol(unknown, admission, seconds)
        again, told = self._deliver([agent for agent in agents if agent.admitted is not None], seconds)
        if again:
            self._roster.enrol(again, self._admission(self._local), seconds)
            _, more = self._deliver([agent for agent in again if agent.admitted is not None], seconds)
            told |= more
        return told

    def _deliver(self, agents: Sequence[Agent], seconds: float) -> tuple[list[Agent], set[str]]:
        by_lease: dict[int | None, list[Agent]] = defaultdict(list)
        for agent in agents:
            by_lease[agent.longest].append(agent)
        groups = [(group, longest) for longest, some in by_lease.items() for group in slices(some, self._group)]
        again: list[Agent] = []
        told: set[str] = set()
        # Side by side: a group in which one does not answer holds up no other.
        for unheard, heard in side_by_side(lambda one: self._deliver_to(*one, seconds), groups):
            again += unheard
            told |= heard
        return again, told

    def _deliver_to(self, group: Sequence[Agent], longest: int | None, seconds: float) -> tuple[list[Agent], set[str]]:
        version = self._version  # before it is sealed: what is collected meanwhile is another
        admission = self._admission(self._local)
        keys = [one.admitted.enrolment for one in group if one.admitted and one.admitted.admission == admission]
        if len(keys) < len(group):
            # Somebody signed on as another while one of them was vouched for: to this identity it was not admitted.
            return list(group), set()
        speaking = self._roster.speaking(group)
        sealed = self._sealer.seal(group, keys, longest)
        if sealed is None:
            for agent in group:
                agent.say(State.WAITING, "the identity that was forwarded has ended", "sign in again on this computer")
            return [], set()
        if self._admission(self._local) != admission:  # after it is sealed: of this identity, or of a later one
            return list(group), set()
        steps = (("PUT", names.BUNDLE_PATH, sealed.data),)
        job = Job(steps=steps, after="served", session=self._subject, seconds=seconds)
        replies = self._roster.ask(job, list(speaking))
        again = []
        for name, agent in speaking.items():
            if not self._hear(agent, replies[name], sealed, version):
                again.append(agent)
            self._roster.carried(name, agent)
        return again, set(speaking)

    def _hear(self, agent: Agent, reply: Reply | CourierError, sealed: Sealed, version: int) -> bool:
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
            agent.version, agent.seq, agent.ends, agent.renewal = version, sealed.seq, sealed.ends, sealed.renewal
            agent.say(State.SERVED)
            return True
        if agent.seq is not None and agent.seq > sealed.seq:
            return True  # two workers of one machine were served at once, and the later one is what it has
        code, reason = str(verdict.get("code")), str(verdict.get("reason") or verdict.get("error"))[:400]
        if code in _ENROL_AGAIN and agent.version != -1:
            agent.version = -1
            agent.ask_anew()
            return False
        if code in {"signer", "issuer"}:
            agent.say(State.UNKNOWN_SIGNER, reason, signing.at_launch(self._signer, self._issuer))
        else:
            agent.say(State.REFUSED, reason)
        return True

    def withdraw(self) -> tuple[int, int]:
        """Take the identity away from every agent that has it from us, or may have. Nothing is given to anybody then.

        Returns:
            From how many it was taken, and from how many not, whose workers are still there.
        """
        self._sealer.end()
        session, issuer = self._subject, self._issuer
        return TakingBack(self._roster, self._sealer, session=session, issuer=issuer, group=self._group).all()

    def has_given(self) -> bool:
        """Whether anybody has something of ours, or may have."""
        return bool(having(self._roster))

    # -- what is said of it

    def status(self) -> Status:
        """How the forwarding stands: its clouds and its workers."""
        leased = min((one.ends for one in self._roster.known() if one.ends and one.workers), default=None)
        clouds = []
        for cloud, part in list(self._local.parts.items()):  # another thread may collect meanwhile
            ends = [at for at in (part.forecast.until, leased) if at is not None]
            until, renewed_by = min(ends, default=None), part.forecast.renewed_by
            who, trouble = part.collected.who, part.trouble
            clouds.append(CloudStatus(cloud=cloud, who=who, until=until, renewed_by=renewed_by, trouble=trouble))
        return Status(
            issuer=self._issuer,
            key=signing.public_line(self._signer),
            clouds=tuple(clouds),
            variables=self._local.variables,
            workers=self._roster.statuses(),
            renewals=self.renewals,
            trouble=self._trouble,
        )


def _once_more(ends: datetime | None, now: datetime) -> datetime | None:
    """When a lease is to be renewed that is not renewed now: in a large cluster the next look at all is long after."""
    left = timedelta(0) if ends is None else ends - now
    return now + left / 2 if left > LAST_TRY else None
