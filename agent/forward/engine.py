"""One round of a forwarding: look who is there, enrol new workers, seal and deliver what is due.

No clock of its own: :mod:`agent.forward.session` drives it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from agent import bundle
from agent.core.errors import AgentError, CourierError
from agent.forward import signing
from agent.forward.courier import PROMPT_SECONDS, Courier, Job, Reply
from agent.forward.enrolling import Admission, Agent, Roster, answered
from agent.forward.local import Local
from agent.forward.sealing import Sealer
from agent.forward.status import CloudStatus, State, Status
from agent.wire import names

GROUP: Final = 16
"""Recipients of one bundle. It may have 256 (FORMAT.md), but each recipient gets the entries of all: what a scheduler
sends out grows with the group, and what a smaller group saves there it costs in seals and in bytes to the scheduler.
``tests/simulation/forwarding.py`` measures it."""

CHUNK: Final = 512
"""So many workers are dealt with before we look whether somebody new waits."""

_ENROL_AGAIN: Final = frozenset({"recipient", "unwrap", "forwarded", "audience"})
"""Refusals that say that the agent has another key than the one it enrolled with."""

AT_ONCE: Final = 32
"""So many bundles are under way at once."""

S = TypeVar("S")
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
        self._now = now
        self._group = group
        self._roster = Roster(courier, session=subject, kid=signer.kid)
        self._sealer = Sealer(local, signer=signer, issuer=issuer, subject=subject, lease=lease, now=now)
        self._version = 0
        self._trouble: str | None = None
        self.renewals = 0

    # -- the identity

    def collect(self) -> bool:
        """Look at this computer; true if there is something new to deliver.

        Raises:
            AgentError: the first time: there is nothing to send.
        """
        now, leased = self._now(), self._sealer.renewal_due
        if self._local.collect(now) or self._version == 0 or (leased is not None and now >= leased):
            self._sealer.begin()
            self._version += 1
            self.renewals = self._version - 1
            return True
        return False

    def due(self) -> datetime | None:
        """When :meth:`collect` is due."""
        return min((at for at in (self._local.due(), self._sealer.renewal_due) if at is not None), default=None)

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
        documents = self._roster.look(names, seconds)
        roster = self._roster
        reached = [roster.agents[at] for at in documents]
        for agent in reached:
            self._compare(agent, documents[agent.id])
        wanting = [agent for agent in reached if agent.version < self._version]
        told = self._bring(wanting, seconds)
        # Who owes an answer may yet be served before its first task.
        waiting = [name for name in names if name not in told and name not in roster.late]
        if waiting:
            roster.ask(Job(steps=(), after="refused", session=self._subject, seconds=seconds), waiting)

    def renew(self) -> Iterator[None]:
        """Deliver what is new to the agents that we know; yields between chunks."""
        known = [agent for agent in list(self._roster.agents.values()) if agent.version < self._version]
        for some in _slices(list(self._roster.speaking(known, late=False).values()), CHUNK):
            self._bring(some, PROMPT_SECONDS)
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

    def _bring(self, agents: Sequence[Agent], seconds: float) -> set[str]:
        """Enrol and deliver; returns the workers that were told."""
        if not agents:
            return set()
        admission = self._admission(self._local)
        # Who may have the identity of another account is asked anew: somebody may have signed on as another meanwhile.
        unknown = [one for one in agents if one.enrolment is None or one.admission != admission]
        if unknown:
            self._roster.enrol(unknown, admission, seconds)
        again, told = self._deliver([agent for agent in agents if agent.enrolment is not None], seconds)
        if again:
            self._roster.enrol(again, self._admission(self._local), seconds)
            _, more = self._deliver([agent for agent in again if agent.enrolment is not None], seconds)
            told |= more
        return told

    def _deliver(self, agents: Sequence[Agent], seconds: float) -> tuple[list[Agent], set[str]]:
        by_lease: dict[int | None, list[Agent]] = defaultdict(list)
        for agent in agents:
            by_lease[agent.longest].append(agent)
        groups = [(group, longest) for longest, some in by_lease.items() for group in _slices(some, self._group)]
        again: list[Agent] = []
        told: set[str] = set()
        # Side by side: a group in which one does not answer holds up no other.
        for unheard, heard in _side_by_side(lambda one: self._deliver_to(*one, seconds), groups):
            again += unheard
            told |= heard
        return again, told

    def _deliver_to(self, group: Sequence[Agent], longest: int | None, seconds: float) -> tuple[list[Agent], set[str]]:
        version = self._version  # before it is sealed: what is collected meanwhile is another
        speaking = self._roster.speaking(group)
        sealed, seq = self._sealer.seal(group, longest, version)
        if sealed is None:
            for agent in group:
                agent.say(State.WAITING, "the identity that was forwarded has ended", "sign in again on this computer")
            return [], set()
        admission = self._admission(self._local)  # after it is sealed: of this identity, or of a later one
        if any(agent.admission != admission for agent in group):
            # Somebody signed on as another while one of them was vouched for: to this identity it was not admitted.
            return list(group), set()
        job = Job(steps=(("PUT", names.BUNDLE_PATH, sealed),), after="served", session=self._subject, seconds=seconds)
        replies = self._roster.ask(job, list(speaking))
        return [one for name, one in speaking.items() if not self._hear(one, replies[name], seq, version)], set(
            speaking
        )

    def _hear(self, agent: Agent, reply: Reply | CourierError, seq: int, version: int) -> bool:
        """Take note of a verdict; false: enrol anew and try again."""
        try:
            answer = answered(reply)
            verdict = json.loads(answer.text)
            if not isinstance(verdict, dict):
                raise CourierError(f"the agent on this worker said {answer.status}")  # noqa: TRY301
        except (CourierError, ValueError, RecursionError) as error:
            agent.say(State.UNREACHABLE, str(error)[:300])
            return True
        agent.in_doubt = False
        if answer.status == 200:
            agent.version, agent.seq = version, seq
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

    def withdraw(self) -> tuple[int, int]:
        """Take the identity away from every agent that has it from us, or may have. Nothing is given to anybody then.

        Returns:
            From how many it was taken, and from how many not, whose workers are still there.
        """
        self._sealer.end()
        ours = [agent for agent in self._having() if agent.enrolment or agent.former]
        having = list(self._roster.speaking(ours, silent=True).values())
        taken = sum(_side_by_side(self._take_from, _slices(having, self._group)))
        return taken, len(having) - taken

    def has_given(self) -> bool:
        """Whether anybody has something of ours, or may have."""
        return bool(self._having())

    def _having(self) -> list[Agent]:
        return [agent for agent in list(self._roster.agents.values()) if agent.version > 0 or agent.in_doubt]

    def _take_from(self, group: Sequence[Agent]) -> int:
        job = Job(
            steps=(("PUT", names.BUNDLE_PATH, self._sealer.withdrawal(group)),),
            after="withdrawn",
            session=self._subject,
            seconds=PROMPT_SECONDS,
        )
        speaking = self._roster.speaking(group, silent=True)
        replies = self._roster.ask(job, list(speaking))
        taken = 0
        for name, agent in speaking.items():
            reply = replies[name]
            if isinstance(reply, Reply) and reply.answers and reply.answers[0].status == 200:
                taken += 1
                agent.version = 0
                agent.say(State.WAITING, "withdrawn")
        return taken

    # -- what is said of it

    def status(self) -> Status:
        """How the forwarding stands: its clouds and its workers."""
        leased = self._sealer.first_end
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


def _slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _side_by_side(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    some = list(items)
    if len(some) < 2:
        return [function(one) for one in some]
    with ThreadPoolExecutor(min(AT_ONCE, len(some)), "deliver") as pool:
        return list(pool.map(function, some))
