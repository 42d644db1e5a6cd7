"""Which identity does a cloud have, and until when? Operators and couriers are told the same; no secret is in it."""

from __future__ import annotations

from datetime import datetime

import msgspec

from agent.core.model import AwsCredential, Cloud
from agent.core.text import instant
from agent.core.view import Absent, Answer, Ended, Live
from agent.identity import standing, until
from agent.identity.store import Store
from agent.report.vitals import ANSWERS


class Summary(msgspec.Struct, frozen=True):
    """One cloud, as the couriers' status has it (PROTOCOL.md).

    Attributes:
        state: ``live``, ``pending``, ``ended`` or ``absent``.
        origin: whose identity it is.
        identity: its name; ``None``: there is none.
        until: the instant until which it is sure to be served; ``None``: nobody knows.
        at_the_end: what follows then, as a sentence.
        principal: the ARN of the role, or the account's address: what every program here may ask the cloud itself.
        account_id: of AWS.
        why: there is no identity, as a sentence.
    """

    state: str
    origin: str
    identity: str | None
    until: str | None
    at_the_end: str
    principal: str | None = None
    account_id: str | None = None
    why: str | None = None


def told(store: Store, cloud: Cloud, now: datetime) -> Answer:
    """The answer for ``cloud`` at ``now`` as people and alerts are told it: what nobody ever brings has not ended."""
    answer = store.answer(cloud, now)
    return Absent(answer.why) if isinstance(answer, Ended) and standing.is_others(store.state, cloud, now) else answer


def summary(store: Store, cloud: Cloud, now: datetime) -> Summary:
    """The summary of ``cloud`` at ``now``."""
    answer = told(store, cloud, now)
    ends = until.valid_until(store.state, cloud, now)
    credential = answer.credential if isinstance(answer, Live) else None
    aws = credential if isinstance(credential, AwsCredential) else None
    return Summary(
        state=ANSWERS[type(answer)],
        origin=str(standing.origin(store.state, cloud, now)),
        identity=answer.name if isinstance(answer, Live) else None,
        until=None if ends is None else instant(ends),
        at_the_end=until.what_follows(store.state, cloud, now),
        principal=aws.role_arn if aws is not None else getattr(credential, "email", None),
        account_id=None if aws is None else aws.account_id,
        why=None if isinstance(answer, Live) else answer.why,
    )
