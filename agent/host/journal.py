"""What systemd and its journal say of a unit of ours, for a command that a person types: briefly, or not at all.

With the caller's own rights and search path. What a root service asks goes by :mod:`agent.host.systemctl`.
"""

from __future__ import annotations

import json
import subprocess
from typing import Final

MAX_LINE: Final = 400
_LINES: Final = 20


def ask(*command: str, seconds: float) -> str | None:
    """What a command prints; ``None``: it is not there, failed, or took longer than ``seconds``."""
    try:
        done = subprocess.run(  # noqa: S603 - no argument is a user's input
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def last_error(unit: str, *, seconds: float) -> str:
    """The last line of a service that says what went wrong; empty if we may not read the journal."""
    command = ("journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={_LINES}", f"_SYSTEMD_UNIT={unit}")
    for line in reversed((ask(*command, seconds=seconds) or "").splitlines()):
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
