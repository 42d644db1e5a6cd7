"""Asks systemd about the agent, for a command that gets no answer from the agent itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.core.text import printable
from agent.host import journal

UNIT: Final = "credential-agent.service"
SECONDS: Final = 2.0


#: The exit codes of systemd itself, before the program ran (systemd.exec(5), "Process Exit Codes"): what to do.
_BEFORE_IT: Final = {
    "203": "the program is not there or cannot be executed: install it again",
    "217": "the service's user is not there: systemd-sysusers, then systemctl restart credential-agent",
    "226": "systemd cannot make the sandbox: journalctl -u credential-agent",
    "233": "systemd cannot prepare /run/credential-agent: is /run full or read-only?",
    "238": "/var/lib/credential-agent is another user's and read-only: make it writable (mount -o remount,rw),"
    " or chown -R credential-agent:credential-agent /var/lib/credential-agent",
    "243": "systemd cannot pass a credential: look at LoadCredential= and /etc/credstore",
}


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
    hint = _BEFORE_IT.get(values.get("ExecMainStatus", ""), hint) if result != "success" else hint
    return Found(active=state in {"active", "reloading"}, said=said, hint=hint)
