"""Signatures are AWS's, made at the time that is given."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.secret import Secret
from agent.upstream.sigv4 import SigningKeys, signed_headers
from tests.fakes.net import Asked
from tests.fakes.sts import signature

# "Signature Version 4 test suite", AWS General Reference.
EXAMPLE_TIME = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
EXAMPLE_SECRET = Secret("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
EXAMPLE_TOKEN = Secret(
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7"
    "mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+"
    "xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
)


@pytest.mark.parametrize(
    ("method", "token", "expected"),
    [
        ("GET", None, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", None, "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        ("POST", EXAMPLE_TOKEN, "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"),
    ],
    ids=["get-vanilla", "post-vanilla", "post-sts-header-before"],
)
def test_the_examples_that_aws_publishes_come_out(method: str, token: Secret | None, expected: str) -> None:
    """AWS's own examples come out, so that a change in botocore's signer shows here."""
    headers = signed_headers(
        SigningKeys("AKIDEXAMPLE", EXAMPLE_SECRET, token),
        method,
        "https://example.amazonaws.com/",
        {},
        b"",
        service="service",
        region="us-east-1",
        now=EXAMPLE_TIME,
    )

    assert headers["X-Amz-Date"] == "20150830T123600Z"
    assert headers["Authorization"].endswith(f"Signature={expected}")


@settings(max_examples=30, deadline=None)
@given(
    at=st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2090, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - hypothesis wants naive bounds
    body=st.binary(max_size=200),
    extra=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20),
)
def test_every_signature_verifies(at: datetime, body: bytes, extra: str) -> None:
    """Whatever is signed, an implementation written from the documentation agrees, extra headers included."""
    headers = signed_headers(
        SigningKeys("AKIDEXAMPLE", EXAMPLE_SECRET, Secret("token")),
        "POST",
        "https://sts.eu-west-1.amazonaws.com/?B=2&A=1",
        {"x-extra": extra},
        body,
        service="sts",
        region="eu-west-1",
        now=at,
    )

    lowered = {name.lower(): value for name, value in headers.items()}
    _, expected = signature(
        Asked("POST", "/?B=2&A=1", lowered, body, "sts.eu-west-1.amazonaws.com"), EXAMPLE_SECRET.reveal()
    )
    assert lowered["authorization"].endswith(f"Signature={expected}")
    assert "x-extra" in lowered["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
