"""Does the daemon run, and does it answer? If not: what does systemd know?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from agent.core.installed import BEFORE_IT, JOURNAL, KERNEL_JOURNAL, SERVICE_USER, START
from agent.doctor.checks import beside
from agent.doctor.checks.slow import hung
from agent.doctor.facts import Control, Facts, Unit, Units, Unknown
from agent.doctor.finding import Finding, Level, fail, ok, skipped, warn

CHECK: Final = "daemon"
SERVICE: Final = "credential-agent.service"
SERVER: Final = "credential-agent-serve.service"
NEEDED: Final = ("credential-agent.socket", "credential-agent-control.socket")
"""What the service requires."""
_BY_THE_UNIT: Final = frozenset({"daemon", "disk", "source", "metadata", "clouds", "identity", "redirect"})
"""The checks whose troubles a change of a unit may cause."""
MANY: Final = 2
"""Whoever was started again more often than this does not just start: it fails."""


def daemon(facts: Facts) -> Iterator[Finding]:
    """Whether it runs and answers, and whether what belongs to it does."""
    if not facts.user:
        said = f"the service's user {SERVICE_USER} is not there: nothing of it starts again"
        yield fail(CHECK, said, f"systemd-sysusers && {START}")
    yield from _itself(facts)
    units = {} if isinstance(facts.units, Unknown) else facts.units.units
    told = _in_the_way(units)
    for unit in units.values():
        if unit.name not in {SERVICE, told}:
            yield from beside.unit(unit, units)


def _itself(facts: Facts) -> Iterator[Finding]:
    units, control = facts.units, facts.control
    unit = None if isinstance(units, Unknown) else units.units.get(SERVICE)
    if isinstance(control, Control) and control.state == "answered":
        version = control.document.get("version", "")
        since = control.document.get("started")
        yield ok(CHECK, f"version {version} answers" + (f", since {since}" if since else ""))
        yield from _answering(control.document.get("servers"))
        yield from _logging(control.document.get("log_dropped"))
        yield from _next_boot(units)
        return
    if unit is not None and (unit.load == "masked" or unit.enabled == "masked"):
        yield fail(CHECK, f"{SERVICE} {beside.MASKED}", f"systemctl unmask {SERVICE}")
        return
    if unit is not None and unit.load == "not-found":
        said = f"{SERVICE} is not installed on this machine: install it again; until then it can run by hand"
        yield fail(CHECK, said, f"credential-agent run --config {facts.config_path}")
        return
    if unit is not None and unit.load not in {"", "loaded"}:
        yield fail(CHECK, f"systemd cannot load {SERVICE}: {unit.load}", f"systemd-analyze verify {SERVICE}")
        return
    if unit is not None and unit.active in {"active", "reloading"}:
        yield from _runs(facts, unit, control)
        return
    if unit is not None:
        name = _in_the_way(units.units) if isinstance(units, Units) else None
        cause = None if name is None or not isinstance(units, Units) else _socket(units.units[name])
        server = units.units.get(SERVER) if isinstance(units, Units) else None
        if server is not None and server.active == "active":
            yield _without_the_agent(facts)
        yield cause or _does_not_run(unit, units.last_error if isinstance(units, Units) else "", facts)
        return
    yield from _without_systemd(facts, control)


def _answering(servers: object) -> Iterator[Finding]:
    """Whether workers are answered, and by a process apart. An older agent, and the couriers' socket, do not say."""
    if not isinstance(servers, list):
        return
    found = [one for one in servers if isinstance(one, dict)]
    if not any(one.get("newest") and not one.get("stands_by") for one in found):
        said = "no process answers workers just now: they wait, and then give up"
        yield fail(CHECK, said, f"{JOURNAL} -u {SERVER}")
    elif not all(one.get("apart") for one in found):
        said = "workers are answered by the agent's own process: none apart could be begun any more"
        yield warn(CHECK, said, START)


def _logging(lost: object) -> Iterator[Finding]:
    if isinstance(lost, int) and lost > 0:
        said = f"{lost} lines of its log are lost since it started: nothing took them"
        yield warn(CHECK, said, "systemctl status --no-pager systemd-journald")


def _runs(facts: Facts, unit: Unit, control: Control | Unknown) -> Iterator[Finding]:
    if isinstance(control, Control) and control.state == "denied":
        yield ok(CHECK, f"{SERVICE} is active")
        yield skipped(CHECK, f"what it says is for root and operators: {control.why}", next=facts.more)
        return
    silent = isinstance(control, Unknown) or control.state == "silent"
    if not silent and isinstance(control, Control):
        # What nobody listens at is made by its socket, not by the service.
        command = f"systemctl restart {NEEDED[1]} {SERVICE}" if control.state == "absent" else START
        yield fail(CHECK, f"{SERVICE} is active, and does not answer: {control.why}", command)
        return
    said = f"process {unit.pid} runs and has not answered within {facts.seconds:g} s"
    if unit.frozen:
        yield fail(CHECK, f"{said}: it was frozen (systemctl freeze)", f"systemctl thaw {SERVICE}")
    elif unit.process in {"T", "t"}:
        yield fail(CHECK, f"{said}: it is stopped (SIGSTOP, or a debugger)", f"kill -CONT {unit.pid}")
    elif unit.process == "D":
        yield fail(CHECK, f"{said}: the kernel holds it, in a call to a disk or a mount", f"cat /proc/{unit.pid}/stack")
    else:
        late = Unknown(why=said, hung=True)
        yield hung(CHECK, late, "it hangs", START, facts)


