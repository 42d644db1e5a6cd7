"""Whose a memory is: this machine's, or that of the machine whose disk was copied.

An image made from a running worker carries its state directory: what it accepted, and often its key. A machine made of
it must serve nothing of that. Its name from the metadata service tells; while that is silent, what the firmware says
and the boot of the kernel do. Where nothing tells, nothing is served until something does.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from agent.core.verdict import Memory


class Whose(enum.Enum):
    """The verdict on a memory."""

    OURS = "ours"
    ANOTHERS = "another's"
    UNKNOWN = "unknown"


def whose(memory: Memory, instance_id: str, *, boot_id: str, firmware: Mapping[str, str]) -> Whose:
    """Judge a memory that was found.

    Args:
        memory: what was read from the state directory.
        instance_id: the machine's name; empty while it is not known. The operator's own (``config:``) is the last word.
        boot_id: of the running kernel. The same one is the same machine.
        firmware: what the firmware says this machine is, by the names of ``/sys/class/dmi/id``.
    """
    if not (memory.marks or memory.decided or memory.active or memory.floors):
        return Whose.OURS  # nothing is in it
    named = bool(instance_id and memory.instance_id)
    if named and instance_id != memory.instance_id:
        return Whose.ANOTHERS
    if named and not instance_id.startswith("machine:"):
        return Whose.OURS
    # /etc/machine-id is a file, and copied with the others: here the firmware may still object.
    common = firmware.keys() & memory.firmware.keys()
    if common:
        return Whose.OURS if all(firmware[name] == memory.firmware[name] for name in common) else Whose.ANOTHERS
    if boot_id and boot_id == memory.boot_id:
        return Whose.OURS
    if named or not memory.boot_id:
        return Whose.OURS  # by its machine-id; or an earlier version wrote it, which knew no more
    # Another boot, and no name to compare. Once we know ours, a memory without one is not proved to be ours.
    return Whose.ANOTHERS if instance_id else Whose.UNKNOWN
