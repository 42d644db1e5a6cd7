"""What the tests of enrolment share: a worker's key, a nonce, and evidence signed as a machine signs it."""

from __future__ import annotations

from datetime import UTC, datetime

from agent.bundle import OpeningKey
from agent.core.secret import Secret
from agent.enrol import (
    KEY_HEADER,
    NONCE_HEADER,
    STS_BODY,
    STS_CONTENT_TYPE,
    AwsSts,
    Enrolment,
    new_nonce,
    thumbprint_of,
)
from agent.upstream.sigv4 import SigningKeys, signed_headers

NOW = datetime(2026, 11, 28, 17, 30, tzinfo=UTC)
KEY = OpeningKey.generate("P-256").recipient_key().public_jwk()
THUMBPRINT = thumbprint_of(KEY)
NONCE = new_nonce(b"n" * 32)
HOST = "sts.eu-central-1.amazonaws.com"
ROLE_KEYS = SigningKeys(
    "ASIAIOSFODNN7EXAMPLE", Secret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"), Secret("FwoGZXIvYXdzEJr//tok")
)


def signed(
    *,
    thumbprint: str = THUMBPRINT,
    nonce: str = NONCE,
    host: str = HOST,
    region: str = "eu-central-1",
    body: str = STS_BODY,
    now: datetime = NOW,
    keys: SigningKeys = ROLE_KEYS,
    url: str | None = None,
) -> AwsSts:
    """Evidence, signed by botocore's own signer."""
    given = {"host": host, "content-type": STS_CONTENT_TYPE, KEY_HEADER: thumbprint, NONCE_HEADER: nonce}
    url = url or f"https://{host}/"
    headers = signed_headers(keys, "POST", url, given, body.encode(), service="sts", region=region, now=now)
    return AwsSts(url=url, method="POST", headers=headers, body=body)


def enrolment(**changes: object) -> Enrolment:
    """A worker's answer."""
    members: dict[str, object] = {
        "nonce": NONCE,
        "key": KEY,
        "thumbprint": THUMBPRINT,
        "audiences": (f"key:{KEY['kid']}",),
        "host": "worker-1",
        "evidence": (signed(),),
    }
    return Enrolment(**{**members, **changes})  # type: ignore[arg-type]
