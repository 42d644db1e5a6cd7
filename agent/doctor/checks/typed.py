"""Commands as whoever looks can type them.

Where systemd does not keep the agent (a container, another supervisor), no finding tells to ask systemd. Where whoever
looks is not root, what needs root is told with how to become it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from agent.core.installed import KERNEL_JOURNAL, MEMORY_LIMIT
from agent.doctor.checks.unit import SERVICE
from agent.doctor.facts import Facts, Units
from agent.doctor.finding import Finding

_SYSTEMD: Final = ("systemctl ", "journalctl ", "systemd-")
_INSTEAD: Final[Mapping[str, str]] = {
    KERNEL_JOURNAL: "dmesg",
    MEMORY_LIMIT: "cat /sys/fs/cgroup/memory.max",
}
_LOOK: Final = ("look at what it writes to its standard error", "credential-agent status")
_RESTART: Final = ("start it again with what started it", "ps -eo pid,ppid,user,args")


_ANYBODY: Final = (
    "ls ", "cat ", "df ", "ps ", "ip route ", "getent ", "findmnt ", "timedatectl", "unset ", "export ", "mv ",
    "sudo ", "su ", "credential-agent whoami", "credential-agent doctor", "credential-agent run",
    "credential-agent inspect", "aws ",
)  # fmt: skip
"""What needs no rights on this machine."""


def typed(finding: Finding, facts: Facts) -> Finding:
    """``finding``, with a command that whoever looks can type on this machine."""
    kept = _kept(finding, facts)
    if facts.root or kept.next is None or kept.next.startswith(_ANYBODY):
        return kept
    return replace(kept, next=facts.as_root(kept.next))


def _kept(finding: Finding, facts: Facts) -> Finding:
    units, command = facts.units, finding.next
    kept = not isinstance(units, Units) or (
        units.present and (unit := units.units.get(SERVICE)) is not None and unit.load != "not-found"
    )
    if kept or command is None or not command.startswith(_SYSTEMD):
        return finding
    if command in _INSTEAD:
        return replace(finding, next=_INSTEAD[command])
    how, instead = _LOOK if command.startswith("journalctl ") else _RESTART
    return replace(finding, said=f"{finding.said}; {how}", next=instead)
