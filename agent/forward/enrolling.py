"""Which workers are there? Which agent does each reach, which key has that, and what proves it?"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from agent import enrol
from agent.core.errors import CourierError, EvidenceError, UsageError
from agent.enrol import Enrolment, Machine
from agent.forward.courier import PROMPT_SECONDS, Answer, Courier, Job, LateError, Reply, read_reply
from agent.forward.status import State, WorkerStatus
from agent.wire import names

STATUS: Final = ("GET", names.STATUS_PATH, None)
LEASES: Final = (60, 365 * 86_400)
"""Between these a worker's word counts for how long we may lease to it, in seconds (its ``max_lease_seconds``)."""
VERIFIERS: Final = 16
"""So many questions to those who vouch are under way at once: STS answers in a tenth of a second."""

Verify = Callable[[Enrolment], Machine]
"""The machine of a worker, if evidence proves it and the policy admits it. Raises EvidenceError."""

_PROBLEMS: Final[Mapping[str, tuple[State, str, str]]] = {
    "no-agent": (
        State.NO_AGENT,
        "there is no agent on this worker (no courier socket)",
        "install it on the workers' image (packer/README.md), or bind-mount /run/credential-agent into the container",
    ),
    "not-running": (
        State.NO_AGENT,
        "the agent on this worker does not answer",
        "on the worker: systemctl status credential-agent",
    ),
    "not-allowed": (
        State.NOT_ALLOWED,
        "the worker's user may not speak to the agent there",
        "add that user to the group of the courier socket (ls -l /run/credential-agent), and start the worker anew",
    ),
}


@dataclass
class Agent:
    """One agent: a machine, however many workers run on it.

    Attributes:
        workers: those that reach it, as far as is known.
        last: the one that reached it last, when none does now; ``None``: that has left the cluster.
        enrolment: its key and what was said with it; ``None`` until it was asked.
        former: the same, before it was asked anew: what it has from us is sealed to that key.
        admission: by which that was admitted: it holds for the identity of then.
        machine: who it was proved to be; ``None``: nothing was proved, and nothing needed to be.
        version: of the content it has; 0: none.
        in_doubt: something was sent to it, and nobody knows whether it arrived.
        seq: of the bundle it took from us.
        longest: the longest lease that it lets us give, in seconds; ``None``: any.
    """

    id: str
    workers: dict[str, None] = field(default_factory=dict)
    last: str | None = None
    enrolment: Enrolment | None = None
    former: Enrolment | None = None
    admission: Admission | None = None
    machine: Machine | None = None
    version: int = 0
    in_doubt: bool = False
    seq: int | None = None
    longest: int | None = None
    state: State = State.WAITING
    reason: str | None = None
    hint: str | None = None

    def say(self, state: State, reason: str | None = None, hint: str | None = None) -> None:
        """How it stands from now on."""
        self.state, self.reason, self.hint = state, reason, hint


@dataclass(frozen=True)
class Admission:
    """The policy: who may have the identity.

    Attributes:
        thumbprints: keys that a person has compared; they need no evidence.
        trust_channel: who is reached is who was meant, so that nobody needs to vouch.
        verify: asks those who vouch, and the policy.
    """

    thumbprints: Collection[str]
    trust_channel: bool
    verify: Verify

    def admit(self, enrolment: Enrolment) -> Machine | None:
        """The machine that was proved; ``None`` when no proof was needed.

        Raises:
            EvidenceError: it may not have the identity.
        """
        if self.trust_channel or enrolment.thumbprint in self.thumbprints:
            return None
        if not enrolment.evidence:
            why = "; ".join(f"{one.kind}: {one.reason}" for one in enrolment.missing) or "it gave no reason"
            raise EvidenceError(
                f"the worker proves nothing about itself ({why})",
                hint=f'if you know by other means that this key is its own: thumbprints=["{enrolment.thumbprint}"]',
                code="none",
            )
        return self.verify(enrolment)


