"""Whose a memory is."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.model import Cloud
from agent.core.verdict import CARDS, MOST_CARDS, Mark, Memory
from agent.identity.whose import Whose, name_among, said_of, whose
from tests.fakes.clock import START

HERE, ELSEWHERE = "boot-a:1:2", "boot-b:1:2"


def memory(instance_id: str = "aws:i-1", boot_id: str = HERE, firmware: dict[str, str] | None = None) -> Memory:
    mark = Mark("cp", "team", 1, "0" * 64)
    return Memory(instance_id, (mark,), {Cloud.AWS: None}, mark, boot_id=boot_id, firmware=firmware or {})


@pytest.mark.parametrize(
    ("found", "name", "boot_id", "firmware", "expected"),
    [
        (memory(), "aws:i-1", ELSEWHERE, {}, Whose.OURS),
        (memory(), "aws:i-2", ELSEWHERE, {}, Whose.ANOTHERS),
        (memory(), "aws:i-2", HERE, {}, Whose.UNKNOWN),  # the kernel is the one that wrote it: the service errs
        (memory(firmware={"u": "a"}), "aws:i-2", HERE, {"u": "a"}, Whose.UNKNOWN),
        (memory(firmware={"u": "a"}), "aws:i-2", ELSEWHERE, {"u": "a"}, Whose.UNKNOWN),
        (memory(firmware={"u": "a"}), "aws:i-2", HERE, {"u": "b"}, Whose.ANOTHERS),
        (memory(firmware={"u": "a"}), "aws:i-2", ELSEWHERE, {}, Whose.ANOTHERS),
        (memory(), "gcp:1", HERE, {}, Whose.UNKNOWN),  # one of two services failed
        (memory(), "gcp:1", ELSEWHERE, {}, Whose.UNKNOWN),
        (memory(firmware={"u": "a"}), "gcp:1", ELSEWHERE, {"u": "a"}, Whose.UNKNOWN),
        (memory(firmware={"u": "a"}), "gcp:1", ELSEWHERE, {"u": "b"}, Whose.ANOTHERS),
        (memory("machine:1"), "aws:i-1", HERE, {}, Whose.OURS),  # a metadata service was configured
        (memory("machine:1"), "aws:i-1", ELSEWHERE, {}, Whose.UNKNOWN),
        (memory("config:x"), "aws:i-1", HERE, {}, Whose.OURS),
        (memory("aws:i-1"), "machine:1", HERE, {}, Whose.OURS),  # it was taken out
        (memory("aws:i-1"), "machine:1", ELSEWHERE, {}, Whose.UNKNOWN),
        (memory("config:x"), "config:y", HERE, {}, Whose.ANOTHERS),  # the operator's word is the last
        (memory("aws:i-1"), "config:y", HERE, {"u": "a"}, Whose.ANOTHERS),
        (memory("aws:i-1\n"), "aws:i-1", ELSEWHERE, {}, Whose.OURS),  # as an earlier version wrote it
        (memory("gcp:1 "), "gcp:1", ELSEWHERE, {}, Whose.OURS),
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
        (memory("machine:1", firmware={CARDS: "a b"}), "machine:1", ELSEWHERE, {CARDS: "b c"}, Whose.OURS),
        (memory("machine:1", firmware={CARDS: "a b"}), "machine:1", ELSEWHERE, {CARDS: "c"}, Whose.UNKNOWN),
        (memory("machine:1", firmware={CARDS: "a b"}), "machine:1", HERE, {CARDS: "c"}, Whose.OURS),  # exchanged
        (memory("machine:1", firmware={CARDS: "a b"}), "machine:1", ELSEWHERE, {}, Whose.OURS),  # no driver yet
        (memory("machine:1"), "machine:1", ELSEWHERE, {CARDS: "a"}, Whose.OURS),  # an earlier version wrote it
        (
            memory("machine:1", firmware={"u": "a", CARDS: "a"}),
            "machine:1",
            ELSEWHERE,
            {"u": "a", CARDS: "b"},
            Whose.OURS,
        ),
        (
            memory("machine:1", firmware={"u": "a", CARDS: "a"}),
            "machine:1",
            ELSEWHERE,
            {"u": "b", CARDS: "a"},
            Whose.ANOTHERS,
        ),
        (memory(firmware={CARDS: "a"}), "aws:i-1", ELSEWHERE, {CARDS: "b"}, Whose.OURS),
        (memory(firmware={CARDS: "a"}), "", ELSEWHERE, {CARDS: "a"}, Whose.UNKNOWN),  # two may have the same cards
        (memory("config:x", firmware={CARDS: "a"}), "config:x", ELSEWHERE, {CARDS: "b"}, Whose.OURS),
        (Memory("aws:i-1"), "aws:i-2", ELSEWHERE, {}, Whose.OURS),  # nothing is in it
    ],
)
def test_the_name_decides_and_nothing_is_assumed_without_one(
    found: Memory, name: str, boot_id: str, firmware: dict[str, str], expected: Whose
) -> None:
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


NAMES = st.sampled_from(["", "aws:i-1", "aws:i-2", "aws:i-3", "gcp:1", "gcp:2", "machine:1", "aws:i-1\n"])
SAID = st.lists(NAMES.filter(bool), max_size=2)
FIRMWARE = {"board_asset_tag": "i-1", "product_uuid": "a"}


def _learned(found: Memory, name: str, boot_id: str, firmware: dict[str, str]) -> Memory:
    return msgspec.structs.replace(
        found, instance_id=name or found.instance_id, boot_id=boot_id, firmware=firmware or found.firmware
    )


@given(
    starts=st.lists(
        st.tuples(SAID, st.booleans(), st.booleans(), st.sets(st.sampled_from(sorted(FIRMWARE)), min_size=1)),
        max_size=8,
    ),
    first=NAMES,
    readable=st.booleans(),
)
def test_the_same_machine_forgets_nothing_whatever_its_metadata_service_says(
    starts: list[tuple[list[str], bool, bool, set[str]]], first: str, *, readable: bool
) -> None:
    """Firmware, or where it says nothing the boot, outweighs any row of names, silences and flaps."""
    found = memory(first, firmware=FIRMWARE if readable else {})
    for number, (said, silent, reboots, seen) in enumerate(starts):
        boot_id = f"boot-{number}" if readable and reboots else found.boot_id
        firmware = {name: FIRMWARE[name] for name in seen} if readable else {}
        name = name_among(said, found.instance_id, silent=silent)
        verdict = whose(found, name, boot_id=boot_id, firmware=firmware)
        # /sys may show less to one start than to the next; what both show is what is compared.
        if found.firmware.keys() & firmware.keys() or boot_id == found.boot_id:
            assert verdict is not Whose.ANOTHERS
        if verdict is Whose.OURS:
            found = _learned(found, name, boot_id, {**found.firmware, **firmware})


@given(
    said=st.lists(st.sampled_from(["aws:i-2", "aws:i-3", "gcp:2"]), max_size=2),
    silent=st.booleans(),
    boot_id=st.sampled_from(["", HERE, ELSEWHERE]),
    first=st.sampled_from(["", "aws:i-1", "gcp:1", "machine:1", "config:x"]),
)
def test_a_clone_never_serves_the_original(said: list[str], *, silent: bool, boot_id: str, first: str) -> None:
    """Another firmware and no word of the original's name: nothing that is remembered is ours."""
    found = memory(first, firmware={"u": "a"})
    name = name_among(said, found.instance_id, silent=silent)

    assert whose(found, name, boot_id=boot_id, firmware={"u": "b"}) is Whose.ANOTHERS


