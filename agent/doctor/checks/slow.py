"""A look that did not end in its time: something that it asks does not answer, or this machine is overloaded."""

from __future__ import annotations

from typing import Final

from agent.doctor.facts import Facts, Unknown
from agent.doctor.finding import Finding, fail, warn

STARVED: Final = 50.0
"""Per cent of the time in which somebody waits for a processor: a look of two seconds proves nothing then."""
PROCESSES: Final = "ps -eo pid,user,pcpu,comm --sort=-pcpu"


def hung(check: str, found: Unknown, cause: str, command: str, facts: Facts) -> Finding:
    """The finding.

    Args:
        check: whose.
        found: what came of the look.
        cause: what it means where the machine has time.
        command: what to type then.
        facts: how busy the machine is.
    """
    memory = facts.memory
    if isinstance(memory, Unknown) or memory.waiting < STARVED:
        return fail(check, f"{found.why}: {cause}", command)
    said = f"{found.why}: this machine is overloaded (programs wait for a processor {memory.waiting:.0f} % of the time)"
    return warn(check, f"{said}, or {cause}; look again when it is not", PROCESSES)
