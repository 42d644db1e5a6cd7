"""One function a check: from what was found to what is said of it. Pure; a new check is a file here and its line below.

The order is from causes to consequences: of several failures the first is the one to mend.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

from agent.doctor.checks.access import access
from agent.doctor.checks.bundles import bundle, signers, sources
from agent.doctor.checks.configuration import configuration
from agent.doctor.checks.identity import identity
from agent.doctor.checks.keys import key
from agent.doctor.checks.machine import disk, memory, port, version
from agent.doctor.checks.outside import clock, clouds, metadata
from agent.doctor.checks.redirect import redirect
from agent.doctor.checks.shell import shell
from agent.doctor.checks.typed import typed
from agent.doctor.checks.unit import changed, daemon
from agent.doctor.facts import Facts
from agent.doctor.finding import Finding, ordered, warn

CHECKS: Final = MappingProxyType(
    {
        "disk": disk,
        "memory": memory,
        "access": access,
        "configuration": configuration,
        "daemon": daemon,
        "port": port,
        "version": version,
        "clock": clock,
        "key": key,
        "signers": signers,
        "source": sources,
        "bundle": bundle,
        "metadata": metadata,
        "clouds": clouds,
        "identity": identity,
        "redirect": redirect,
        "shell": shell,
    }
)
"""By the word that its findings carry."""


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Everything that there is to say, the worst first."""
    said = [finding for name in CHECKS for finding in _said(name, facts)]
    return ordered(typed(finding, facts) for finding in (*changed(facts, said), *said))


def _said(name: str, facts: Facts) -> Iterator[Finding]:
    """What a check says. One that cannot read what was found, an answer of another release say, costs no other."""
    try:
        yield from CHECKS[name](facts)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        said = f"this check failed at what was found ({type(error).__name__}): is the agent of another release?"
        yield warn(name, said, "credential-agent status --json")
