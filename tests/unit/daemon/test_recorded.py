"""What earlier versions wrote is read by this one: documents that their processes left, as they left them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.core.model import Cloud
from agent.core.verdict import Memory
from agent.daemon import handover
from agent.host.clock import SystemClock
from agent.host.state import MEMORY_FILE, StateDirectory
from agent.host.systemd import Passed

VECTORS = Path(__file__).parents[2] / "vectors" / "state"


def is_what_was_known(memory: Memory) -> None:
    """The third bundle of a sender was in force, and had decided AWS."""
    (mark,) = memory.marks
    assert (mark.issuer, mark.subject, mark.seq) == ("https://control.example", "user:alice", 3)
    assert (memory.instance_id, memory.decided, memory.active) == ("config:i-1", {Cloud.AWS: None}, mark)


@pytest.mark.parametrize("path", sorted(VECTORS.glob("memory-*.json")), ids=lambda path: path.stem)
def test_a_memory_of_an_earlier_version_is_read(tmp_path: Path, path: Path) -> None:
    """What was decided stays decided, and what was accepted is not accepted again."""
    (tmp_path / MEMORY_FILE).write_bytes(path.read_bytes())
    is_what_was_known(StateDirectory(tmp_path).load()[0])


@pytest.mark.parametrize("path", sorted(VECTORS.glob("handover-*.json")), ids=lambda path: path.stem)
def test_a_handover_of_an_earlier_version_is_taken(path: Path) -> None:
    """An upgrade is a restart: it re-earns nothing."""
    memfd = os.memfd_create("test")
    os.write(memfd, path.read_bytes())
    left = handover.take(Passed({}, {handover.NAME: memfd}), SystemClock(boottime=lambda: 1e6))
    assert left is not None
    is_what_was_known(left.memory)
    assert all((handover.decoded(left.sealed), handover.decoded(left.signed), left.signers, left.tokens))


def test_each_of_them_is_recorded() -> None:
    """Without a document the two above would have nothing to say."""
    assert {path.name.partition("-")[0] for path in VECTORS.iterdir()} == {"memory", "handover"}