def _without_the_agent(facts: Facts) -> Finding:
    """Whether what answers workers has anything to answer with: it may have begun after the agent had gone."""
    asked = {} if isinstance(facts.arrival, Unknown) else facts.arrival.asked
    if "agent" in asked.values():
        return ok(CHECK, "workers are served with what the agent told it, until that ends", about=SERVER)
    if asked:
        said = (
            "it runs, and has nothing to serve: the agent has told it nothing since it began; workers wait, and give up"
        )
        return fail(CHECK, said, JOURNAL, about=SERVER)
    return skipped(CHECK, "it runs; whether it has anything to serve was not asked", about=SERVER)


def _in_the_way(units: Mapping[str, Unit]) -> str | None:
    """The socket for want of which systemd does not start the service: to start that again would fail too."""
    service = units.get(SERVICE)
    if service is None or service.active in {"active", "reloading"}:
        return None
    bad = [
        name for name in NEEDED if name in units and (units[name].active == "failed" or units[name].load == "masked")
    ]
    return bad[0] if bad else None


def _socket(unit: Unit) -> Finding:
    """That one, as the cause."""
    if unit.load == "masked":
        return fail(CHECK, f"{SERVICE} does not start: {unit.name} {beside.MASKED}", f"systemctl unmask {unit.name}")
    command = f"systemctl status --no-pager {unit.name}"
    return fail(CHECK, f"{SERVICE} does not start: {unit.name} is failed ({unit.result})", command)


def _does_not_run(unit: Unit, last_error: str, facts: Facts) -> Finding:
    if unit.result in {"", "success"} and unit.active in {"inactive", "deactivating"}:
        return fail(CHECK, f"{SERVICE} is stopped", "systemctl start credential-agent")
    said = f"{SERVICE} is {unit.active} ({unit.sub})"
    if unit.result != "success":
        said += f"; it ended last with {unit.result}" + (f", status {unit.status}" if unit.status else "")
    if last_error:
        said += f': "{last_error}"'
    before = BEFORE_IT.get(unit.status) if unit.result == "exit-code" else None
    if before is not None:
        return fail(CHECK, f"{said}: {before[0]}", before[1])
    if unit.result == "oom-kill":
        return fail(CHECK, f"{said}: the kernel ended it for want of memory", KERNEL_JOURNAL)
    if unit.status == "78":
        found = facts.configuration
        if isinstance(found, Unknown) or found.faults or not found.as_service:
            return fail(CHECK, said, "credential-agent check")
        said += "; outside of the unit's sandbox nothing is wrong with the configuration now"
        return fail(CHECK, said, f"systemctl cat {SERVICE}" if unit.drop_ins else START)
    if unit.active == "activating" and unit.result == "success" and unit.restarts <= MANY:
        return warn(CHECK, f"{said}: it is starting", JOURNAL)
    return fail(CHECK, said, JOURNAL)


def _without_systemd(facts: Facts, control: Control | Unknown) -> Iterator[Finding]:
    run = f"credential-agent run --config {facts.config_path}"
    if isinstance(control, Unknown):
        yield skipped(CHECK, control.why)
    elif control.state == "denied":
        yield skipped(CHECK, control.why, next=facts.more)
    elif control.state == "silent":
        # Another one could not begin beside it: it has the addresses and the state directory.
        said = f"{control.path}: no answer within {facts.seconds:g} s: the agent hangs"
        yield fail(CHECK, f"{said}; end it, and start it again with what started it", "ps -eo pid,ppid,user,args")
    else:
        yield fail(CHECK, f"it does not run: {control.why}", run)


def _next_boot(units: Units | Unknown) -> Iterator[Finding]:
    """A warning where it runs, and nothing starts it again once it has ended, or at the next boot."""
    if isinstance(units, Unknown) or not units.present:
        return
    load = units.units[SERVICE].load if SERVICE in units.units else ""
    if load not in {"", "loaded", "not-found"}:
        said, command = f"systemd has it as {load}", f"systemd-analyze verify {SERVICE}"
        if load == "masked":
            said, command = f"it {beside.MASKED}", f"systemctl unmask {SERVICE}"
        yield warn(CHECK, f"it runs, and would not be started again: {said}", command)
    states = {name: unit.enabled for name, unit in units.units.items()}
    if states.get(SERVICE) == "disabled" and states.get("credential-agent.target") != "enabled":
        yield warn(CHECK, f"{SERVICE} is disabled: the next boot does not start it", f"systemctl enable {SERVICE}")


def changed(facts: Facts, others: Iterable[Finding]) -> Iterator[Finding]:
    """Files that change our units and that we do not install: the first suspects where something else is wrong.

    Args:
        facts: what was found.
        others: what all checks say.
    """
    units = {} if isinstance(facts.units, Unknown) else facts.units.units
    wrong = any(one.level in {Level.FAIL, Level.WARN} and one.check in _BY_THE_UNIT for one in others)
    for unit in units.values():
        if not unit.drop_ins:
            continue
        said = f"it is changed by {', '.join(unit.drop_ins)}"
        if unit.name == SERVICE and unit.user not in {"", SERVICE_USER}:
            said += f", and runs as {unit.user} in place of {SERVICE_USER}"
            yield fail(CHECK, said, f"systemctl cat {unit.name}", about=unit.name)
        elif wrong:
            yield warn(CHECK, f"{said}: is that the cause?", f"systemctl cat {unit.name}", about=unit.name)
        else:
            yield ok(CHECK, said, about=unit.name)
