"""Whom a worker believes and for what, at the bounds: signers as the configuration has them, audiences, times, names."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import Any

import pytest

from agent import bundle
from agent.bundle.codes import Code
from agent.bundle.strict import base64url
from agent.core.errors import FormatError, PayloadError
from tests.unit.bundle.kit import NOW, OPENING, opened
from tests.unit.bundle.test_open import SIGNER, sealed

PUBLIC = SIGNER.verify_key().public_jwk()
OTHER = bundle.SigningKey.generate().verify_key().public_jwk()
ENTRY: dict[str, Any] = {"key": PUBLIC, "issuers": ["https://control.example"], "audiences": ["*"]}
BLUE, RED = bundle.audience_cluster("blue"), bundle.audience_cluster("red")
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"kye": "x"}, "signer 1: there is no member 'kye'"),
        ({"name": "ops", "kye": "x"}, "ops: there is no member"),
        ({"name": 7, "kye": "x"}, "signer 1: there is no member"),
        ({"key": 7}, "key must be a JWK or PEM public key"),
        ({"key": None}, "key must be a JWK or PEM public key"),
        ({"kid": 7}, "kid must be a string"),
        ({"max_lease_seconds": -1}, "max_lease_seconds must be a whole number from 0"),
        ({"max_lease_seconds": 366 * 86_400 + 1}, "max_lease_seconds must be a whole number from 0"),
        ({"max_lease_seconds": 1.0}, "max_lease_seconds must be a whole number from 0"),
        ({"max_lease_seconds": True}, "max_lease_seconds must be a whole number from 0"),
        ({"max_lease_seconds": "60"}, "max_lease_seconds must be a whole number from 0"),
        ({"issuers": None}, "issuers must be a list of at least one text"),
        ({"issuers": "https://control.example"}, "issuers must be a list of at least one text"),
        ({"issuers": []}, "issuers must be a list of at least one text"),
        ({"issuers": [7]}, "issuers must be a list of at least one text"),
        ({"issuers": [""]}, "issuers must be a list of at least one text"),
        ({"issuers": ["ok", "two words"]}, "issuers must be a list of at least one text"),
        ({"issuers": ["tab\there"]}, "issuers must be a list of at least one text"),
        ({"issuers": ["caf\u00e9"]}, "issuers must be a list of at least one text"),
        ({"audiences": ["ok", "a*b"]}, "audiences may have * at the end only"),
        ({"audiences": ["**"]}, "audiences may have * at the end only"),
    ],
)
def test_a_signer_that_is_written_wrong_is_refused(entry: dict[str, Any], why: str) -> None:
    """With the entry and the member named: a signer that were read otherwise than meant would be trusted for it."""
    with pytest.raises(FormatError) as caught:
        bundle.Trust.parse([{**ENTRY, **entry}])
    assert why in str(caught.value)
    assert caught.value.code is Code.KEY


def test_what_a_signer_may_be() -> None:
    """The bounds themselves: no lease bound, and the longest; a set of keys, each pinned alike; a name or a number."""
    (none,) = bundle.Trust.parse([{**ENTRY, "max_lease_seconds": 0}]).signers
    assert (none.max_lease, none.name, none.kid) == (None, "signer 1", SIGNER.kid)
    (longest,) = bundle.Trust.parse([{**ENTRY, "max_lease_seconds": 366 * 86_400, "name": "ops"}]).signers
    assert (longest.max_lease, longest.name) == (timedelta(days=366), "ops")
    (shortest,) = bundle.Trust.parse([{**ENTRY, "max_lease_seconds": 1}]).signers
    assert shortest.max_lease == SECOND
    assert [s.kid for s in bundle.Trust.parse([{**ENTRY, "key": {"keys": [PUBLIC, OTHER]}}]).signers] == [
        PUBLIC["kid"],
        OTHER["kid"],
    ]
    both = bundle.Trust.parse([ENTRY, {**ENTRY, "key": OTHER}])
    assert [s.name for s in both.signers] == ["signer 1", "signer 2"]
    assert both.signer(OTHER["kid"]) is both.signers[1]
    assert both.signer("nobody") is None


def test_two_signers_of_one_id_are_refused() -> None:
    """Which of the two a signature means would be chance."""
    with pytest.raises(FormatError, match="two signers have the key id"):
        bundle.Trust.parse([ENTRY, {**ENTRY, "key": OTHER, "kid": PUBLIC["kid"]}])


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("https://a", ["https://a"], ["https://ab", "https://", "HTTPS://a"]),
        ("team-a*", ["team-a", "team-ab"], ["team-", "xteam-a"]),
        ("*", ["", "anything"], []),
    ],
)
def test_only_a_star_makes_a_prefix(pattern: str, fits: list[str], does_not: list[str]) -> None:
    """A bare prefix would admit a neighbour."""
    (signer,) = bundle.Trust.parse([{**ENTRY, "issuers": [pattern], "audiences": [pattern]}]).signers
    for text in fits:
        assert signer.may_issue(text)
        assert signer.may_address(text)
    for text in does_not:
        assert not signer.may_issue(text)
        assert not signer.may_address(text)


def trusted(**more: Any) -> bundle.Trust:
    """One signer, bounded as said."""
    return bundle.Trust.parse([{**ENTRY, **more}])


def refusal(data: bytes, **more: Any) -> Code:
    """By which code it is refused."""
    with pytest.raises(PayloadError) as caught:
        opened(data, **more)
    return Code(caught.value.code)


def test_one_audience_through_which_it_may_come_is_enough() -> None:
    """A worker that answers to two is reached by a signer that may address one of them, whatever their order."""
    for order in ([BLUE, RED], [RED, BLUE]):
        data = sealed(audiences=order)
        opened(data, trust=trusted(audiences=[BLUE]), audiences=[BLUE, RED])
        assert refusal(data, trust=trusted(audiences=["other"]), audiences=[BLUE, RED]) is Code.AUDIENCE
    assert refusal(sealed(audiences=[BLUE, RED]), trust=trusted(audiences=[BLUE]), audiences=[RED]) is Code.AUDIENCE


def test_it_is_accepted_until_its_exp_and_the_leeway() -> None:
    """At that instant it is not any more; nor before its issue, beyond the same leeway."""
    data = sealed(accept_until=NOW + timedelta(minutes=10))
    last = NOW + timedelta(minutes=10) + bundle.LEEWAY
    opened(data, now=last - SECOND)
    assert refusal(data, now=last) is Code.EXPIRED
    opened(data, now=NOW - bundle.LEEWAY)
    assert refusal(data, now=NOW - bundle.LEEWAY - SECOND) is Code.NOT_YET_VALID


def test_a_lease_is_within_what_the_signer_may_give() -> None:
    """The bound itself is allowed; a second more is not."""
    data = sealed(lease_until=NOW + timedelta(hours=2))
    assert opened(data, trust=trusted(max_lease_seconds=7200)).lease_until == NOW + timedelta(hours=2)
    assert refusal(data, trust=trusted(max_lease_seconds=7199)) is Code.LEASE


def test_silence_is_no_longer_lease_than_the_signer_may_give() -> None:
    """Counted from the issue; once that is over the bundle is refused as one whose own lease is."""
    data, bounded = sealed(accept_until=NOW + timedelta(hours=3)), trusted(max_lease_seconds=3600)
    assert opened(data, trust=bounded, now=NOW + timedelta(hours=1) - SECOND).lease_until == NOW + timedelta(hours=1)
    assert refusal(data, trust=bounded, now=NOW + timedelta(hours=1)) is Code.LEASE


def test_a_bundle_is_named_by_its_time() -> None:
    """RFC 9562 section 5.7: the milliseconds in front, version 7, the variant's two bits; unless the sender names it."""
    now = NOW + timedelta(milliseconds=123)
    made = [uuid.UUID(_named(now)) for _ in range(20)]
    assert {(one.version, one.variant) for one in made} == {(7, uuid.RFC_4122)}
    assert {one.int >> 80 for one in made} == {int(now.timestamp() * 1000)}
    assert len({one.int & ((1 << 62) - 1) for one in made}) == 20
    assert _named(now, bundle_id="mine") == "mine"


def _named(now: Any, **more: Any) -> str:
    """Claim ``jti`` of a bundle that was sealed then."""
    envelope = bundle.parse_envelope(sealed(now=now, **more))
    signed = bundle.decrypt(envelope, OPENING[0].content_key(envelope.recipients[0]))
    return str(json.loads(base64url(signed.split(b".")[1], "the claims"))["jti"])


def test_audiences_of_instances() -> None:
    """The audiences of instances are spelt as FORMAT.md spells them."""
    assert bundle.audience_aws_instance("1", "eu-west-1", "i-1") == "urn:credbundle:instance:aws:1:eu-west-1:i-1"
    assert bundle.audience_gcp_instance("p", "7") == "urn:credbundle:instance:gcp:p:7"
