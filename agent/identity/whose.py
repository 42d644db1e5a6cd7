"""The owner of a memory: this machine, or the machine whose disk was copied.

An image made from a running worker carries its state directory: what it accepted, and often its key. A machine made of
it must serve nothing of that. Its name from the metadata service tells; while that is silent, what the firmware says
and the boot of the kernel do. Where nothing tells, nothing is served until something does.

Two errors are possible. To take a copy for the original serves the original's identity; to take this machine for a copy
forgets a withdrawal, for good. So a metadata service that fails, flaps or lies is checked by what it cannot influence,
the firmware and the kernel; and a contradiction is a doubt, in which nothing is served and nothing forgotten:

=============  ==============================  ==========================================
the name is    firmware (what both can say)    it is
=============  ==============================  ==========================================
the same       any                             ours; of ``machine:`` see below
not known      the same                        ours
not known      another                         another's
not known      nothing                         ours in the same boot, else unknown
another        the same                        unknown
another        another                         another's
another        nothing                         unknown in the same boot, else another's
of another     the same, or the same boot      unknown if both are clouds, else ours
kind
of another     another                         another's
kind
of another     nothing, another boot           unknown
kind
=============  ==============================  ==========================================

A *kind* is what stands before the colon: a cloud, ``machine`` (``/etc/machine-id``), ``config``. The operator's own
name (``config:``) is the last word.

``/etc/machine-id`` is a file, and copied with the others. So a memory of the same ``machine:`` is another's where the
firmware says so; and where it says nothing, and in another boot every network card is another one, it is unknown: it
may be a copy, or have got a new card. A bundle that is brought then is in force at once, and ends the doubt: nothing of
before is in force any more, and whatever was refused or taken away stays so.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final

from agent.core.verdict import CARDS, MOST_CARDS, Memory

_CLOUDS: Final = frozenset({"aws", "gcp"})


class Whose(enum.Enum):
    """The verdict on a memory."""

    OURS = "ours"
    ANOTHERS = "another's"
    UNKNOWN = "unknown"


def whose(memory: Memory, instance_id: str, *, boot_id: str, firmware: Mapping[str, str]) -> Whose:
    """Decide whose a memory is that was found.

    Args:
        memory: what was read from the state directory.
        instance_id: the machine's name; empty while it is not known. The operator's own (``config:``) is the last word.
        boot_id: of the running kernel. The same one is the same machine.
        firmware: what the firmware says this machine is, by the names of ``/sys/class/dmi/id``.
    """
    if not (memory.marks or memory.decided or memory.active or memory.floors):
        return Whose.OURS  # nothing is in it
    # An earlier version wrote down what surrounded the name, too.
    name, former = instance_id.strip(), memory.instance_id.strip()
    common = (firmware.keys() & memory.firmware.keys()) - {CARDS}
    same_firmware = all(firmware[one] == memory.firmware[one] for one in common) if common else None
    same_boot = bool(boot_id) and boot_id == memory.boot_id
    if name and former:
        other_cards = _are_all_others(_cards(firmware), _cards(memory.firmware))
        return _by_names(name, former, same_firmware=same_firmware, same_boot=same_boot, other_cards=other_cards)
    if same_firmware is not None:
        return Whose.OURS if same_firmware else Whose.ANOTHERS
    if same_boot or not memory.boot_id:
        return Whose.OURS  # one without a boot id is of an earlier version, which knew no more
    # Another boot, and no name to compare. Once we know ours, a memory without one is not proved to be ours.
    return Whose.ANOTHERS if name else Whose.UNKNOWN


def said_of(memory: Memory, firmware: Mapping[str, str]) -> dict[str, str]:
    """What is remembered of a machine whose memory this is.

    A card that is not there at one start, since its driver is slow, is still one of this machine's.
    """
    names = _names(firmware) or _names(memory.firmware)
    before, now = _cards(memory.firmware), _cards(firmware)
    kept = set() if _are_all_others(now, before) else before - now
    known = [*sorted(now), *sorted(kept)][:MOST_CARDS]
    return {**names, CARDS: " ".join(known)} if known else names


def _names(firmware: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in firmware.items() if name != CARDS}


def _cards(firmware: Mapping[str, str]) -> set[str]:
    return set(firmware.get(CARDS, "").split())


def _are_all_others(now: set[str], before: set[str]) -> bool:
    return bool(now and before) and not now & before


def _by_names(name: str, former: str, *, same_firmware: bool | None, same_boot: bool, other_cards: bool) -> Whose:
    kind, former_kind = _kind(name), _kind(former)
    if name == former:
        if kind != "machine":
            return Whose.OURS
        if same_firmware is None and other_cards and not same_boot:
            return Whose.UNKNOWN
        return Whose.ANOTHERS if same_firmware is False else Whose.OURS
    if kind == "config" or same_firmware is False:
        return Whose.ANOTHERS
    witness = same_firmware is True or same_boot
    if kind == former_kind:
        return Whose.UNKNOWN if witness else Whose.ANOTHERS
    # One cloud's name does not refute the other's. Between a cloud's and ours the configuration was changed.
    return Whose.OURS if witness and not {kind, former_kind} <= _CLOUDS else Whose.UNKNOWN


def name_among(names: Sequence[str], remembered: str, *, silent: bool) -> str:
    """Choose the machine's name among those that its metadata services say.

    A machine that speaks both clouds' protocols has two names, and either service may fail at a start: the name
    that is remembered stays the machine's, and the other one does not displace it.

    Args:
        names: what was said, the preferred one first.
        remembered: the name in the memory; empty if there is none.
        silent: a service that was asked did not say.

    Returns:
        The name; empty while it is not known.
    """
    for name in names:
        if remembered and _kind(name) == _kind(remembered):
            return name
    if silent and _kind(remembered) in _CLOUDS:
        return ""
    return names[0] if names else ""


def _kind(name: str) -> str:
    return name.partition(":")[0]
