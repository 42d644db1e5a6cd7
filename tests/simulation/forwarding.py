"""Ten thousand workers: what they cost whoever forwards. Every agent is real where it counts: keys, opening, verdicts.

``python -m tests.simulation.forwarding [COUNT]`` measures the joining, and twelve hours of renewals; then groups of other
sizes. Ten thousand join for 2.7 s of one core and are renewed for 1.9 s (a thousand: 0.27 and 0.18), which takes 9 MB to
the scheduler, 145 MB from it to the workers in 625 calls, 35 MB of memory, and one exchange (2026-11, a busy machine;
who vouches is asked over a network, which is not in it). README.md beside this file compares the sizes of groups.
"""

from __future__ import annotations

import base64
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from agent import bundle
from agent.core.model import AwsSession, Cloud
from agent.core.secret import Secret
from agent.enrol import Enrolment, Machine
from agent.forward.agents import Admission
from agent.forward.courier import GROUP, Job
from agent.forward.engine import CHUNK, Engine
from agent.forward.local import Local, Options
from agent.sender import Collected

ACCOUNT = "111122223333"
HOURS = 12


class Laptop(Local):
    """An identity whose role sessions live for an hour; each look at STS is counted."""

    def __init__(self) -> None:
        super().__init__(Options(gcp=None))
        self.exchanges = 0

    def _from_boto(self, now: datetime) -> Collected:
        self.exchanges += 1
        grant = AwsSession(
            id="aws",
            access_key_id=f"ASIA{self.exchanges:016}",
            secret_access_key=Secret("s" * 40),
            session_token=Secret("t" * 900),
            expires_at=int((now + timedelta(hours=1)).timestamp()),
            account_id=ACCOUNT,
            role_arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/reader/ada",
        )
        return Collected(cloud=Cloud.AWS, grants=(grant,), route="aws", who=str(grant.role_arn))


@dataclass
class Fleet:
    """Workers that answer at once. Their own work is not measured: it is done by ten thousand machines."""

    count: int
    group: int = GROUP
    name: str = "simulation"
    private: bool = False
    named: bool = False
    keys: dict[str, dict[str, str]] = field(default_factory=dict)
    took: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    sent: int = 0
    delivered: int = 0
    received: int = 0
    away: float = 0.0

    def __post_init__(self) -> None:
        for index in range(self.count):
            self.keys[f"tcp://10.{index >> 16}.{index >> 8 & 255}.{index & 255}:1"] = (
                bundle.OpeningKey.generate().recipient_key().public_jwk()
            )

    def workers(self) -> Sequence[str]:
        return list(self.keys)

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        begun = time.process_time()
        request = json.loads(job.request)
        self.calls += 1
        self.sent += len(job.request)
        self.delivered += len(job.request) * len(workers)
        said: dict[str, str | Exception] = {one: self._answer(one, request) for one in workers}
        self.received += sum(map(len, said.values()))  # type: ignore[arg-type]
        self.away += time.process_time() - begun
        return said

    def _answer(self, worker: str, request: Any) -> str:
        answers: list[tuple[int, str]] = []
        for method, _, body in request["steps"]:
            if method == "GET":
                answers.append((200, json.dumps({"keys": [self.keys[worker]["kid"]], "bundle": None, "signers": []})))
            elif method == "POST":
                nonce = json.loads(base64.b64decode(body))["nonce"]
                key = self.keys[worker]
                evidence = [{"kind": "gcp-identity", "token": "e" * 1500}]
                whole = {
                    "ver": 1,
                    "nonce": nonce,
                    "key": key,
                    "thumbprint": key["kid"],
                    "host": "w",
                    "evidence": evidence,
                }
                answers.append((200, json.dumps({**whole, "audiences": [], "missing": []})))
            else:
                self.took[worker] = self.took.get(worker, 0) + 1
                answers.append((200, '{"outcome": "accepted"}'))
        return json.dumps({"host": "w", "agent": worker, "problem": None, "answers": answers})

    def watch(self, joined: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        del joined
        return lambda: None


@dataclass
class Measured:
    """What it cost.

    Attributes:
        joining, renewal: seconds of one core, of the sender, for all of them: once, and for one renewal.
        exchanges: questions to STS for the identity.
        verified: questions to those who vouch.
        calls: to the cluster, one after the other, for one renewal.
        in_bytes, out_bytes: from the sender to the scheduler, and from the scheduler to the workers, for one renewal.
        memory: of the sender, MiB more than before.
    """

    count: int
    joining: float
    renewal: float
    renewals: int
    exchanges: int
    verified: int
    calls: int
    in_bytes: int
    out_bytes: int
    memory: float
    served: int


def measure(count: int, hours: int = HOURS, group: int = GROUP) -> Measured:
    """Let so many join, in groups of so many, and renew for so long."""
    moment = [datetime(2026, 11, 28, 12, tzinfo=UTC)]
    fleet = Fleet(count, group)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    verified = [0]

    def verify(enrolment: Enrolment) -> Machine:
        verified[0] += 1
        return Machine(
            cloud=Cloud.AWS, account=ACCOUNT, principal="worker", source=type(enrolment.evidence[0]).__name__
        )

    laptop = Laptop()
    admission = Admission(thumbprints=(), trust_channel=False, verify=verify)
    signer = bundle.SigningKey.generate()
    engine = Engine(
        fleet,
        laptop,
        lambda _: admission,
        signer=signer,
        issuer="laptop:ada",
        subject="simulation",
        lease=None,
        now=lambda: moment[0],
    )
    engine.collect()
    begun, away = time.process_time(), fleet.away
    names = engine.present()
    for first in range(0, len(names), CHUNK):
        engine.serve(names[first : first + CHUNK])
    joining = time.process_time() - begun - (fleet.away - away)
    fleet.calls = fleet.sent = fleet.delivered = 0
    begun, away = time.process_time(), fleet.away
    renewals = 0
    end = moment[0] + timedelta(hours=hours)
    while (due := engine.due()) is not None and due < end:
        moment[0] = due
        if engine.collect():
            renewals += 1
            for _ in engine.renew():
                pass
    took = time.process_time() - begun - (fleet.away - away)
    return Measured(
        count=count,
        joining=joining,
        renewal=took / max(renewals, 1),
        renewals=renewals,
        exchanges=laptop.exchanges,
        verified=verified[0],
        calls=fleet.calls // max(renewals, 1),
        in_bytes=fleet.sent // max(renewals, 1),
        out_bytes=fleet.delivered // max(renewals, 1),
        memory=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        served=engine.status().served,
    )


def main() -> None:
    for count in map(int, sys.argv[1:] or ["1000", "10000"]):
        print(measure(count, hours=HOURS))
    for group in (1, 4, 16, 64, 256):
        print(f"groups of {group}:", measure(2560, hours=2, group=group))


if __name__ == "__main__":
    main()
