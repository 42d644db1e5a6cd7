"""The shell that holds the present state: it lets events happen, keeps what comes of them, and answers.

It does no I/O, draws no randomness of its own and reads no clock. The controller (:mod:`agent.controller`) alone calls
:meth:`Store.apply`; who answers workers is told what comes of it (:meth:`Store.watch`). Nothing is decided here:

* whether a bundle is taken: :mod:`agent.identity.admission`;
* what each event does: :mod:`agent.identity.transitions`, and of one slot: :mod:`agent.identity.slots`;
* how each cloud stands and what is answered: :mod:`agent.identity.standing`;
* until when, and why no longer: :mod:`agent.identity.until`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from agent.core.model import Bundle, Cloud, IdToken
from agent.core.verdict import Memory, Notice, Policy, Verdict, Work
from agent.core.view import Answer, Facts
from agent.identity import admission, standing
from agent.identity.events import Applied, Effect, Event, Ticked, TimePassed
from agent.identity.state import State, was_brought
from agent.identity.transitions import first, transition


class Store:
    """See the module.

    Args:
        policy: what the operator decided.
        memory: what an earlier process of this instance wrote down.
        now: the start, from which the boot grace counts.
        rng: the source of every spread and jitter.
        waited: how much of the boot grace an earlier process of this boot and instance has had already.
        brought: see :attr:`State.brought`: of an earlier process of this boot.
        awaited: see :attr:`State.awaited`.

    Attributes:
        state: what is so now. Only :meth:`apply` replaces it.
    """

    def __init__(
        self,
        policy: Policy,
        memory: Memory,
        now: datetime,
        rng: random.Random,
        *,
        waited: timedelta = timedelta(),
        brought: Memory | None = None,
        awaited: Mapping[Cloud, str] | None = None,
    ) -> None:
        grace_until = now + max(policy.grace - waited, timedelta())
        self.state: State = first(State(policy, memory, grace_until, brought or Memory(), awaited or {}), now)
        self._rng = rng
        self._watchers: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        state = self.state
        seq = state.bundle.seq if state.bundle is not None else None
        return f"Store(seq={seq}, managed={sorted(state.memory.decided)}, version={state.version})"

    # -- what changes it: the controller alone ---------------------------------------------------------------------

    def apply(self, event: Event, now: datetime) -> tuple[Effect, ...]:
        """Let ``event`` happen; returns what is to be done about it."""
        before = self.state
        self.state, effects = transition(before, event, now, self._rng)
        if self.state is not before:
            self.tell()
        return effects

    def watch(self, told: Callable[[], None]) -> None:
        """Have ``told`` called whenever something that others are told may have changed, before anything else is done.

        It must not raise, block, or let an event happen.
        """
        self._watchers.append(told)

    def tell(self) -> None:
        """Say that something that others are told may have changed: here, or in what is held beside the state."""
        for told in self._watchers:
            told()

    def take(self, event: Event, now: datetime) -> bool:
        """Let ``event`` happen; returns whether it had its effect."""
        return Applied() in self.apply(event, now)

    def due(self, now: datetime) -> list[Work]:
        """Everything that should be issued now, marked as under way."""
        return [effect for effect in self.apply(TimePassed(), now) if isinstance(effect, Work)]

    def tick(self, now: datetime) -> list[Notice]:
        """The news since the last call, told once: identities that changed or ended, ends that came near."""
        return [effect for effect in self.apply(Ticked(), now) if isinstance(effect, Notice)]

    # -- what only looks -------------------------------------------------------------------------------------------

    def evaluate(self, bundle: Bundle, now: datetime, *, resume: bool = False) -> Verdict:
        """Evaluate an opened and verified bundle (:func:`agent.identity.admission.evaluate`). Changes nothing."""
        return admission.evaluate(self.state, bundle, now, resume=resume)

    @property
    def memory(self) -> Memory:
        """The memory, which must be written down."""
        return self.state.memory

    @property
    def doubted(self) -> bool:
        """It is not known yet whether the memory is this machine's."""
        return self.state.doubt is not None

    @property
    def bundle(self) -> Bundle | None:
        """The bundle in force."""
        return self.state.bundle

    @property
    def was_brought(self) -> bool:
        """Whether the bundle in force was brought to this machine, and not only found on it."""
        return was_brought(self.state)

    # -- what is served --------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Changes whenever any answer may have changed, apart from the passing of time."""
        return self.state.version

    def answer(self, cloud: Cloud, now: datetime) -> Answer:
        """The answer for ``cloud`` at ``now``. Never an expired credential, nor one beyond the lease."""
        return standing.view(self.state, cloud, now)

    def doubts(self, cloud: Cloud, now: datetime) -> bool:
        """Whether ``cloud`` is pending only because it is not known whose the memory is."""
        return isinstance(standing.standing(self.state, cloud, now), standing.Doubted)

    def view_id_token(self, audience: str, now: datetime) -> IdToken | None:
        """A minted identity token for ``audience`` with at least ten minutes left, or ``None``."""
        return standing.id_token(self.state, audience, now)

    def can_mint_id_tokens(self) -> bool:
        """Whether the Google identity could mint one at all: else the answer is 404 at once."""
        return standing.can_mint_id_tokens(self.state)

    def names(self, cloud: Cloud) -> frozenset[str]:
        """The names under which this process has listed an identity of ``cloud``."""
        return self.state.names[cloud].known

    def facts(self) -> Facts:
        """Region, zone, project: what the bundle says first, then the configuration, then what the machine said."""
        return standing.facts(self.state)
