"""What the tests of forwarding share: a laptop with an AWS session, agents, and a courier of the documented kind."""

from __future__ import annotations

import hmac
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest

from agent.core.errors import EvidenceError
from agent.core.model import Cloud
from agent.enrol import Enrolment, Machine, Policy
from agent.forward import Forward, signing
from agent.forward.agents import Verify
from agent.forward.courier import Job
from agent.forward.wanted import begin
from tests.fakes.sts import FakeSts
from tests.unit.forward.agents import CourierAgent, Listening
from tests.unit.sender.support import laptop, serving

ACCOUNT = "111122223333"
ISSUER = "laptop:ada@x1"
ENVIRONMENT = threading.Lock()


def now() -> datetime:
    return datetime.now(UTC)


def signed(*said: str) -> str:
    """What a cloud's signature is in real evidence."""
    return hmac.new(b"of the cloud", json.dumps(said).encode(), "sha256").hexdigest()


def evidence_of(account: str) -> Callable[[str, str], list[dict[str, Any]]]:
    """Evidence that :func:`verify` understands: it says of which account the machine is."""

    def make(thumbprint: str, nonce: str) -> list[dict[str, Any]]:
        return [
            {
                "kind": "gcp-identity",
                "token": json.dumps([account, thumbprint, nonce, signed(account, thumbprint, nonce)]),
            }
        ]

    return make


def verifier(policy: Policy, _now: Callable[[], datetime]) -> Verify:
    """In the place of those who vouch: what was signed for this key and this question."""

    def verify(enrolment: Enrolment) -> Machine:
        (evidence,) = enrolment.evidence
        account, thumbprint, asked, signature = json.loads(evidence.token)  # type: ignore[union-attr]
        if signature != signed(account, thumbprint, asked):
            raise EvidenceError("nobody signed that", code="signature")
        if (thumbprint, asked) != (enrolment.thumbprint, enrolment.nonce):
            raise EvidenceError("it vouches for another key or question", code="binding")
        machine = Machine(cloud=Cloud.AWS, account=account, principal="worker-role", source="aws-sts")
        policy.check(machine)
        return machine

    return verify


@dataclass
class Processes:
    """A courier for tests: what it carries runs here, or, if ``real``, in an interpreter of each worker's own.

    Attributes:
        sockets: of each worker's agent.
        broken: nobody can be reached.
        joined: whom to tell of a newcomer.
    """

    sockets: dict[str, Path]
    real: bool = False
    name: str = "processes"
    private: bool = False
    named: bool = False
    calls: list[tuple[str, ...]] = field(default_factory=list)
    broken: bool = False
    joined: Callable[[Sequence[str]], None] | None = None

    def workers(self) -> Sequence[str]:
        if self.broken:
            raise OSError("no network")
        return list(self.sockets)

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        if self.broken:
            raise OSError("no network")
        self.calls.append(tuple(workers))
        said: dict[str, str | Exception] = {}
        for one in workers:
            variables = {"CREDENTIAL_AGENT_COURIER": str(self.sockets[one])}
            if not self.real:
                with ENVIRONMENT, pytest.MonkeyPatch.context() as patch:
                    patch.setenv(*next(iter(variables.items())))
                    said[one] = eval(job.expression)
                continue
            # -I -S: nothing of this environment can be imported there, so what runs is the text alone.
            ran = subprocess.run(
                [sys.executable, "-I", "-S", "-"],
                input=job.script,
                env=variables,
                capture_output=True,
                text=True,
                check=False,
            )
            said[one] = ran.stdout.strip() if ran.returncode == 0 else OSError(ran.stderr)
        return said

    def watch(self, joined: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        self.joined = joined
        return lambda: None


class World:
    """A laptop of account 111122223333, an STS that counts, and machines with agents that believe the laptop."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.sts = FakeSts(now)
        self.monkeypatch = monkeypatch
        self.stack = ExitStack()
        self.signer = home / "sender.jwk"
        self.key = signing.load(self.signer)
        self.courier = Processes({})
        self.agents: dict[str, CourierAgent] = {}
        self.time_gone = timedelta(0)

    def __enter__(self) -> Self:
        url = self.stack.enter_context(serving(self.sts))
        self.stack.enter_context(laptop(self.monkeypatch, self.home, AWS_ENDPOINT_URL_STS=url))
        self.sign_on()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def sign_on(self, seconds: int = 3600, account: str = ACCOUNT, arn: str | None = None) -> str:
        """A new session on the laptop, of that account or with that ARN; returns its access key id."""
        made = self.sts.session(arn or f"arn:aws:sts::{account}:assumed-role/sso/ada", "role-session", seconds)
        for name, member in (
            ("AWS_ACCESS_KEY_ID", "AccessKeyId"),
            ("AWS_SECRET_ACCESS_KEY", "SecretAccessKey"),
            ("AWS_SESSION_TOKEN", "SessionToken"),
            ("AWS_CREDENTIAL_EXPIRATION", "Expiration"),
        ):
            os.environ[name] = made[member]
        return made["AccessKeyId"]

    def trusting(self, **more: object) -> list[dict[str, object]]:
        return [
            {
                "name": "ada",
                "key": self.key.public_jwk() | {"kid": self.key.kid},
                "issuers": ["laptop:*"],
                "audiences": ["*"],
                **more,
            }
        ]

    def machine(self, name: str, *, account: str = ACCOUNT, workers: int = 1, trust: Any = None) -> CourierAgent:
        """A machine with an agent and so many workers, NAME-0 and on."""
        agent = CourierAgent(
            self.trusting() if trust is None else trust, evidence=evidence_of(account), host=name, now=self.now
        )
        listening = self.stack.enter_context(Listening(agent, self.home / f"{name}.sock"))
        for index in range(workers):
            self.courier.sockets[f"{name}-{index}"] = listening.path
        self.agents[name] = agent
        return agent

    def now(self) -> datetime:
        return now() + self.time_gone

    def forward(
        self,
        *,
        verify: Callable[[Policy, Callable[[], datetime]], Verify] = verifier,
        lazy: Callable[[Any], bool] = lambda _: False,
        **wanted: Any,
    ) -> Forward:
        given = {"gcp": None, "issuer": ISSUER, "signer": self.signer, "progress": False, **wanted}
        return begin(lambda *_: self.courier, given, verify=verify, lazy=lazy, now=self.now)
