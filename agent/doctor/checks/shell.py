"""Do programs of this shell ask the agent at all, or do they have another identity already?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from agent.doctor.facts import Facts, Unknown
from agent.doctor.finding import Finding, ok, skipped, warn
from agent.wire import names

CHECK: Final = "shell"


def shell(facts: Facts) -> Iterator[Finding]:
    """What in the caller's environment and home comes before the agent. Root's is no worker's."""
    found = facts.shell
    if isinstance(found, Unknown):
        yield skipped(CHECK, found.why)
    elif not (found.variables or found.proxies or found.files):
        yield ok(CHECK, "nothing in this shell leads its programs past the agent")
    elif facts.root:
        several = ", ".join((*found.variables, *found.proxies, *found.files))
        yield skipped(CHECK, f"root's shell is no worker's: {several} would lead a worker's programs past the agent")
    else:
        yield from _past(found.variables, found.proxies, found.files)


def _past(variables: tuple[str, ...], proxies: tuple[str, ...], files: tuple[str, ...]) -> Iterator[Finding]:
    if variables:
        said = f"{', '.join(variables)}: set in this shell, whose programs look there before they ask the agent"
        yield warn(CHECK, said, f"unset {' '.join(variables)}", about="variables")
    for file in files:
        said = f"{file}: programs of this user look there before they ask the agent"
        yield warn(CHECK, said, f"mv {shlex.quote(file)} {shlex.quote(file + '.away')}", about="a file")
    if proxies:
        hosts = ",".join((names.METADATA_ADDRESSES[0], names.GCE_HOST, "127.0.0.1"))
        said = f"{', '.join(proxies)}: set in this shell, whose programs ask a proxy for {names.METADATA_ADDRESSES[0]}"
        yield warn(CHECK, said, f'export NO_PROXY="{hosts},$NO_PROXY" no_proxy="{hosts},$no_proxy"', about="a proxy")
