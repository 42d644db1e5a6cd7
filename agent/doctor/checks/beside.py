"""The units beside the service: what answers workers, sockets, the redirection, what watches it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from agent.core.installed import BEFORE_IT
from agent.doctor.facts import Unit
from agent.doctor.finding import Finding, fail, warn

CHECK: Final = "daemon"
MAY_STOP: Final = {
    "credential-agent-watch.service": (
        "once the redirection stops, another program can open what is closed",
        "systemctl start credential-agent-watch.service",
    ),
    # It cannot be made beside its service, which runs without it where it could not be made before; they stop together.
    "credential-agent-courier.socket": (
        "couriers can bring no bundle",
        "systemctl restart credential-agent.service",
    ),
}
"""What workers can be served without, what is missing then, and what starts it."""
MANY: Final = 2
MASKED: Final = (
    "is masked: systemd starts it for nobody, since a link stands in the place of its file; "
    "take that away, then install the agent again"
)
"""Of units in ``/etc/systemd/system``, as ours are: without the link there is no unit yet."""


def unit(one: Unit, units: Mapping[str, Unit]) -> Iterator[Finding]:
    """What is wrong with it.

    Args:
        one: the unit.
        units: all of ours, by name.
    """
    again = one.sub == "auto-restart" or (one.restarts > MANY and one.active in {"activating", "deactivating"})
    if one.load == "masked":
        yield fail(CHECK, f"it {MASKED}", f"systemctl unmask {one.name}", about=one.name)
    elif one.active == "failed" or again:
        yield _failed(one, again=again)
    elif one.frozen:
        said = "it was frozen (systemctl freeze)"
        yield fail(CHECK, said, f"systemctl thaw {one.name}", about=one.name)
    elif one.stopped:
        pids = " ".join(map(str, one.stopped))
        said = f"process {pids} is stopped (SIGSTOP, or a debugger): nobody is answered"
        yield fail(CHECK, said, f"kill -CONT {pids}", about=one.name)
    elif one.name in MAY_STOP and one.active == "inactive" and one.enabled == "enabled":
        lacking, command = MAY_STOP[one.name]
        yield warn(CHECK, f"it is stopped: {lacking}", command, about=one.name)
    for name in one.triggers:
        if name in units and units[name].load == "not-found":
            said = f"it starts {name}, which is not there: an installation was broken off; install the agent again"
            yield fail(CHECK, said, "systemctl list-unit-files 'credential-agent*'", about=one.name)


def _failed(one: Unit, *, again: bool) -> Finding:
    said = f"it has failed{', and is started again and again' if again else ''}: {one.result}"
    said += f", status {one.status}" if one.status not in {"", "0"} else ""
    before = BEFORE_IT.get(one.status) if one.result == "exit-code" else None
    if before is not None and one.name.endswith(".service"):
        said += f" ({before[0]})"
    return fail(CHECK, said, f"journalctl --no-pager -n 20 -u {one.name}", about=one.name)