class Roster:
    """The workers and their agents. Safe to call from several threads at once, for other workers each.

    Args:
        courier: reaches them.
        session: of this forwarding.
        kid: of our signing key, by which an agent says whether it knows us.
    """

    def __init__(self, courier: Courier, *, session: str, kid: str) -> None:
        self._courier = courier
        self._session = session
        self._kid = kid
        self._lock = threading.RLock()  # held for no question
        self.agents: dict[str, Agent] = {}
        self.of: dict[str, str] = {}  # the agent of each worker
        self.late: set[str] = set()  # workers of whom an answer is outstanding
        self._alone: dict[str, WorkerStatus] = {}  # workers that reach no agent
        self._hosts: dict[str, str] = {}

    def statuses(self) -> tuple[WorkerStatus, ...]:
        """How each worker stands."""
        with self._lock:
            found = list(self._alone.values())
            for name, at in self.of.items():
                agent = self.agents[at]
                found.append(
                    WorkerStatus(
                        name=name,
                        host=self._hosts.get(name, ""),
                        state=agent.state,
                        machine=None if agent.machine is None else str(agent.machine),
                        reason=agent.reason,
                        hint=agent.hint,
                    )
                )
        return tuple(sorted(found, key=lambda one: one.name))

    def keep(self, names: Collection[str]) -> None:
        """Forget the workers that are gone. Their agents are remembered: a worker that starts again finds its own."""
        with self._lock:
            for name in [one for one in (*self.of, *self._alone) if one not in names]:
                self._forget(name)
            for agent in self.agents.values():
                if agent.last not in names:
                    agent.last = None
            self.late.intersection_update(names)

    def _forget(self, name: str) -> None:
        at = self.of.pop(name, None)
        if at is not None:
            self.agents[at].workers.pop(name, None)
            self.agents[at].last = name
        self._alone.pop(name, None)
        self._hosts.pop(name, None)

    def ask(self, job: Job, names: Sequence[str]) -> dict[str, Reply | CourierError]:
        """Carry a job to workers; returns for each what came back. Who has not answered is among the late then."""
        if not names:
            return {}
        said = self._courier.call(job, names)
        replies: dict[str, Reply | CourierError] = {}
        for name in names:
            text = said.get(name, CourierError("the worker has left"))
            with self._lock:
                (self.late.add if isinstance(text, LateError) else self.late.discard)(name)
            if isinstance(text, LateError):
                replies[name] = text
                continue
            if isinstance(text, Exception):
                why, hint = f"{type(text).__name__}: {text}", None
                if isinstance(text, CourierError):
                    why, hint = text.message, text.hint
                replies[name] = CourierError(f"the worker could not be reached: {why}"[:300], hint=hint)
                continue
            try:
                replies[name] = reply = read_reply(text)
            except CourierError as error:
                replies[name] = error
                continue
            if job.seconds <= PROMPT_SECONDS and _is_busy(reply):
                with self._lock:
                    self.late.add(name)
        return replies

    def look(self, names: Sequence[str], seconds: float = PROMPT_SECONDS) -> dict[str, dict[str, Any]]:
        """Find out which agent each worker reaches, and what it says of itself; returns the status of each agent.

        Args:
            names: of workers.
            seconds: how long they may take. Who was served and does not answer within the shortest time counts as
                served all the same, since that says nothing of its agent.
        """
        documents: dict[str, dict[str, Any]] = {}
        replies = self.ask(Job(steps=(STATUS,), session=self._session, seconds=seconds), names)
        with self._lock:
            for name, reply in replies.items():
                if isinstance(reply, LateError) and seconds <= PROMPT_SECONDS:
                    if name not in self.of and name not in self._alone:
                        self._alone[name] = WorkerStatus(
                            name=name, state=State.WAITING, reason="it has not answered yet"
                        )
                    continue
                self._forget(name)
                if isinstance(reply, CourierError):
                    self._alone[name] = WorkerStatus(
                        name=name, state=State.UNREACHABLE, reason=reply.message, hint=reply.hint
                    )
                    continue
                self._hosts[name] = reply.host
                document = _document(reply)
                if reply.agent is None or document is None:
                    self._alone[name] = _lonely(name, reply)
                    continue
                agent = self.agents.setdefault(reply.agent, Agent(reply.agent))
                agent.workers[name] = None
                self.of[name] = agent.id
                agent.longest = self._longest(document)
                documents[agent.id] = document
        return documents

    def _longest(self, document: dict[str, Any]) -> int | None:
        signers = document.get("signers")
        for one in signers if isinstance(signers, list) else []:
            if isinstance(one, dict) and one.get("kid") == self._kid:
                most = one.get("max_lease_seconds")
                # It is a stranger's word: neither a date beyond all calendars nor a renewal at every glance.
                return min(max(most, LEASES[0]), LEASES[1]) if type(most) is int and most > 0 else None
        return None

    def speaking(self, agents: Sequence[Agent], *, late: bool = True, silent: bool = False) -> dict[str, Agent]:
        """The agents by the worker through which each is reached; without those that none reaches any more.

        Args:
            agents: which.
            late: also those that are reached only by a worker that owes an answer.
            silent: also those that are reached no more, by a worker that is still there and may speak again.
        """
        found: dict[str, Agent] = {}
        with self._lock:
            for agent in agents:
                last = agent.last if silent and agent.last not in self.of else None
                name = min(agent.workers, key=self.late.__contains__, default=last)
                if name is not None and (late or name not in self.late):
                    found[name] = agent
        return found

    def enrol(self, agents: Sequence[Agent], admission: Admission, seconds: float = PROMPT_SECONDS) -> None:
        """Ask agents for their keys and have what they say verified. One whose evidence does not hold is marked so."""
        nonce = enrol.new_nonce(secrets.token_bytes(32))
        job = Job(
            steps=(("POST", names.ENROL_PATH, enrol.write_question(nonce)),), session=self._session, seconds=seconds
        )
        speaking = self.speaking(agents)
        replies = self.ask(job, list(speaking))
        asked: list[tuple[Agent, Enrolment]] = []
        for name, agent in speaking.items():
            agent.former = agent.enrolment or agent.former
            agent.enrolment = agent.machine = None
            try:
                asked.append((agent, enrol.read_enrolment(_body(replies[name]), nonce=nonce)))
            except EvidenceError as error:
                agent.say(State.EVIDENCE, error.message, error.hint)
            except CourierError as error:
                agent.say(State.UNREACHABLE, error.message, error.hint)
        with ThreadPoolExecutor(min(VERIFIERS, len(asked) or 1), "verify") as pool:
            list(pool.map(lambda one: self._admit(one[0], one[1], admission), asked))

    @staticmethod
    def _admit(agent: Agent, enrolment: Enrolment, admission: Admission) -> None:
        try:
            agent.machine = admission.admit(enrolment)
        except EvidenceError as error:
            state = State.WAITING if error.code == "unavailable" else State.EVIDENCE
            agent.say(state, error.message, error.hint)
            return
        except Exception as error:  # noqa: BLE001 - a stranger's bytes are no trouble of the others
            agent.say(State.EVIDENCE, f"its evidence cannot be read: {type(error).__name__}")
            return
        agent.enrolment, agent.admission = enrolment, admission
        agent.say(State.WAITING)


