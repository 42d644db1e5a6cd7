"""An agent, as far as it is known here; and who may have an identity."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime

from agent.core.errors import EvidenceError, UsageError
from agent.enrol import Enrolment, Machine
from agent.forward.courier import Courier
from agent.forward.status import State

Verify = Callable[[Enrolment], Machine]
"""The machine of a worker, if evidence proves it and the policy admits it. Raises EvidenceError."""


@dataclass(frozen=True)
class Admitted:
    """An agent may have an identity, for this reason. One value: key and reason never come from two moments.

    Attributes:
        enrolment: its key and what was said with it.
        admission: by which it was admitted: that holds for the identity of then.
        machine: who it was proved to be; ``None``: nothing was proved, and nothing needed to be.
    """

    enrolment: Enrolment
    admission: Admission
    machine: Machine | None


@dataclass
class Agent:
    """One agent: a machine, however many workers run on it.

    Attributes:
        workers: those that reach it, as far as is known; for each, when it carried something the last time: the one
            whose turn is longest ago is asked next, so that none of them speaks for the others for long.
        admitted: its key, and by what it may have an identity; ``None``: it may not, or was not asked.
        former: the key that it had before: what it has from us may be sealed to that.
        version: of the content it has; 0: none.
        in_doubt: something was sent to it, and nobody knows whether it arrived.
        seq: of the bundle it took from us.
        longest: the longest lease that it lets us give, in seconds; ``None``: any.
        ends: when the lease of what it has ends; ``None``: it has none.
        renewal: when that lease is to be renewed.
    """

    id: str
    workers: dict[str, int] = field(default_factory=dict)
    admitted: Admitted | None = None
    former: Enrolment | None = None
    version: int = 0
    in_doubt: bool = False
    seq: int | None = None
    longest: int | None = None
    ends: datetime | None = None
    renewal: datetime | None = None
    state: State = State.WAITING
    reason: str | None = None
    hint: str | None = None

    def ask_anew(self) -> None:
        """It has another key by now, or has to prove anew whose it is. What it has from us is not forgotten."""
        known, self.admitted = self.admitted, None
        if known is not None:
            self.former = known.enrolment

    def admit(self, admitted: Admitted) -> None:
        """It has proved whose it is."""
        known, self.admitted = self.admitted, admitted
        if known is not None and known.enrolment.thumbprint != admitted.enrolment.thumbprint:
            self.former = known.enrolment

    @property
    def machine(self) -> str | None:
        """Who it was proved to be."""
        known = self.admitted
        return None if known is None or known.machine is None else str(known.machine)

    def every_key(self) -> list[Enrolment]:
        """All the keys that it may have."""
        known = self.admitted
        return [one for one in (None if known is None else known.enrolment, self.former) if one is not None]

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
