"""Is the configuration one that the service can start with?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from agent.core.installed import OURS, RELOAD
from agent.doctor.checks.slow import hung
from agent.doctor.facts import Control, Facts, Fault, Unknown
from agent.doctor.finding import Finding, fail, ok, skipped, warn

CHECK: Final = "configuration"
ELSEWHERE: Final = ("keys",)
"""Sections whose files other checks look at: one cause is told once."""
_DENIED: Final = "permission denied"


def configuration(facts: Facts) -> Iterator[Finding]:
    """Its text, and what it names."""
    found, path = facts.configuration, facts.config_path
    if isinstance(found, Unknown):
        if found.hung:
            yield hung(CHECK, found, f"a mount that {path} names, or is on, does not answer", "cat /proc/mounts", facts)
        else:
            yield skipped(CHECK, found.why, next=facts.more)
        return
    if not facts.root and any(not fault.key and _DENIED in fault.said for fault in found.faults):
        # Others than root and the service are not to read it: that is no mistake of the machine.
        yield skipped(CHECK, f"{path}: for root and the service alone", next=facts.more)
        return
    told = [fault for fault in found.faults if fault.text or fault.key.split("[")[0].split(".")[0] not in ELSEWHERE]
    for fault in told:
        if found.blocked and not fault.key:
            said = f"{fault.said}: the service may not look into {found.blocked}"
            yield fail(CHECK, said, f"chmod o+x {shlex.quote(found.blocked)}")
            continue
        if fault.path:
            yield _denied(fault)
            continue
        yield fail(CHECK, fault.said, _next(path, fault.key, fault.said), about=fault.key)
    # Whether systemd gives a credential only the service itself can see.
    notes = [line for line in found.told if not line.startswith("key ")]
    for line in notes:
        yield warn(CHECK, line, f"credential-agent check --config {path}")
    later = _later(facts, found.changed)
    if later and not told:
        yield warn(CHECK, later, RELOAD)
    if not told and not notes and not later:
        eyes = "as the service sees it" if found.as_service else "as this user sees it"
        yield ok(CHECK, f"{path}, {eyes}")


def _later(facts: Facts, changed: int) -> str:
    """Whether the file was changed after the agent read it; empty: no, or nobody says."""
    document = facts.control.document if isinstance(facts.control, Control) else {}
    stamp = (document.get("configuration") or {}).get("changed_at")
    if stamp is None or not changed or int(datetime.fromisoformat(stamp).timestamp()) == changed:
        return ""
    return f"{facts.config_path} was changed after the agent read it: what is in force is what it said before"


def _denied(fault: Fault) -> Finding:
    """A file that is there, and not for the service to read."""
    if fault.blocked:
        said = f"{fault.said}: the service may not look into {fault.blocked}"
        return fail(CHECK, said, f"chmod o+x {shlex.quote(fault.blocked)}", about=fault.key)
    return fail(CHECK, f"{fault.said}: {fault.mode}", OURS.format(shlex.quote(fault.path)), about=fault.key)


def _next(path: str, key: str, said: str) -> str:
    if not key and _DENIED in said:
        return OURS.format(shlex.quote(path))
    if not key and "no such file" in said:
        return f"ls -l {path}"
    return f"credential-agent check --config {path}"
