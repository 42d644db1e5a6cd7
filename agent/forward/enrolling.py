"""Which workers are there? Which agent does each reach, which key has that, and what proves it?"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from agent import enrol
from agent.core.errors import CourierError, EvidenceError
from agent.enrol import Enrolment
from agent.forward.agents import Admission, Admitted, Agent
from agent.forward.courier import PROMPT_SECONDS, Answer, Courier, Job, LateError, Reply, read_reply
from agent.forward.status import State, WorkerStatus
from agent.wire import names

STATUS: Final = ("GET", names.STATUS_PATH, None)
LEASES: Final = (60, 365 * 86_400)
"""Between these a worker's word counts for how long we may lease to it, in seconds (its ``max_lease_seconds``)."""
VERIFIERS: Final = 16
"""So many questions to those who vouch are under way at once: STS answers in a tenth of a second."""
ABSENT: Final = 1024
"""So many machines are remembered that no worker runs on any more: one that starts again there finds what it had."""

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
        self._agents: dict[str, Agent] = {}
        self.of: dict[str, str] = {}  # the agent of each worker
        self.late: set[str] = set()  # workers of whom an answer is outstanding
        self._alone: dict[str, WorkerStatus] = {}  # workers that reach no agent
        self._hosts: dict[str, str] = {}
        self._reached: dict[str, str] = {}  # the last agent of each worker that reaches none now
        self._turn = 0

    def statuses(self) -> tuple[WorkerStatus, ...]:
        """How each worker stands."""
        with self._lock:
            found = list(self._alone.values())
            for name, at in self.of.items():
                agent = self._agents[at]
                found.append(
                    WorkerStatus(
                        name=name,
                        host=self._hosts.get(name, ""),
                        state=agent.state,
                        machine=agent.machine,
                        reason=agent.reason,
                        hint=agent.hint,
                    )
                )
        return tuple(sorted(found, key=lambda one: one.name))

    def keep(self, names: Collection[str]) -> None:
        """Forget the workers that are gone. Their agents are remembered: a worker that starts again finds its own."""
        with self._lock:
            for name in [one for one in (*self.of, *self._alone, *self._reached) if one not in names]:
                self._forget(name)
                self._reached.pop(name, None)
            self.late.intersection_update(names)
            silent = set(self._reached.values())
            absent = [one.id for one in self._agents.values() if not one.workers and one.id not in silent]
            # Those that are absent for longest go first. A cluster that grows and shrinks for weeks fills no memory.
            for at in absent[: max(0, len(absent) - ABSENT)]:
                del self._agents[at]

    def _forget(self, name: str) -> None:
        at = self.of.pop(name, None)
        if at is not None:
            agent = self._agents.pop(at)
            agent.workers.pop(name, None)
            self._agents[at] = agent  # at the end: who became absent last is forgotten last
            self._reached[name] = at
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

    def look(self, names: Sequence[str], seconds: float = PROMPT_SECONDS) -> dict[str, tuple[Agent, dict[str, Any]]]:
        """Find out which agent each worker reaches; returns that and its status, as each of the workers gave it.

        Args:
            names: of workers.
            seconds: how long they may take. Who was served and does not answer within the shortest time counts as
                served all the same, since that says nothing of its agent.
        """
        found: dict[str, tuple[Agent, dict[str, Any]]] = {}
        replies = self.ask(Job(steps=(STATUS,), session=self._session, seconds=seconds), names)
        with self._lock:
            for name, reply in replies.items():
                if isinstance(reply, LateError) and seconds <= PROMPT_SECONDS:
                    if name not in self.of and name not in self._alone:
                        self._alone[name] = WorkerStatus(
                            name=name, state=State.WAITING, reason="it has not answered yet"
                        )
                    continue
                turn = self._turn_of(name)
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
                agent = self._agents.setdefault(reply.agent, Agent(reply.agent))
                agent.workers[name] = turn if self._reached.pop(name, None) == agent.id else 0
                self.of[name] = agent.id
                agent.longest = self._longest(document)
                found[name] = agent, document
        return found

    def _turn_of(self, name: str) -> int:
        at = self.of.get(name)
        return 0 if at is None else self._agents[at].workers.get(name, 0)

    def _longest(self, document: dict[str, Any]) -> int | None:
        signers = document.get("signers")
        for one in signers if isinstance(signers, list) else []:
            if isinstance(one, dict) and one.get("kid") == self._kid:
                most = one.get("max_lease_seconds")
                # It is a stranger's word: neither a date beyond all calendars nor a renewal at every glance.
                return min(max(most, LEASES[0]), LEASES[1]) if type(most) is int and most > 0 else None
        return None

    def known(self) -> list[Agent]:
        """All agents that are remembered."""
        with self._lock:
            return list(self._agents.values())

    def speaking(self, agents: Sequence[Agent], *, late: bool = True, silent: bool = False) -> dict[str, Agent]:
        """The agents by the worker through which each is reached; without those that none reaches any more.

        Args:
            agents: which.
            late: also those that are reached only by a worker that owes an answer.
            silent: also those that are reached no more, by a worker that is still there and may speak again.
        """
        found: dict[str, Agent] = {}
        with self._lock:
            last = {at: name for name, at in self._reached.items()} if silent else {}
            for agent in agents:
                turns = agent.workers
                name = min(turns, key=lambda one: (one in self.late, turns[one]), default=last.get(agent.id))
                if name is not None and (late or name not in self.late):
                    found[name] = agent
        return found

    def every_worker(self, agents: Sequence[Agent]) -> dict[str, Agent]:
        """All workers that say they reach these agents, but those that owe an answer."""
        with self._lock:
            return {name: agent for agent in agents for name in agent.workers if name not in self.late}

    def documents(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The status of the agents of workers, by worker; without those that give none. Nothing is remembered of it."""
        replies = self.ask(Job(steps=(STATUS,), session=self._session, seconds=PROMPT_SECONDS), names)
        seen = {name: _document(reply) for name, reply in replies.items() if isinstance(reply, Reply)}
        return {name: document for name, document in seen.items() if document is not None}

    def carried(self, name: str, agent: Agent) -> None:
        """It was another worker's turn the next time."""
        with self._lock:
            self._turn += 1
            if name in agent.workers:
                agent.workers[name] = self._turn

    def enrol(self, agents: Sequence[Agent], admission: Admission, seconds: float = PROMPT_SECONDS) -> None:
        """Ask agents for their keys and have what they say verified. One whose evidence does not hold is marked so."""
        asked: list[tuple[Agent, Enrolment]] = []
        for name, agent, said in self._enrolments(agents, seconds):
            if isinstance(said, Enrolment):
                asked.append((agent, said))
                continue
            agent.ask_anew()
            self.carried(name, agent)
            state = State.EVIDENCE if isinstance(said, EvidenceError) else State.UNREACHABLE
            agent.say(state, said.message, said.hint)
        with ThreadPoolExecutor(min(VERIFIERS, len(asked) or 1), "verify") as pool:
            list(pool.map(lambda one: self._admit(one[0], one[1], admission), asked))

    def ask_keys(self, agents: Sequence[Agent]) -> None:
        """Ask agents for their keys; nobody vouches for them. It is for what anybody may have."""
        for _, agent, said in self._enrolments(agents, PROMPT_SECONDS, silent=True):
            if isinstance(said, Enrolment):
                agent.former = said

    def _enrolments(
        self, agents: Sequence[Agent], seconds: float, *, silent: bool = False
    ) -> list[tuple[str, Agent, Enrolment | EvidenceError | CourierError]]:
        nonce = enrol.new_nonce(secrets.token_bytes(32))
        job = Job(
            steps=(("POST", names.ENROL_PATH, enrol.write_question(nonce)),), session=self._session, seconds=seconds
        )
        speaking = self.speaking(agents, silent=silent)
        replies = self.ask(job, list(speaking))
        found: list[tuple[str, Agent, Enrolment | EvidenceError | CourierError]] = []
        for name, agent in speaking.items():
            try:
                found.append((name, agent, enrol.read_enrolment(_body(replies[name]), nonce=nonce)))
            except (EvidenceError, CourierError) as error:
                found.append((name, agent, error))
        return found

    @staticmethod
    def _admit(agent: Agent, enrolment: Enrolment, admission: Admission) -> None:
        try:
            machine = admission.admit(enrolment)
        except EvidenceError as error:
            agent.ask_anew()
            state = State.WAITING if error.code == "unavailable" else State.EVIDENCE
            agent.say(state, error.message, error.hint)
            return
        except Exception as error:  # noqa: BLE001 - a stranger's bytes are no trouble of the others
            agent.ask_anew()
            agent.say(State.EVIDENCE, f"its evidence cannot be read: {type(error).__name__}")
            return
        agent.admit(Admitted(enrolment, admission, machine))
        agent.say(State.WAITING)


def _is_busy(reply: Reply) -> bool:
    """Whether the agent would have answered, had we waited longer: it is about to start, or has too much to do."""
    # Of a place in the queue of its socket that was not free in time the kernel says EAGAIN.
    slow = reply.problem == "failed" and any(word in reply.said for word in ("timed out", "BlockingIOError"))
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
