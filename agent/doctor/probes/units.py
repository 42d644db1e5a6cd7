"""The state of our units, from systemd and the journal."""

from __future__ import annotations

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
    "Id,LoadState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,UnitFileState,MainPID,FreezerState"
)
SECONDS: Final = 1.8


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
    )


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
