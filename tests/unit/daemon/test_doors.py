"""Which address the environment files name, and under which names the door answers."""

from __future__ import annotations

import pytest

from agent.daemon import doors


@pytest.mark.parametrize(
    ("bound", "named"),
    [
        (["172.17.0.1:16925", "127.0.0.1:16925"], "127.0.0.1:16925"),
        (["[::1]:16925", "127.0.0.2:1"], "127.0.0.2:1"),
        (["[::1]:16925"], "[::1]:16925"),
        (["0.0.0.0:16925"], "127.0.0.1:16925"),
        (["[::]:16925"], "[::1]:16925"),
        (["172.17.0.1:80", "169.254.170.2:80"], "169.254.170.2:80"),
        (["[fd00:ec2::23]:80"], "[fd00:ec2::23]:80"),
        (["172.17.0.1:16925"], None),
        (["169.254.171.2:16925", "[fd6c:9e1f:25b2::2]:16925"], None),
    ],
)
def test_the_address_that_is_named_is_one_that_sdks_take(bound: list[str], named: str | None) -> None:
    """Loopback, ECS's and EKS's addresses are taken for a container endpoint by SDKs, and no other is named."""
    assert doors.pointer(bound) == named


def test_what_is_bound_is_ours_and_a_wildcard_is_nobodys() -> None:
    """Every bound address is one that a request may be addressed to; a wildcard is no address."""
    bound = ["172.17.0.1:16925", "0.0.0.0:80", "[::]:80", "[fd00::1]:80"]
    assert doors.hosts(bound) == ("172.17.0.1", "fd00::1")
