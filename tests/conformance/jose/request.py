"""What a peer is asked to seal, in the committed world of tests/vectors/bundle."""

from __future__ import annotations

import json
from typing import Any

from tests.conformance.jose.peers import CASES
from tests.fakes import jose
from tests.vectors.bundle import generate


def seal_request(case: str) -> dict[str, Any]:
    signer, recipients, form, direct = CASES[case]
    keys = [generate.KEYS[name] for name in recipients]
    grants = [generate.SESSION, generate.ROLE, generate.TOKEN, {**generate.ENV, "variables": {"MOTTO": 'naïve ☂ "x"'}}]
    claims = json.loads(
        generate.claims(
            recip=[key["kid"] for key in keys], grants=grants, jti=f"peer-{case}", lease_until=generate.NOW + 7200
        )
    )
    return {
        "claims": claims,
        "signer": generate.KEYS[signer],
        "recipients": [key if key["kty"] == "oct" else jose.public(key) for key in keys],
        "form": form,
        "direct": direct,
    }
