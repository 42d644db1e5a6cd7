"""The state of our units, from systemd and the journal."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Final

from agent.doctor.facts import Unit, Units

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
    "credential-agent-hold.service",
    "credential-agent.target",
)
_PROPERTIES: Final = "Id,LoadState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,UnitFileState,MainPID"
SECONDS: Final = 1.8
MAX_LINE: Final = 400
_LINES: Final = 20


def look_at_units() -> Units:
    """Ask both."""
    shown = _run("systemctl", "show", f"--property={_PROPERTIES}", *NAMES)
    if shown is None:
        return Units(present=False)
    units = [_unit(block) for block in shown.split("\n\n") if block.strip()]
    return Units(present=True, units={unit.name: unit for unit in units}, last_error=last_error())


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
    )


def _state(pid: int) -> str:
    """The state of a process (proc(5))."""
    if not pid:
        return ""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""


def last_error() -> str:
    """The last line of the service that says what went wrong; empty if we may not read the journal."""
    text = _run("journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={_LINES}", f"_SYSTEMD_UNIT={NAMES[0]}")
    for line in reversed((text or "").splitlines()):
        told = line.strip()
        if told.startswith("{"):
            try:
                event = json.loads(told)
            except (ValueError, RecursionError):
                continue
            if not isinstance(event, dict) or event.get("level") not in {"error", "critical"}:
                continue
            told = " ".join(str(event[key]) for key in ("event", "reason") if key in event)
        elif told.startswith(("hint:", "--")):
            continue
        if told:
            return told.removeprefix("credential-agent: ")[:MAX_LINE]
    return ""


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - no argument is a user's input
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