def _is_busy(reply: Reply) -> bool:
    """Whether the agent would have answered, had we waited longer: it is about to start, or has too much to do."""
    slow = reply.problem == "failed" and "timed out" in reply.said
    return slow or any(answer.status in (429, 503) for answer in reply.answers)


def _document(reply: Reply) -> dict[str, Any] | None:
    if reply.problem is not None or not reply.answers or reply.answers[0].status != 200:
        return None
    try:
        document = json.loads(reply.answers[0].text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _lonely(name: str, reply: Reply) -> WorkerStatus:
    if (known := _PROBLEMS.get(reply.problem or "")) is not None:
        state, reason, hint = known
        return WorkerStatus(name=name, host=reply.host, state=state, reason=reason, hint=hint)
    said = reply.said[:300] or (reply.answers[0].text[:200] if reply.answers else "nothing")
    return WorkerStatus(
        name=name, host=reply.host, state=State.UNREACHABLE, reason=f"the agent on this worker said: {said}"
    )


def _body(reply: Reply | CourierError) -> bytes:
    answer = answered(reply)
    if answer.status == 409:
        raise EvidenceError(
            "the worker has no key of its own that could be told",
            hint='give it one: [[keys]] kind = "ephemeral" in its configuration',
            code="key",
        )
    if answer.status != 200:
        raise CourierError(f"the agent on this worker said {answer.status}: {answer.text[:200]}")
    return answer.text.encode()


def answered(reply: Reply | CourierError) -> Answer:
    """The answer to the only step.

    Raises:
        CourierError: there is none.
    """
    if isinstance(reply, CourierError):
        raise reply
    if reply.problem is not None or not reply.answers:
        known = _PROBLEMS.get(reply.problem or "")
        raise CourierError(known[1] if known else f"the agent on this worker could not be asked: {reply.said[:300]}")
    return reply.answers[0]


def check_channel(courier: Courier, *, without_evidence: bool | None) -> bool:
    """Whether the channel alone proves who a worker is.

    Raises:
        UsageError: it was asked for where anybody on the way could take a worker's place.
    """
    if without_evidence and not courier.private:
        raise UsageError(
            f"without_evidence=True needs a channel that nobody can alter: {courier.name} is not encrypted here",
            hint="use TLS for the cluster (tls://), or let workers prove who they are",
        )
    return courier.named if without_evidence is None else without_evidence
