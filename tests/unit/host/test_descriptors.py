"""How file descriptors are shared out."""

from __future__ import annotations

import pytest

from agent.host.descriptors import RESERVE, shares


def test_enough_for_all() -> None:
    """Under the unit's limit everybody has what was configured."""
    assert (
        shares(65536, connections=8192, passed=288).connections,
        shares(65536, connections=8192, passed=288).passed,
    ) == (8192, 288)


@pytest.mark.parametrize("limit", [128, 256, 512, 1024, 4096, 8192])
def test_a_reserve_is_left(limit: int) -> None:
    """Under a low limit workers get what is left beside a reserve, and never nothing."""
    made = shares(limit, connections=8192, passed=288)
    assert made.connections + made.passed <= limit - min(RESERVE, limit // 2)
    assert made.connections >= 16
    assert made.passed >= 16
