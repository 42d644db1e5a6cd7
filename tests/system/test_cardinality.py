"""However many streams, grants and users there are: a scrape has a bounded number of series, and names no user."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from agent.core.counters import MAX_KEYS
from agent.core.model import Cloud
from tests.system.harness import World

pytestmark = pytest.mark.slow

STREAMS = MAX_KEYS + 64
FIXED = 400
"""More than the families whose labels are of our own choice have together."""


def series(text: str) -> list[str]:
    """Names and labels of what a scrape has."""
    return [line.rpartition(" ")[0] for line in text.splitlines() if line and not line.startswith("#")]


def test_the_number_of_series_does_not_follow_the_number_of_senders(tmp_path: Path) -> None:
    """More streams and grants than are told apart: a few families are as large as they may be.

    Nothing of a stream's name is a label, nor of a user.
    """
    world = World(tmp_path)
    with world.agent({"mint": {"sts_endpoint": "http://127.0.0.1:1"}}) as agent:
        agent.ready()
        before = len(series(agent.operate("/metrics").body.decode()))
        now = datetime.now(UTC)
        for number in range(STREAMS):
            base = msgspec.structs.replace(world.session(), id=f"base-{number}")
            role = msgspec.structs.replace(world.role_grant(base=base.id), id=f"role-{number}")
            sealed = world.seal(
                base, role, subject=f"user:stream-{number}", routes={Cloud.AWS: role.id},
                now=now + timedelta(seconds=number - STREAMS),
            )  # fmt: skip
            assert agent.push(sealed)["outcome"] == "accepted", agent.status()["last_refusal"]
        found = series(agent.operate("/metrics").body.decode())
    assert before < FIXED
    # By grant: issued, when and how long ago, and failures by the cloud's word.
    assert len(found) < FIXED + 4 * (MAX_KEYS + 2)
    assert not [one for one in found if "stream-" in one]
    labels = {name for one in found for name in re.findall(r"(\w+)=\"", one)}
    assert not labels & {"uid", "user", "subject", "issuer", "seq", "address"}
