"""Evidence of a machine, collected from STS and verified by a sender: what the one says, the other must prove."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from agent import bundle, enrol
from agent.core.errors import EvidenceError
from agent.core.model import Cloud
from agent.enrol import AwsWebIdentity, Enrolment, Evidence, Machine, Missing, Policy
from agent.providers.attest import Attestor
from agent.providers.sts import Sts
from agent.sender.evidence import Verifier
from agent.upstream import Ec2Metadata
from tests.fakes.web_identity import Issuer
from tests.unit.providers.support import ACCOUNT, MACHINE, REGION, World, run

INSTANCE = f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-0123456789abcdef0"
NONCE = enrol.new_nonce(b"n" * 32)


class Worker:
    """A machine whose account may have outbound identity federation, and its key."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.world = World(on_ec2=True)
        self.issuer = Issuer(ACCOUNT, REGION, instances={MACHINE: INSTANCE})
        if enabled:
            self.world.sts.issuers[ACCOUNT] = self.issuer
        self.key = bundle.OpeningKey.generate().recipient_key().public_jwk()
        self.thumbprint = enrol.thumbprint_of(self.key)

    def collect(self) -> tuple[tuple[Evidence, ...], tuple[Missing, ...]]:
        upstream: Any = self.world.net
        attestor = Attestor(
            Ec2Metadata(upstream, self.world.clock, "http://ec2.metadata"),
            None,
            cloud=Cloud.AWS,
            region=REGION,
            sts=Sts(upstream, None, 5, self.world.clock.boottime),
        )
        return run(attestor.collect(self.thumbprint, NONCE, self.world.now))

    def verify(self, *evidence: Evidence, policy: Policy | None = None) -> Machine:
        def get(url: str) -> bytes:
            assert url == f"{self.issuer.url}/.well-known/jwks.json"
            return self.issuer.jwks()

        verifier = Verifier(policy or Policy(accounts=(ACCOUNT,)), get=get, now=lambda: self.world.now)
        return verifier.verify(
            Enrolment(
                nonce=NONCE, key=self.key, thumbprint=self.thumbprint, audiences=(), host="worker", evidence=evidence
            )
        )


def token_of(evidence: tuple[Evidence, ...]) -> AwsWebIdentity:
    (found,) = [one for one in evidence if isinstance(one, AwsWebIdentity)]
    return found


def test_a_token_of_sts_proves_the_instance_to_a_sender() -> None:
    """What the agent asks of STS is what its sender takes: one audience, a short life, the instance by AWS's own word."""
    worker = Worker()
    evidence, _ = worker.collect()
    machine = worker.verify(token_of(evidence))
    assert (machine.account, machine.principal, machine.source) == (ACCOUNT, "machine-role", "aws-web-identity")
    assert (machine.instance_id, machine.instance_proved) == ("i-0123456789abcdef0", True)
    (call,) = [call for call in worker.world.sts.calls if call.operation == "GetWebIdentityToken"]
    assert call.parameters["Audience.member.1"] == enrol.audience(worker.thumbprint, NONCE)
    assert int(call.parameters["DurationSeconds"]) <= 300


def test_a_token_is_good_for_one_question_and_a_short_while() -> None:
    """Shown for another question, or later, it proves nothing."""
    worker = Worker()
    evidence, _ = worker.collect()
    worker.world.clock.move(timedelta(minutes=10).total_seconds())
    with pytest.raises(EvidenceError) as caught:
        worker.verify(token_of(evidence))
    assert caught.value.code == "date"


def test_a_session_that_calls_itself_a_role_is_none() -> None:
    """Who asks as whom an identity provider made them (SubjectMode) is not the role that they are called like."""
    worker = Worker()
    job = f"arn:aws:sts::{ACCOUNT}:assumed-role/a-job/mallory"
    worker.issuer.origins[job] = f"arn:aws:iam::{ACCOUNT}:role/machine-role"
    asked = {
        "Audience.member.1": enrol.audience(worker.thumbprint, NONCE),
        "SigningAlgorithm": "ES384",
        "SubjectMode": "OriginIdentity",
    }
    token, _ = worker.issuer.token(asked, job, None, worker.world.now)
    with pytest.raises(EvidenceError) as caught:
        worker.verify(AwsWebIdentity(token), policy=Policy(accounts=(ACCOUNT,), roles=("machine-role",)))
    assert caught.value.code == "principal"
    honest, _ = worker.issuer.token({**asked, "SubjectMode": "CallerIdentity"}, MACHINE, None, worker.world.now)
    assert worker.verify(AwsWebIdentity(honest)).principal == "machine-role"


def test_an_account_that_has_not_enabled_it_has_the_other_evidence() -> None:
    """Tokens that an account does not have are told, with AWS's word for it; the signed request is enough."""
    evidence, missing = Worker(enabled=False).collect()
    assert [type(one).__name__ for one in evidence] == ["AwsSts"]
    (why,) = [one for one in missing if one.kind == "aws-web-identity"]
    assert (why.code, "OutboundWebIdentityFederationDisabled" in why.reason) == ("denied", True)
