"""Which control groups hold workers' processes? Asks systemd about the units that the configuration names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from agent.core.errors import HostError
from agent.host.tools import TIMEOUT_SECONDS, KilledError, call

WATCH: Final = "credential-agent-watch.service"
_ASKED_TIMES: Final = 20
UNIFIED: Final = Path("/sys/fs/cgroup")
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}\.(?:slice|service|scope)\Z")

_ESCAPED: Final = str.maketrans({"\\": r"\x5c", "-": r"\x2d"})
_TEMPLATE: Final = re.compile(r"([A-Za-z0-9:_.\\-]{1,200})@(?:|.*[*?%\[{].*)\.service\Z")


def control_group(unit: str) -> str | None:
    """The control group of a unit, as a path below the root; ``None``: it has none now.

    A slice is started when it is not there: a rule names a control group by its number in the kernel, so the group must
    exist when the rule is loaded and stay. A *service* has a new group at each start and its rule must be loaded again
    then (``ExecStartPre=+credential-agent redirect apply`` in its unit), which is why workers belong in a slice.

    Raises:
        HostError: :func:`check_unit` refuses the name, control groups are not unified, or systemd does not answer.
    """
    check_unit(unit)
    if not (UNIFIED / "cgroup.procs").exists():
        raise HostError(
            f"{UNIFIED}: expected the unified hierarchy of control groups (cgroup v2)",
            hint="boot with systemd.unified_cgroup_hierarchy=1, or choose workers by uid alone: units = []",
        )
    if unit.endswith(".slice"):
        path = slice_path(unit)
        if not (UNIFIED / path).is_dir():
            call("systemctl", ["start", unit])
    else:
        path = call("systemctl", ["show", "--property=ControlGroup", "--value", unit]).strip().removeprefix("/")
    return path if path and (UNIFIED / path).is_dir() else None


def without_gate(unit: str) -> bool:
    """Whether a unit starts without a gate (``credential-agent-gate@.service``); ``False`` in doubt.

    The rules cover its control group only after it has been seen: until then its jobs get the machine's identity.
    """
    try:
        needs = call("systemctl", ["show", "--property=Requires", "--value", unit])
    except HostError:
        return False
    return bool(needs.strip()) and f"credential-agent-gate@{unit}.service" not in needs.split()


def show(unit: str, *properties: str) -> dict[str, str]:
    """What systemd knows of a unit: values by property; of one that has several values, all, a line each.

    Raises:
        HostError: systemd does not answer.
    """
    values: dict[str, str] = {}
    for line in call("systemctl", ["show", unit, *(f"--property={name}" for name in properties)]).splitlines():
        name, _, value = line.partition("=")
        values[name] = f"{values[name]}\n{value}" if name in values else value
    return values


def restart(unit: str, *, seconds: float = TIMEOUT_SECONDS) -> None:
    """Have systemd restart a unit, or start it; wait so many seconds at most.

    Raises:
        HostError: systemd does not answer, or the unit does not start.
    """
    call("systemctl", ["restart", unit], seconds=seconds)


def forget_failure(unit: str, *, seconds: float) -> None:
    """Have systemd call a unit inactive that has failed; nothing is done where there is no systemd.

    Raises:
        HostError: systemd does not answer within so many seconds.
    """
    if runs():
        call("systemctl", ["reset-failed", unit], seconds=seconds)


def start_wanted(unit: str) -> None:
    """Have systemd start a unit that is enabled. Does not wait for it.

    Raises:
        HostError: systemd does not answer.
    """
    if show(unit, "UnitFileState").get("UnitFileState", "").startswith("enabled"):
        call("systemctl", ["--no-block", "start", unit])


def stop(unit: str) -> None:
    """Have systemd stop a unit.

    Raises:
        HostError: systemd does not answer, or refuses.
    """
    call("systemctl", ["stop", unit])


def runs() -> bool:
    """Whether this machine was booted with systemd."""
    return Path("/run/systemd/system").is_dir()


def is_active(unit: str) -> bool:
    """Whether a unit runs; ``False`` where there is no systemd. Waits five seconds at most.

    Raises:
        HostError: systemd does not answer.
    """
    if not runs():
        return False
    said = call("systemctl", ["show", "--property=ActiveState", "--value", unit], seconds=5)
    return said.strip() == "active"


def main_pid(unit: str) -> int:
    """The main process of a unit; ``0``: it has none, or there is no systemd. Waits five seconds at most.

    Raises:
        HostError: systemd does not answer.
    """
    if not runs():
        return 0
    said = call("systemctl", ["show", "--property=MainPID", "--value", unit], seconds=5).strip()
    return int(said) if said.isdigit() else 0


def is_restarting(unit: str) -> bool:
    """Whether systemd ends a unit only to start it again; ``False`` in doubt.

    For a process of that unit, when it was told to end. What ends a unit may end every process in its control group,
    and this question's own among them: then it is asked again.
    """
    for _ in range(_ASKED_TIMES):
        try:
            jobs = call("systemctl", ["list-jobs", "--no-legend", "--plain", unit], seconds=5)
        except KilledError:
            continue
        except HostError:
            return False
        return any(line.split()[1:3] == [unit, "restart"] for line in jobs.splitlines())
    return False


def stop_watch() -> None:
    """Stop the unit that closes again after a flush, where it runs: that unit cannot tell a removal from a flush.

    Raises:
        HostError: systemd does not answer, or refuses.
    """
    if not runs():
        return
    if call("systemctl", ["show", "--property=ActiveState", "--value", WATCH]).strip() not in {"inactive", "failed"}:
        stop(WATCH)


def units_meant(text: str) -> tuple[str, ...]:
    """The units that may be meant by what names none that runs.

    By ``NAME@.service``, or a pattern of it (``NAME@*.service``, which the configuration does not know), the slice of
    all instances (systemd.slice(5)); by a path of control groups its last; by a name without a kind a slice or service.
    """
    if (found := _TEMPLATE.match(text)) is not None:
        return (f"system-{found[1].translate(_ESCAPED)}.slice",)
    name = text.strip().rpartition("/")[2]
    if _UNIT.match(name):
        return () if name == text else (name,)
    return tuple(unit for unit in (f"{name}.slice", f"{name}.service") if _UNIT.match(unit))


def check_unit(unit: str) -> None:
    """Refuse a name that cannot be a unit of workers.

    Raises:
        HostError: it is not the name of a slice, service or scope.
    """
    if not _UNIT.match(unit):
        raise HostError(f"redirect.units: expected the name of a slice, service or scope, got {unit!r}")
    if unit.endswith(".slice"):
        slice_path(unit)


def slice_path(unit: str) -> str:
    """The path of a slice: ``a-b.slice`` lies in ``a.slice`` (systemd.slice(5)).

    Raises:
        HostError: it is the root slice, or not the name of one: the operator mends ``redirect.units``.
    """
    if unit == "-.slice":
        raise HostError("redirect.units: the root slice holds every process of the machine")
    names = unit.removesuffix(".slice").split("-")
    if not all(names):
        raise HostError(f"redirect.units: {unit!r} is not the name of a slice: two dashes touch, or one is at an end")
    return "/".join("-".join(names[: depth + 1]) + ".slice" for depth in range(len(names)))
