"""The state of our units, from systemd and the journal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.doctor.facts import Unit, Units
from agent.host import journal

NAMES: Final = (
    "credential-agent.service",
    "credential-agent.socket",
    "credential-agent-control.socket",
    "credential-agent-redirect.service",
    "credential-agent-closed.service",
    "credential-agent-watch.service",
    "credential-agent-courier.socket",
    "credential-agent-ipv6.socket",
    "credential-agent-serve.service",
    "credential-agent-serve.socket",
    "credential-agent-hold.service",
    "credential-agent.target",
)
_PROPERTIES: Final = (
    "Id,LoadState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,UnitFileState,MainPID,FreezerState,"
    "User,DropInPaths,ControlGroup,Triggers"
)
SECONDS: Final = 1.8
_OURS: Final = re.compile(r"(40-interpreter|50-(ec2|gce|kernel-clock|nftables|systemd-[0-9]+))\.conf\Z")
"""Drop-ins that the install script makes (``systemd/drop-ins``)."""


def look_at_units() -> Units:
    """Ask systemd for the state of each unit, and the journal for the last error of the service."""
    shown = journal.ask("systemctl", "show", f"--property={_PROPERTIES}", *NAMES, seconds=SECONDS)
    if shown is None:
        return Units(present=False)
    units = [_unit(block) for block in shown.split("\n\n") if block.strip()]
    last_error = journal.last_error(NAMES[0], seconds=SECONDS)
    return Units(present=True, units={unit.name: unit for unit in units}, last_error=last_error)


def _unit(block: str) -> Unit:
    values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    pid = _number(values.get("MainPID", ""))
    return Unit(
        name=values.get("Id", ""),
        load=values.get("LoadState", ""),
        active=values.get("ActiveState", ""),
        sub=values.get("SubState", ""),
        result=values.get("Result", ""),
        status=values.get("ExecMainStatus", ""),
        restarts=_number(values.get("NRestarts", "")),
        enabled=values.get("UnitFileState", ""),
        pid=pid,
        process=_state(pid),
        frozen=values.get("FreezerState", "") in {"frozen", "freezing"},
        user=values.get("User", ""),
        drop_ins=tuple(path for path in values.get("DropInPaths", "").split() if _of_others(Path(path))),
        triggers=tuple(values.get("Triggers", "").split()),
        stopped=tuple(_stopped(values.get("ControlGroup", ""))),
    )


def _of_others(path: Path) -> bool:
    """Whether a drop-in is for this unit by name (not one for all services), and none that we install."""
    return path.parent.name.startswith("credential-agent") and not _OURS.match(path.name)


def _stopped(group: str) -> Iterator[int]:
    """Processes of a control group that are stopped, the ones that its main process has begun too."""
    if not group.strip("/"):
        return
    try:
        pids = Path(f"/sys/fs/cgroup{group}/cgroup.procs").read_text().split()
    except OSError:
        return
    yield from (int(pid) for pid in pids if _state(int(pid)) in {"T", "t"})


def _state(pid: int) -> str:
    """The state of a process (proc(5))."""
    if not pid:
        return ""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
