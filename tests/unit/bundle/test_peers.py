"""Bundles that other JOSE libraries made, committed: they open on machines that have none of those libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.bundle.kit import OPENING, VECTORS, CountingKey, case_bytes, opened

FILES = sorted(VECTORS.glob("peers/*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_bundle_of_another_library_opens_for_each_of_its_recipients(path: Path) -> None:
    """The bundle opens with each worker key it was sealed to, alone, to the claims that its maker was given."""
    vector = json.loads(path.read_text())
    claims = vector["claims"]
    keys = [key for key in OPENING if key.kid in claims["recip"]]
    assert keys
    for key in keys:
        result = opened(case_bytes(vector), [CountingKey(key)])
        assert result.recipient == key.kid
        assert (result.issuer, result.subject, result.bundle_id, result.seq) == tuple(
            claims[name] for name in ("iss", "sub", "jti", "seq")
        )
        assert [grant.id for grant in result.grants] == [grant["id"] for grant in claims["grants"]]
        environment = result.grant("env")
        assert environment is not None
        assert {k: v.reveal() for k, v in environment.variables.items()} == claims["grants"][-1]["variables"]  # type: ignore[union-attr]


def test_four_libraries_made_them() -> None:
    """JavaScript, Go, Java and Python each made theirs."""
    assert {path.stem.split("-")[0] for path in FILES} == {"panva", "gojose", "nimbus", "jwcrypto"}
