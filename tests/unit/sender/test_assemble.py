"""What is worked out for a sender who does not say it: what a control plane in Python gets without a command line."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from agent import bundle
from agent.core.errors import PayloadError
from agent.core.model import Action, Cloud
from agent.sender import Collected
from agent.sender.assemble import Assembled, assemble
from agent.sender.claims import ClaimsFile
from tests.fakes.clock import START
from tests.unit.identity.worlds import google, session

SIGNER = bundle.SigningKey.generate("Ed25519")
WORKER = bundle.OpeningKey.generate("P-256")
HOUR = timedelta(hours=1)
AWS = Collected(cloud=Cloud.AWS, grants=(session(hours=12),), route="user", who="me")


def make(**given: Any) -> Assembled:
    return assemble(signer=SIGNER, recipients=[WORKER.recipient_key()], now=START, issuer="cp", **given)


def opened(made: Assembled) -> Any:
    envelope = bundle.parse_envelope(made.sealed, max_bytes=bundle.LARGEST_BYTES)
    signed = bundle.decrypt(envelope, WORKER.content_key(envelope.recipients[0]))
    trust = bundle.Trust.parse(
        [{"name": "cp", "key": SIGNER.verify_key().public_jwk(), "issuers": ["*"], "audiences": ["*"]}]
    )
    audiences = (bundle.audience_key(WORKER.kid),)
    return bundle.verify(signed, trust=trust, recipient_kid=WORKER.kid, audiences=audiences, now=START, origin="test")


def test_what_nobody_says_is_worked_out() -> None:
    """Route, audience, stream, number and acceptance come of what was collected, the keys and the clock."""
    made = make(collected=[AWS])

    seen = opened(made)
    assert seen.routes == {Cloud.AWS: "user"}
    assert (seen.issuer, seen.subject, seen.seq) == ("cp", "default", int(START.timestamp() * 1000))
    assert seen.accept_until == made.accept_until == START + bundle.DEFAULT_ACCEPT
    assert [one.until for one in made.forecast] == [START + 12 * HOUR]


def test_a_bundle_is_accepted_no_longer_than_it_can_serve() -> None:
    """When a cloud ends before the default hour acceptance ends with it."""
    short = google(hours=0.5)
    made = make(collected=[Collected(cloud=Cloud.GCP, grants=(short,), route="g", who="me")])

    assert made.accept_until == START + HOUR / 2


def test_what_is_said_wins_over_the_claims_file() -> None:
    """Arguments come before the members of a claims file, and those before defaults."""
    base = ClaimsFile(sub="file", seq=7, lease_until=int((START + 2 * HOUR).timestamp()))
    made = make(collected=[AWS], base=base, subject="said")

    seen = opened(made)
    assert (seen.subject, seen.seq, seen.lease_until) == ("said", 7, START + 2 * HOUR)


def test_a_withdrawal_needs_nothing() -> None:
    """It carries no grant, no forecast, and its own number."""
    made = make(withdraw=True)

    assert made.action is Action.WITHDRAW
    assert made.forecast == ()
    assert opened(made).action is Action.WITHDRAW


@pytest.mark.parametrize(
    ("given", "said"), [({}, "nothing to seal"), ({"withdraw": True, "collected": [AWS]}, "carries")]
)
def test_nonsense_is_refused(given: dict[str, Any], said: str) -> None:
    """An empty bundle and a withdrawal with content are refused before anything is signed."""
    with pytest.raises(PayloadError, match=said):
        make(**given)


def test_a_group_as_large_as_a_bundle_may_have_is_sealed_and_opened() -> None:
    """One bundle for 256 workers is addressed to each of them, small enough for every channel, and each opens it."""
    keys = [bundle.OpeningKey.generate("P-256") for _ in range(256)]
    signer = bundle.SigningKey.generate()
    made = assemble(
        signer=signer,
        recipients=[key.recipient_key() for key in keys],
        now=START,
        issuer="laptop:x",
        subject="u",
        more=[{"type": "env", "id": "env", "variables": {"MYAPP_TOKEN": "x" * 4000}}],
    )
    assert len(made.sealed) < bundle.LARGEST_BYTES
    trust = bundle.Trust.parse([{"key": signer.verify_key().public_jwk(), "issuers": ["laptop:*"], "audiences": ["*"]}])
    envelope = bundle.parse_envelope(made.sealed, max_bytes=bundle.LARGEST_BYTES)
    for key, recipient in list(zip(keys, envelope.recipients, strict=True))[::51]:
        content = bundle.decrypt(envelope, key.content_key(recipient))
        taken = bundle.verify(
            content, trust=trust, recipient_kid=key.kid, audiences={bundle.audience_key(key.kid)}, now=START
        )
        assert taken.issuer == "laptop:x"
