"""The store with a word for each event, and for each question: for tests that tell a story in many small steps."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from agent.core.model import Cloud, Credential, Grant, IdToken
from agent.core.secret import Secret
from agent.core.verdict import Accepted, Failure, Memory, Policy, SlotStatus, Work
from agent.core.view import Facts, Origin
from agent.identity import events, leftovers, notices, standing, until
from agent.identity.store import Store as Shell

DURABLE = (
    events.BundleAccepted
    | events.BundleRevoked
    | events.MemoryAdopted
    | events.MemoryReset
    | events.MemoryRecalled
    | events.MemoryDoubted
)
"""The events that one owner alone may let happen (``tests/test_house.py``)."""


class Store(Shell):
    """See the module."""

    def apply(self, event: events.Event, now: datetime) -> tuple[events.Effect, ...]:
        before = self.state.memory
        effects = super().apply(event, now)
        assert isinstance(event, DURABLE) or self.state.memory is before, f"{event} changed what is durable"
        return effects

    def accept(self, verdict: Accepted, now: datetime) -> None:
        self.apply(events.BundleAccepted(verdict), now)

    def revoke(self, now: datetime) -> None:
        self.apply(events.BundleRevoked(), now)

    def put(
        self,
        work: Work,
        credential: Credential | None,
        now: datetime,
        *,
        ends: datetime | None = None,
        began: datetime | None = None,
    ) -> bool:
        return self.take(events.CredentialIssued(work, credential, ends, began), now)

    def failed(self, work: Work, failure: Failure, now: datetime) -> None:
        self.apply(events.IssuingFailed(work, failure), now)

    def put_id_token(self, token: IdToken, grant: Grant | None) -> None:
        self.apply(events.IdTokenMinted(token, grant), token.issued_at)

    def rebase(self, by: timedelta, now: datetime) -> None:
        self.apply(events.ClockMoved(by), now)

    def retry_now(self, now: datetime) -> bool:
        return self.take(events.TimeDoubted(), now)

    def reconfigure(self, policy: Policy, now: datetime) -> None:
        self.apply(events.PolicyChanged(policy), now)

    def observe(self, facts: Facts) -> None:
        self.apply(events.MachineObserved(facts), self.state.grace_until)

    def adopt(self, instance_id: str, boot_id: str = "", firmware: Mapping[str, str] | None = None) -> bool:
        return self.take(events.MemoryAdopted(instance_id, boot_id, firmware or {}), self.state.grace_until)

    def reset(
        self, instance_id: str, now: datetime, boot_id: str = "", firmware: Mapping[str, str] | None = None
    ) -> None:
        self.apply(events.MemoryReset(instance_id, boot_id, firmware or {}), now)

    def recall(self, memory: Memory) -> bool:
        return self.take(events.MemoryRecalled(memory), self.state.grace_until)

    def doubt(self, why: str) -> None:
        self.apply(events.MemoryDoubted(why), self.state.grace_until)

    def resuming(self, why: str | None) -> None:
        self.apply(events.BundleResuming(why), self.state.grace_until)

    def restore(self, holding: events.Holding, now: datetime) -> bool:
        return self.take(holding, now)

    def restore_waiting(self, waiting: events.Waiting, now: datetime) -> bool:
        return self.take(waiting, now)

    def restore_remnant(self, remnant: events.Remnant, now: datetime) -> bool:
        return self.take(remnant, now)

    def held(self) -> list[events.Holding]:
        return leftovers.holdings(self.state)

    def waiting(self) -> list[events.Waiting]:
        return leftovers.waiting(self.state)

    def remnants(self) -> list[events.Remnant]:
        return leftovers.remnants(self.state)

    @property
    def observed(self) -> Facts:
        return self.state.observed

    def next_wake(self, now: datetime) -> datetime:
        return notices.next_look(self.state, now)

    def slots(self) -> list[SlotStatus]:
        return standing.statuses(self.state)

    def variables(self, now: datetime) -> Mapping[str, Secret]:
        return standing.variables(self.state, now)

    def google_grant(self, now: datetime) -> tuple[Grant | None, Credential | None] | None:
        return standing.google_source(self.state, now)

    def origin(self, cloud: Cloud, now: datetime) -> Origin:
        return standing.origin(self.state, cloud, now)

    def horizon(self, cloud: Cloud, now: datetime) -> datetime | None:
        return until.valid_until(self.state, cloud, now)

    def horizon_reason(self, cloud: Cloud, now: datetime) -> str:
        return until.why_until(self.state, cloud, now)

    def at_the_end(self, cloud: Cloud, now: datetime) -> str:
        return until.what_follows(self.state, cloud, now)
