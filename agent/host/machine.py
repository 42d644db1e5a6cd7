"""What machine this is, from the firmware and the disk: no network."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Final, Literal

Platform = Literal["ec2", "gce", "other"]

_DMI: Final = Path("sys/class/dmi/id")
_MACHINE_ID: Final = Path("etc/machine-id")
_ID: Final = re.compile(r"[0-9a-f]{32}\Z")


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
    its own at its first boot. Neither is a name: two machines would have it.
    """
    found = _read(root / _MACHINE_ID)
    return found if _ID.match(found) else ""


def _read(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip()
    return ""
