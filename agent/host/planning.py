"""Which rules does the configuration want? A child of its own reads it and prints the plan.

So neither the configuration's libraries nor its mistakes get into the process that holds the rules. ``credential-agent
redirect plan`` prints the plan: JSON with the members of :data:`MEMBERS`.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Final, NamedTuple

from agent.core.errors import HostError
from agent.core.text import os_reason
from agent.host import arrival, ranges
from agent.host.files import passes

PLAN_SECONDS: Final = 60.0
END_SECONDS: Final = 5.0
"""For a child that was ended, or has said all. One that the kernel holds, in a call to a disk, is not waited for."""
#: Both in the directory of the state file; root's.
PLAN_FILE: Final = "plan.json"
PLAN_PATH: Final = arrival.STATE.with_name(PLAN_FILE)
USERS_FILE: Final = "users.json"
USERS_PATH: Final = arrival.STATE.with_name(USERS_FILE)

Plan = dict[str, Any]

MEMBERS: Final = MappingProxyType[str, type | UnionType](
    {
        "scripts": list,  # what may be loaded, the best one first ("lacking": what each does without, in words)
        "closed": str,  # what is loaded while workers are to be refused
        "groups": dict,  # the control groups that the rules name, and their numbers
        "ipv6": bool,
        "notes": list,  # differences from the configuration
        "pending": list,  # what is named and not there yet
        "uid": int | None,  # of a worker, for the probe
        "error": str | None,
    }
)
#: A plan of an earlier version may lack the other members: they are needed for messages only.
_SAVED: Final = frozenset({"scripts", "closed", "groups", "ipv6", "uid"})


class Outcome(NamedTuple):
    """The result of the child.

    Attributes:
        plan: ``None``: there is none.
        why: the reason why there is none, in words.
    """

    plan: Plan | None
    why: str


class Planner:
    """Runs the command that prints a plan; one child at a time.

    Args:
        command: its words. It gets no input, and ``/`` as its directory.
        seconds: how long it may take; then it is ended.
        end_seconds: how long its end is waited for, once it is ended or has said all. A starved machine takes a while.
    """

    def __init__(
        self, command: Sequence[str], *, seconds: float = PLAN_SECONDS, end_seconds: float = END_SECONDS
    ) -> None:
        self._command, self._seconds, self._end_seconds = command, seconds, end_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._held: subprocess.Popen[bytes] | None = None  # one that was ended, and has not ended
        self._until = 0.0
        self._output = b""

    @property
    def running(self) -> bool:
        """Whether a plan is awaited."""
        return self._child is not None

    def fileno(self) -> int:
        """The descriptor that becomes readable as the child prints and ends. Only while it is :attr:`running`."""
        if self._child is None or self._child.stdout is None:
            raise RuntimeError("no plan is being made")
        return self._child.stdout.fileno()

    def start(self) -> Outcome | None:
        """Begin anew, ending a child that still runs. Returns an outcome only if the command cannot be run."""
        self.stop()
        if self._held is not None:
            if self._held.poll() is None:  # another would meet the same, and another the next time
                why = f"process {self._held.pid}, which was to make them, does not end: the kernel holds it"
                return Outcome(None, f"the rules cannot be made: {why}")
            self._held = None
        self._output = b""
        self._until = time.monotonic() + self._seconds
        try:
            self._child = subprocess.Popen(  # noqa: S603 - the unit's own command
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/"
            )
        except OSError as error:
            return Outcome(None, f"{self._command[0]}: cannot be run: {os_reason(error)}")
        return None

    def stop(self) -> None:
        """End the child, if there is one. Does not wait for one that the kernel holds."""
        if self._child is None:
            return
        self._child.kill()
        try:
            self._child.wait(self._end_seconds)
        except subprocess.TimeoutExpired:
            self._held = self._child
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._child = None

    def result(self) -> Outcome | None:
        """The result of the child; ``None``: nothing yet, or there is no child. Never blocks for long."""
        if self._child is None:
            return None
        if not select.select([self], [], [], 0)[0]:
            if time.monotonic() <= self._until:
                return None
            self.stop()
            return Outcome(None, f"the rules could not be made within {self._seconds:.0f} s")
        data = os.read(self.fileno(), 1 << 20)
        self._output += data
        if data:
            return None
        try:
            status = self._child.wait(self._end_seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            return Outcome(None, "the rules cannot be made: the command has said all, and does not end")
        self.stop()
        try:
            plan = json.loads(self._output) if status == 0 else None
        except (ValueError, RecursionError):
            plan = None
        return Outcome(plan if _is_plan(plan) else None, f"the rules cannot be made: status {status}")


def saved(path: Path) -> Plan | None:
    """The plan that was in force when this process was last ended; ``None``: nothing that can be used."""
    try:
        plan = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return plan if isinstance(plan, dict) and plan.keys() >= _SAVED else None


def last_section(path: Path = PLAN_PATH) -> object:
    """The configuration's section from which the last plan without an error was made, in this boot; else ``None``."""
    plan = saved(path)
    return None if plan is None else plan.get("section")


def known_users(path: Path = USERS_PATH) -> dict[str, int]:
    """The numbers that the users of the configuration had when they were last found, in this boot.

    Raises:
        HostError: the system refuses to read it just then, which says nothing of what is there.
    """
    try:
        known = json.loads(path.read_bytes())
    except OSError as error:
        if passes(error):
            raise HostError(f"{path}: cannot be read: {os_reason(error)}") from None
        return {}
    except (ValueError, RecursionError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {name: uid for name, uid in known.items() if isinstance(uid, int) and 0 < uid <= ranges.MAX_UID}


def _is_plan(plan: Any) -> bool:
    return isinstance(plan, dict) and all(
        name in plan and isinstance(plan[name], kind) for name, kind in MEMBERS.items()
    )
