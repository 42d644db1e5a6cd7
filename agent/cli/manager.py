"""Asks systemd about the agent, for a command that gets no answer from the agent itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.core.installed import BEFORE_IT
from agent.core.text import printable
from agent.host import journal

UNIT: Final = "credential-agent.service"
SECONDS: Final = 2.0


#: The exit codes of systemd itself, before the program ran (systemd.exec(5), "Process Exit Codes"): what to do.


@dataclass(frozen=True, slots=True)
class Found:
    """The result of one look.

    Attributes:
        active: it has started, so it is only slow.
        said: what is wrong, in one line.
        hint: what to do.
    """

    active: bool
    said: str
    hint: str


def look() -> Found | None:
    """Ask systemd and the journal; ``None`` where there is no systemd, or it knows no such unit."""
    properties = "--property=LoadState,ActiveState,SubState,Result,ExecMainStatus,NRestarts"
    shown = journal.ask("systemctl", "show", UNIT, properties, seconds=SECONDS)
    if shown is None:
        return None
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    if values.get("LoadState") != "loaded":
        return None
    state, result = values.get("ActiveState", "unknown"), values.get("Result", "unknown")
    said = f"{UNIT} is {state} ({values.get('SubState', 'unknown')})"
    if result != "success":
        said += f", its last end: {result}, status {values.get('ExecMainStatus', 'unknown')}"
    restarts = values.get("NRestarts", "0")
    if restarts != "0":
        said += f", started again {restarts} times"
    last = printable(journal.last_error(UNIT, seconds=SECONDS))
    if last:
        said += f'; it said: "{last}"'
    failing = result != "success" or restarts != "0"
    hint = (
        "credential-agent check, then systemctl restart credential-agent"
        if failing
        else "journalctl -u credential-agent"
    )
    before = BEFORE_IT.get(values.get("ExecMainStatus", "")) if result == "exit-code" else None
    hint = f"{before[0]}: {before[1]}" if before is not None else hint
    return Found(active=state in {"active", "reloading"}, said=said, hint=hint)
