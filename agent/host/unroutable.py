"""No way to the metadata service: workers are refused so where nftables itself cannot be used.

A package half upgraded, a kernel without its modules, an ``nft`` that crashes: nothing can be loaded then, and workers
would get the machine's identity. So ``credential-agent-closed.service``, when it cannot load the closed table, adds
rules to the routing policy (ip-rule(8)): the system's processes, DNS and NTP go on as before; for everybody else, and
for all that is forwarded, the metadata addresses have no route; nor for the system users who were workers when the
machine last ran (:mod:`agent.host.lasting`). Coarser than the closed table, and removed once that is in force:
:func:`lift`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from agent.core.errors import HostError
from agent.core.text import os_reason
from agent.host import systemctl
from agent.host.tools import RefusedError, call

if TYPE_CHECKING:
    from pathlib import Path

#: In ip-rule(8): whom to refuse, whom to let pass before that, where the latter go on. In the order in which they are
#: taken away: without those who pass, the system's processes would be refused for a moment. Before anybody else's rules
#: (EC2's own begin at 512), behind the machine's own addresses (0).
PREFERENCES: Final = (170, 169, 171)
#: The file that says that the rules were added, beside the state file of the process that holds the nftables rules.
MARK: Final = "unroutable"
WHY: Final = "workers have no way to the metadata service: nftables cannot be used on this machine"
#: What adds them, and has failed then.
UNIT: Final = "credential-agent-closed.service"
_MOST: Final = 100  # rules of one preference
_SECONDS: Final = 5.0  # whoever holds the rules asks, and must not be held up


def lift(mark: Path) -> None:
    """Give the way back, when the closed table is in force. Nothing is done where there is no ``mark``.

    Raises:
        HostError: ``ip`` cannot be run just now, or does not take them away. The ``mark`` stays: it is to be tried
            again.
    """
    try:
        mark.lstat()
    except OSError:
        return
    for family in ("-4", "-6"):
        for preference in PREFERENCES:
            for _ in range(_MOST):
                try:
                    call("ip", [family, "rule", "del", "pref", str(preference)], seconds=_SECONDS)
                except RefusedError:  # none is left, most likely
                    break
    left = [rule for family in ("-4", "-6") for rule in _left(family)]
    if left:
        raise HostError(f"ip rule: expected none of the rules that refuse workers, got {left[0]!r}")
    try:
        mark.unlink(missing_ok=True)
    except OSError as error:
        raise HostError(f"{mark}: cannot be removed: {os_reason(error)}") from None
    with contextlib.suppress(HostError):  # else the machine were degraded until the next boot
        systemctl.forget_failure(UNIT, seconds=_SECONDS)


def _left(family: str) -> list[str]:
    """The rules that are there still: a refusal may have another reason than that there is none."""
    try:
        shown = call("ip", [family, "rule", "show"], seconds=_SECONDS).splitlines()
    except RefusedError:  # a kernel without this family
        return []
    return [" ".join(rule.split()) for rule in shown if rule.partition(":")[0] in map(str, PREFERENCES)]
