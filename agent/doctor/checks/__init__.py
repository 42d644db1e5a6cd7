"""One function a check: from what was found to what is said of it. Pure; a new check is a file here and its line below.

The order is from causes to consequences: of several failures the first is the one to mend.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from agent.doctor.checks.bundles import bundle, signers, sources
from agent.doctor.checks.configuration import configuration
from agent.doctor.checks.identity import identity
from agent.doctor.checks.keys import key
from agent.doctor.checks.machine import disk, memory, port, version
from agent.doctor.checks.outside import clock, clouds, metadata
from agent.doctor.checks.redirect import redirect
from agent.doctor.checks.shell import shell
from agent.doctor.checks.typed import typed
from agent.doctor.checks.unit import daemon
from agent.doctor.facts import Facts
from agent.doctor.finding import Finding, ordered

CHECKS: Final = MappingProxyType(
    {
        "disk": disk,
        "memory": memory,
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
    return ordered(typed(finding, facts) for check in CHECKS.values() for finding in check(facts))
