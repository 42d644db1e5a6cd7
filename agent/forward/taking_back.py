"""The end of a forwarding: what was given is taken back, from all who have it or may have it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from agent.forward.agents import Agent
from agent.forward.courier import PROMPT_SECONDS, Job, Reply, slices
from agent.forward.enrolling import Roster
from agent.forward.sealing import Sealer
from agent.forward.status import State
from agent.wire import names

AT_ONCE: Final = 32
"""So many bundles are under way at once."""

S = TypeVar("S")
T = TypeVar("T")


def having(roster: Roster) -> list[Agent]:
    """The agents that have something of ours, or may have."""
    return [agent for agent in roster.known() if agent.version > 0 or agent.in_doubt]


class TakingBack:
    """Withdraws from every agent that has something of ours, or may have.

    Args:
        roster: knows them.
        sealer: signs it, and gives nothing to anybody any more.
        session: of the forwarding.
        issuer: as whom it spoke.
        group: recipients of one bundle at most.
    """

    def __init__(self, roster: Roster, sealer: Sealer, *, session: str, issuer: str, group: int) -> None:
        self._roster = roster
        self._sealer = sealer
        self._session = session
        self._issuer = issuer
        # Each may be addressed by two keys: so many agents have as many recipients as one bundle has elsewhere.
        self._group = max(1, group // 2)

    def all(self) -> tuple[int, int]:
        """Take it back.

        Returns:
            From how many it was taken, and from how many not, whose workers are still there.
        """
        agents = list(self._roster.speaking(having(self._roster), silent=True).values())
        confirmed: set[str] = set()
        left = self._from(agents, confirmed)
        if left:
            # Some have another key by now: a reload named it, or they were set up anew. What takes away is no secret,
            # so nobody needs to prove whose key it is. Of others the worker that was asked hung, and another does not.
            self._roster.ask_keys(left)
            left = self._from(left, confirmed)
        refused = {one.id for one in left}
        others = self._roster.every_worker([one for one in agents if one.id not in refused])
        refused |= self._where_it_is_still({name: one for name, one in others.items() if name not in confirmed})
        return len(agents) - len(refused), len(refused)

    def _from(self, agents: Sequence[Agent], confirmed: set[str]) -> list[Agent]:
        """Withdraw, note the workers that confirmed it; returns the agents of which none did."""
        left = [agent for agent in agents if not agent.every_key()]
        groups = slices([agent for agent in agents if agent.every_key()], self._group)

        def take(group: Sequence[Agent]) -> list[Agent]:
            speaking = self._roster.speaking(group, silent=True)
            refused = self._through(speaking)
            confirmed.update(speaking.keys() - refused)
            return [speaking[name] for name in refused]

        return left + [agent for some in side_by_side(take, groups) for agent in some]

    def _through(self, speaking: Mapping[str, Agent]) -> list[str]:
        """Withdraw through these workers; returns those whose agents did not confirm it."""
        step = ("PUT", names.BUNDLE_PATH, self._sealer.withdrawal(list(speaking.values())))
        job = Job(steps=(step,), after="withdrawn", session=self._session, seconds=PROMPT_SECONDS)
        replies = self._roster.ask(job, list(speaking))
        left = []
        for name, agent in speaking.items():
            reply = replies[name]
            self._roster.carried(name, agent)
            if isinstance(reply, Reply) and reply.answers and reply.answers[0].status == 200:
                agent.version = 0
                agent.say(State.WAITING, "withdrawn")
            else:
                left.append(name)
        return left

    def _where_it_is_still(self, others: Mapping[str, Agent]) -> set[str]:
        """Ask the machines' other workers too, also those that refused it: who confirmed it may not be of that machine.

        Returns:
            The ids of agents that have it all the same.
        """
        seen = self._roster.documents(list(others))
        doubted = [name for name, document in seen.items() if self._is_ours(document.get("bundle"), others[name])]
        left = side_by_side(lambda name: self._through({name: others[name]}), doubted)
        return {others[name].id for some in left for name in some}

    def _is_ours(self, found: object, agent: Agent) -> bool:
        if not isinstance(found, dict) or found.get("issuer") != self._issuer:
            return False
        seq = found.get("seq")
        return isinstance(seq, int) and agent.seq is not None and seq <= agent.seq


def side_by_side(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """The function of each, several at once."""
    some = list(items)
    if len(some) < 2:
        return [function(one) for one in some]
    with ThreadPoolExecutor(min(AT_ONCE, len(some)), "deliver") as pool:
        return list(pool.map(function, some))
