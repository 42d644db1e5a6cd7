"""Whose a memory is."""

from __future__ import annotations

import pytest

from agent.core.model import Cloud
from agent.core.verdict import Mark, Memory
from agent.core.whose import Whose, whose
from tests.fakes.clock import START

HERE, ELSEWHERE = "boot-a:1:2", "boot-b:1:2"


def memory(instance_id: str = "aws:i-1", boot_id: str = HERE, firmware: dict[str, str] | None = None) -> Memory:
    mark = Mark("cp", "team", 1, "0" * 64)
    return Memory(instance_id, (mark,), {Cloud.AWS: None}, mark, boot_id=boot_id, firmware=firmware or {})


@pytest.mark.parametrize(
    ("found", "name", "boot_id", "firmware", "expected"),
    [
        (memory(), "aws:i-1", ELSEWHERE, {}, Whose.OURS),
        (memory(), "aws:i-2", HERE, {}, Whose.ANOTHERS),
        (memory(), "", HERE, {}, Whose.OURS),  # a restart while the metadata service is silent
        (memory(), "", ELSEWHERE, {}, Whose.UNKNOWN),  # a reboot, or a clone
        (memory(firmware={"u": "a"}), "", ELSEWHERE, {"u": "a"}, Whose.OURS),
        (memory(firmware={"u": "a"}), "", ELSEWHERE, {"u": "b"}, Whose.ANOTHERS),
        (memory(firmware={"u": "a"}), "", HERE, {"u": "b"}, Whose.ANOTHERS),  # a snapshot taken with its memory
        (memory(firmware={"u": "a"}), "", ELSEWHERE, {"v": "a"}, Whose.UNKNOWN),
        (memory(firmware={"u": "a", "v": "b"}), "", ELSEWHERE, {"u": "a", "v": "c"}, Whose.ANOTHERS),
        (memory(""), "aws:i-1", HERE, {}, Whose.OURS),  # it is learned late
        (memory(""), "aws:i-2", ELSEWHERE, {}, Whose.ANOTHERS),  # the first one never learned its name
        (memory(""), "", ELSEWHERE, {}, Whose.UNKNOWN),
        (memory("", boot_id=""), "aws:i-1", ELSEWHERE, {}, Whose.OURS),  # of a version that knew no boots
        (memory("machine:1"), "machine:1", ELSEWHERE, {}, Whose.OURS),
        (memory("machine:1", firmware={"u": "a"}), "machine:1", ELSEWHERE, {"u": "b"}, Whose.ANOTHERS),
        (memory("config:x", firmware={"u": "a"}), "config:x", ELSEWHERE, {"u": "b"}, Whose.OURS),
        (Memory("aws:i-1"), "aws:i-2", ELSEWHERE, {}, Whose.OURS),  # nothing is in it
    ],
)
def test_whose(found: Memory, name: str, boot_id: str, firmware: dict[str, str], expected: Whose) -> None:
    """The name decides; without one the boot and the firmware; where nothing tells, nothing is assumed."""
    assert whose(found, name, boot_id=boot_id, firmware=firmware) is expected


@pytest.mark.parametrize(
    "found",
    [
        Memory("aws:i-1", marks=(Mark("cp", "team", 1, "0" * 64),)),
        Memory("aws:i-1", decided={Cloud.AWS: None}),
        Memory("aws:i-1", active=Mark("cp", "team", 1, "0" * 64)),
        Memory("aws:i-1", floors={"cp": START}),
    ],
    ids=["marks", "decided", "active", "floors"],
)
def test_whatever_is_in_a_memory_makes_it_somebodys(found: Memory) -> None:
    """A clone keeps neither another machine's marks, nor what it decided, nor what was in force, nor its floors."""
    assert whose(found, "aws:i-2", boot_id=ELSEWHERE, firmware={}) is Whose.ANOTHERS
