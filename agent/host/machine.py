"""Which machine this is, from the firmware and the disk: no network.

What is not there, or closed to us, is no name. What cannot be read for want of a descriptor or of memory may be one: it
raises :class:`HostError`, since a machine with another name forgets what the first was given.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from agent.core.errors import HostError
from agent.core.text import os_reason
from agent.core.verdict import CARDS, MOST_CARDS

Platform = Literal["ec2", "gce", "other"]

_DMI: Final = Path("sys/class/dmi/id")
_MACHINE_ID: Final = Path("etc/machine-id")
_BOOT_ID: Final = Path("proc/sys/kernel/random/boot_id")
_NET: Final = Path("sys/class/net")
_ID: Final = re.compile(r"[0-9a-f]{32}\Z")
_ADDRESS: Final = re.compile(r"(?!00:00:00:00:00:00)[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_WANT: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_ETHERNET: Final = "1"
_PERMANENT: Final = "0"

BOOT_ID_VARIABLE: Final = "CREDENTIAL_AGENT_BOOT_ID"
"""In it the unit passes the boot's id (``%b``): with ``ProcSubset=pid`` the service cannot read it itself."""

#: Firmware fields that tell one machine from another, and that a service without privileges may be able to read. Other
#: fields hold words that thousands of machines share ("Default string", an owner's inventory number on every board).
_NAMES: Final = {
    "board_asset_tag": re.compile(r"i-[0-9a-f]{8,17}\Z"),  # EC2 on Nitro: the instance's id
    "product_uuid": re.compile(r"(?!(.)\1{7}-)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z"),  # root's alone
    "product_serial": re.compile(r"googlecloud-[0-9a-f]{32}\Z"),  # root's alone
}
_XEN_UUID: Final = re.compile(r"ec2[0-9a-f]{5}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


def platform(root: Path = Path("/")) -> Platform:
    """The cloud whose firmware this is.

    EC2 (Nitro) has the vendor "Amazon EC2"; GCE the product "Google Compute Engine" (both clouds' documentation). A
    Xen EC2 instance has a hypervisor uuid that begins with ``ec2``.
    """
    vendor = _read(root / _DMI / "sys_vendor")
    product = _read(root / _DMI / "product_name")
    if vendor == "Amazon EC2" or _read(root / "sys/hypervisor/uuid").lower().startswith("ec2"):
        return "ec2"
    if product.startswith("Google Compute Engine") or vendor == "Google":
        return "gce"
    return "other"


def machine_id(root: Path = Path("/")) -> str:
    """``/etc/machine-id``, or the empty string.

    Images are made with an empty one, or with the word ``uninitialized`` (machine-id(5)), so that each machine draws
    its own at its first boot. Both are no names: two machines could have it.
    """
    found = _read(root / _MACHINE_ID)
    return found if _ID.match(found) else ""


def firmware_names(root: Path = Path("/")) -> dict[str, str]:
    """The names that the firmware gives this very machine, as far as we may read them; often none. And its cards."""
    found = {name: _read(root / _DMI / name).lower() for name in _NAMES}
    names = {name: text for name, text in found.items() if _NAMES[name].match(text)}
    xen = _read(root / "sys/hypervisor/uuid").lower()
    if _XEN_UUID.match(xen):
        names["hypervisor_uuid"] = xen
    addresses = cards(root)
    return {**names, CARDS: " ".join(addresses)} if addresses else names


def cards(root: Path = Path("/")) -> tuple[str, ...]:
    """The addresses that are burnt into its network cards, or that its hypervisor gave them.

    Not those that somebody set or drew: of bridges, bonds, containers' links (``addr_assign_type`` of sysfs-class-net).
    Two machines may have the same ones, if nobody took care; another card has another.
    """
    found = set()
    try:
        every = sorted((root / _NET).iterdir())[: 16 * MOST_CARDS]
    except OSError as error:
        _check_that_it_is_absent(root / _NET, error)
        return ()
    for card in every:
        address = _read(card / "address").lower()
        kind, assigned = _read(card / "type"), _read(card / "addr_assign_type")
        if (kind, assigned) == (_ETHERNET, _PERMANENT) and _ADDRESS.match(address):
            found.add(address)
    return tuple(sorted(found)[:MOST_CARDS])


def boot(directory: Path, environ: Mapping[str, str], root: Path = Path("/")) -> str:
    """A text that stays the same while this kernel runs and ``directory`` is the same inode.

    A container that was copied runs on the same kernel as the one it was copied from (LXC shows both the same boot id),
    but a copied directory is another inode. Empty when the boot's id is not known.
    """
    try:
        kernel = (environ.get(BOOT_ID_VARIABLE) or _read(root / _BOOT_ID)).replace("-", "").lower()
        place = directory.stat()
    except (OSError, HostError):
        return ""
    return f"{kernel}:{place.st_dev}:{place.st_ino}" if _ID.match(kernel) else ""


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except UnicodeDecodeError:
        return ""
    except OSError as error:
        _check_that_it_is_absent(path, error)
        return ""


def _check_that_it_is_absent(path: Path, error: OSError) -> None:
    if error.errno in _WANT:
        raise HostError(f"{path}: cannot be read: {os_reason(error)}") from None
