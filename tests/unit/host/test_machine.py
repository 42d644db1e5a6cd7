"""What machine this is, by its firmware."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.core.errors import HostError
from agent.core.verdict import CARDS
from agent.host import machine
from tests.unit.host.test_systemd import no_descriptor_left


def make(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


VENDOR = "sys/class/dmi/id/sys_vendor"
PRODUCT = "sys/class/dmi/id/product_name"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "other"),
        ({VENDOR: "Amazon EC2\n", PRODUCT: "m7i.large\n"}, "ec2"),
        ({"sys/hypervisor/uuid": "ec2e1916-9099-7caf-fd21-012345abcdef\n"}, "ec2"),
        ({"sys/hypervisor/uuid": "EC2E1916-9099-7CAF-FD21-012345ABCDEF\n"}, "ec2"),
        ({VENDOR: "Xen\n", "sys/hypervisor/uuid": "45e12aec-dcd1-b213-94ed-012345abcdef\n"}, "other"),
        ({VENDOR: "Google\n", PRODUCT: "Google Compute Engine\n"}, "gce"),
        ({PRODUCT: "Google Compute Engine\n"}, "gce"),
        ({VENDOR: "Google\n", PRODUCT: "Google\n"}, "gce"),
        ({VENDOR: "QEMU\n", PRODUCT: "Standard PC (Q35 + ICH9, 2009)\n"}, "other"),
        ({VENDOR: "Amazon EC2 look-alike\n"}, "other"),
        ({VENDOR: b"\xff\xfe"}, "other"),
    ],
)
def test_the_platform_is_what_the_firmware_says(tmp_path: Path, files: dict[str, str | bytes], expected: str) -> None:
    """The platform follows the vendors' documented strings, and nothing else counts as a cloud."""
    assert machine.platform(make(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("0123456789abcdef0123456789abcdef\n", "0123456789abcdef0123456789abcdef"),
        ("", ""),
        ("uninitialized\n", ""),
        (b"\xff", ""),
    ],
)
def test_the_machine_id_is_its_own_or_none(tmp_path: Path, content: str | bytes, expected: str) -> None:
    """An image has no machine id, or ``uninitialized`` (machine-id(5)): neither may pass for a name of a machine."""
    assert machine.machine_id(make(tmp_path, {"etc/machine-id": content})) == expected


def test_without_a_machine_id_there_is_none(tmp_path: Path) -> None:
    """A container without the file has no name of its own."""
    assert machine.machine_id(tmp_path) == ""


@pytest.mark.parametrize("ask", [machine.platform, machine.machine_id, machine.firmware_names, machine.cards])
def test_what_cannot_be_read_just_now_is_not_absent(tmp_path: Path, ask: Callable[[Path], object]) -> None:
    """Without a descriptor for it this would be another machine, or in no cloud, for as long as the agent runs."""
    make(tmp_path, {VENDOR: "Google", "etc/machine-id": "a" * 32, "sys/class/net/eth0/address": "52:54:00:aa:00:01"})
    with no_descriptor_left(), pytest.raises(HostError, match="cannot be read: too many open files"):
        ask(tmp_path)
    assert ask(tmp_path / "nothing") in ("other", "", {}, ())


TAG = "sys/class/dmi/id/board_asset_tag"
UUID = "sys/class/dmi/id/product_uuid"
BOOT = "proc/sys/kernel/random/boot_id"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {}),
        ({TAG: "i-0123456789abcdef0\n"}, {"board_asset_tag": "i-0123456789abcdef0"}),
        ({TAG: "Default string\n"}, {}),
        ({TAG: "ACME-RACK-7\n"}, {}),
        ({UUID: "EC2E1916-9099-7CAF-FD21-012345ABCDEF\n"}, {"product_uuid": "ec2e1916-9099-7caf-fd21-012345abcdef"}),
        ({UUID: "00000000-0000-0000-0000-000000000000\n"}, {}),
        ({UUID: "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF\n"}, {}),
        (
            {"sys/hypervisor/uuid": "ec2e1916-9099-7caf-fd21-012345abcdef\n"},
            {"hypervisor_uuid": "ec2e1916-9099-7caf-fd21-012345abcdef"},
        ),
        ({"sys/hypervisor/uuid": "11111916-9099-7caf-fd21-012345abcdef\n"}, {}),
    ],
)
def test_names_that_many_machines_share_are_no_names(
    tmp_path: Path, files: dict[str, str | bytes], expected: dict[str, str]
) -> None:
    """What the firmware calls this very machine counts; words of a vendor or an owner do not."""
    assert machine.firmware_names(make(tmp_path, files)) == expected


def test_a_boot_is_of_a_kernel_and_a_directory(tmp_path: Path) -> None:
    """The same kernel and directory are the same boot; another kernel, or a copy of the directory, is another."""
    root = make(tmp_path / "root", {BOOT: "01234567-89ab-cdef-0123-456789abcdef\n"})
    one, copy = tmp_path / "one", tmp_path / "copy"
    one.mkdir()
    copy.mkdir()

    here = machine.boot(one, {}, root)
    assert here
    assert machine.boot(one, {}, root) == here
    assert machine.boot(one, {machine.BOOT_ID_VARIABLE: "0123456789abcdef0123456789abcdef"}, root) == here
    assert machine.boot(one, {machine.BOOT_ID_VARIABLE: "f" * 32}, root) != here
    assert machine.boot(copy, {}, root) != here


def test_a_boot_that_is_not_known_equals_no_other(tmp_path: Path) -> None:
    """Without the kernel's id, or a directory, there is none; nor where it cannot be read just now."""
    make(tmp_path / "kernel", {BOOT: "01234567-89ab-cdef-0123-456789abcdef"})
    with no_descriptor_left():
        assert machine.boot(tmp_path, {}, tmp_path / "kernel") == ""
    assert machine.boot(tmp_path, {}, tmp_path / "nothing") == ""
    assert machine.boot(tmp_path / "nothing", {machine.BOOT_ID_VARIABLE: "f" * 32}, tmp_path) == ""
    assert machine.boot(tmp_path, {machine.BOOT_ID_VARIABLE: "%b"}, tmp_path) == ""


def test_only_what_is_burnt_into_a_card_counts(tmp_path: Path) -> None:
    """Links of containers, bridges and what somebody set are drawn anew, or are the same on many machines."""

    def card(name: str, address: str, *, kind: str = "1", assigned: str = "0") -> dict[str, str | bytes]:
        place = f"sys/class/net/{name}"
        return {f"{place}/address": address, f"{place}/type": kind, f"{place}/addr_assign_type": assigned}

    found = machine.firmware_names(
        make(
            tmp_path,
            {
                **card("eth1", "52:54:00:AA:00:02\n"),
                **card("eth0", "52:54:00:aa:00:01\n"),
                **card("lo", "00:00:00:00:00:00\n", kind="772"),
                **card("dummy0", "00:00:00:00:00:00\n"),
                **card("veth0", "5e:00:00:00:00:01\n", assigned="1"),
                **card("bond0", "5e:00:00:00:00:02\n", assigned="2"),
                **card("br0", "5e:00:00:00:00:03\n", assigned="3"),
                **card("ib0", "80:00:02:08:fe:80\n", kind="32"),
                "sys/class/net/bonding_masters": "bond0\n",
            },
        )
    )
    assert found == {CARDS: "52:54:00:aa:00:01 52:54:00:aa:00:02"}
