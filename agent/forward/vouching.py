"""Stand-in until the sender can verify evidence."""

from __future__ import annotations

from datetime import datetime

from agent.core.errors import EvidenceError
from agent.enrol import Enrolment, Machine
from agent.forward.enrolling import Verify


def verifier() -> Verify:
    """Verifies nothing yet: nobody is admitted by evidence."""

    def verify(enrolment: Enrolment, nonce: str, now: datetime) -> Machine:  # noqa: ARG001
        raise EvidenceError("evidence cannot be verified yet", code="unavailable")

    return verify