@pytest.mark.parametrize(
    ("names", "remembered", "silent", "expected"),
    [
        (["aws:i-1", "gcp:1"], "", False, "aws:i-1"),
        (["gcp:1"], "", True, "gcp:1"),  # nothing is remembered that it could displace
        (["aws:i-1", "gcp:1"], "gcp:1", False, "gcp:1"),
        (["aws:i-1", "gcp:2"], "gcp:1", False, "gcp:2"),
        (["gcp:1"], "aws:i-1", True, ""),
        (["gcp:1"], "aws:i-1", False, "gcp:1"),
        (["gcp:1"], "machine:1", True, "gcp:1"),
        ([], "aws:i-1", True, ""),
        ([], "", False, ""),
    ],
)
def test_a_failing_service_leaves_the_name_to_the_memory(
    names: list[str], remembered: str, *, silent: bool, expected: str
) -> None:
    """Of a machine with two names the remembered one stays, and while its service is silent it is not known."""
    assert name_among(names, remembered, silent=silent) == expected


@pytest.mark.parametrize(
    ("before", "now", "kept"),
    [
        ({}, {}, {}),
        ({"u": "a", CARDS: "a"}, {}, {"u": "a", CARDS: "a"}),
        ({"u": "a"}, {"v": "b"}, {"v": "b"}),
        ({"u": "a"}, {CARDS: "a"}, {"u": "a", CARDS: "a"}),
        ({CARDS: "a b"}, {"u": "a", CARDS: "b c"}, {"u": "a", CARDS: "b c a"}),
        ({CARDS: "a b"}, {CARDS: "c"}, {CARDS: "c"}),
        ({CARDS: "a"}, {"u": "a"}, {"u": "a", CARDS: "a"}),
    ],
)
def test_what_is_remembered_of_a_machine(before: dict[str, str], now: dict[str, str], kept: dict[str, str]) -> None:
    """What it says now; and what it does not say at every start (a driver is slow, /sys is closed) is not forgotten."""
    assert said_of(memory(firmware=before), now) == kept


def test_no_more_cards_are_remembered_than_can_be() -> None:
    """Those that are there come first."""
    many = [f"{number:03}" for number in range(3 * MOST_CARDS)]
    said = said_of(memory(firmware={CARDS: " ".join(many)}), {CARDS: many[-1]})
    assert said[CARDS].split() == [many[-1], *many[: MOST_CARDS - 1]]
