"""Holds the rules: the process of ``credential-agent-redirect.service``.

Makes the rules, owns a second copy of them that nobody else can take (:func:`agent.host.nft.held`), watches the first
copy and puts it back, looks up again what was not there, asks as a worker whether its request arrives, and says so in
a file. Whatever it cannot tell is closed. Small and single-threaded; the configuration is read by a child of its own,
so that neither its libraries nor its mistakes live here.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agent.core.errors import HostError
from agent.core.text import os_reason
from agent.host import arrival, nft, ownership

PLAN_SECONDS: Final = 60.0
VERIFY_SECONDS: Final = 10.0
PROBE_EVERY_SECONDS: Final = 30.0
PROBE_AGAIN_SECONDS: Final = 2.0
BEAT_SECONDS: Final = 5.0
LOOK_AGAIN_SECONDS: Final = (1.0, 30.0)
GROUPS_EVERY_SECONDS: Final = 1.0
#: A user that comes again with another number is seen in this file at once, and one of a directory (LDAP) by asking.
USERS: Final = Path("/etc/passwd")
NAMES_EVERY_SECONDS: Final = 600.0
UNIT: Final = "credential-agent-redirect.service"

_NETLINK_ROUTE: Final = 0
_NETLINK_NETFILTER: Final = 12
_GROUP_NFTABLES: Final = 1 << 6  # NFNLGRP_NFTABLES
_GROUP_ADDRESSES: Final = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_OURS: Final = b"credential_agent"


class Holder:
    """One process, one loop.

    Args:
        planner: the command that prints a plan (``credential-agent redirect plan``).
        directory: of the state file, ours alone to write.
        notify: systemd's socket for us (sd_notify(3)); ``None``: it is not interested.
    """

    def __init__(self, planner: Sequence[str], directory: Path, notify: str | None = None) -> None:
        self._planner, self._directory, self._address = planner, directory, notify
        self._plan: dict[str, Any] | None = None  # in force
        self._expected: tuple[str, ...] = ()
        self._error: str | None = "the rules are being made"
        self._pending: list[str] = []
        self._notes: list[str] = []
        self._answer: str | None = None
        self._closed: str | None = None  # by whose will
        self._healed = self._plans = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._child_until = 0.0
        self._output = b""
        self._again = LOOK_AGAIN_SECONDS[0]
        self._due = dict.fromkeys(("plan", "probe", "verify", "beat", "groups"), 0.0)
        self._due["plan"] = float("inf")
        self._due["names"] = time.monotonic() + NAMES_EVERY_SECONDS
        self._users = _stamp(USERS)
        self._only_looking = False
        self._stopping = False
        self._ready = False
        self._probe = arrival.Probe()
        self._told: dict[str, str | None] = {}
        self._owner: ownership.Connection | None = None
        self._reader: ownership.Connection | None = None
        self._events = _netlink(_NETLINK_NETFILTER, _GROUP_NFTABLES)
        self._addresses = _netlink(_NETLINK_ROUTE, _GROUP_ADDRESSES)
        self._wake, self._waker = socket.socketpair()

    def run(self) -> None:
        """Until a signal ends it."""
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._waker.setblocking(False)
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)
        try:
            self._reader, self._owner = ownership.Connection(), ownership.Connection()
        except HostError as error:
            self._say("owner", f"{error}: rules can be watched, and not held")
        # What was in force before we were last ended is so again at once; else closed, until there is a plan.
        saved = self._saved()
        self._apply(saved)
        self._start_plan()
        while not self._stopping:
            self._turn()
        self._end()

    # -- one turn -----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        files: list[Any] = [self._events, self._addresses, self._wake]
        if self._child is not None and self._child.stdout is not None:
            files.append(self._child.stdout)
        if self._probe.running:
            files.append(self._probe)
        wait = max(0.0, min(*self._due.values(), time.monotonic() + BEAT_SECONDS) - time.monotonic())
        ready = select.select(files, [], [], wait)[0]
        for netlink in (self._events, self._addresses):
            if netlink in ready and _drained(netlink, _OURS if netlink is self._events else b""):
                self._due["verify"] = 0.0
        if self._wake in ready:
            self._signals()
        if self._child is not None:
            self._read_child()
        if self._probe.running and (word := self._probe.result()) is not None:
            self._probed(word)
        self._do_what_is_due()

    def _do_what_is_due(self) -> None:
        work = {
            "plan": self._start_plan,
            "groups": self._look_at_groups,
            "names": self._look_at_names,
            "verify": self._verify,
            "probe": self._start_probe,
            "beat": self._beat,
        }
        for name, do in work.items():
            if time.monotonic() >= self._due[name]:
                do()

    def _signals(self) -> None:
        numbers = set(self._wake.recv(4096))
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            self._stopping = True
        elif signal.SIGUSR1 in numbers:
            self._closed = "workers are refused, by command (credential-agent redirect close)"
            self._apply(self._plan)
            self._beat()
        elif signal.SIGHUP in numbers:
            self._closed = None
            self._start_plan()

    # -- the plan -----------------------------------------------------------------------------------------------------

    def _start_plan(self, *, only_looking: bool = False) -> None:
        self._due["plan"] = float("inf")
        self._due["names"] = time.monotonic() + NAMES_EVERY_SECONDS
        self._only_looking = only_looking
        self._stop_child()
        self._output = b""
        self._child_until = time.monotonic() + PLAN_SECONDS
        try:
            self._child = subprocess.Popen(  # noqa: S603 - the unit's own command
                self._planner, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/"
            )
        except OSError as error:
            self._planned(None, f"{self._planner[0]}: cannot be run: {os_reason(error)}")

    def _stop_child(self) -> None:
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._child = None

    def _read_child(self) -> None:
        child = self._child
        if child is None or child.stdout is None:
            return
        if not select.select([child.stdout], [], [], 0)[0]:
            if time.monotonic() > self._child_until:
                self._stop_child()
                self._planned(None, f"the rules could not be made within {PLAN_SECONDS:.0f} s")
            return
        data = os.read(child.stdout.fileno(), 1 << 20)
        self._output += data
        if data:
            return
        status = child.wait()
        child.stdout.close()
        self._child = None
        try:
            plan = json.loads(self._output) if status == 0 else None
        except ValueError:
            plan = None
        self._planned(plan if _is_plan(plan) else None, f"the rules cannot be made: status {status}")

    def _planned(self, plan: dict[str, Any] | None, why: str) -> None:
        self._plans += 1
        if self._only_looking and self._error is None and plan == self._plan:
            return  # nothing is loaded anew for it: counters, and what is counted of connections, stay
        error = why if plan is None else plan["error"]
        if plan is not None and (error is None or self._plan is None):
            self._pending, self._notes = plan["pending"], plan["notes"]
            self._error = error
            self._apply(plan)
            if error is None:
                self._keep(plan)
        else:
            self._error = error  # what was in force stays so
            if self._plan is None:
                self._apply(None)
        for what, text in (("configuration", self._error), *((note, note) for note in (*self._pending, *self._notes))):
            self._say(what, text)
        if self._pending or error is not None:
            self._due["plan"] = time.monotonic() + self._again
            self._again = min(self._again * 2, LOOK_AGAIN_SECONDS[1])
        else:
            self._again = LOOK_AGAIN_SECONDS[0]
        if not self._ready:
            self._ready = True
            self._notify("READY=1")
        self._due["probe"] = 0.0
        self._beat()

    def _saved(self) -> dict[str, Any] | None:
        try:
            plan = json.loads((self._directory / "plan.json").read_bytes())
        except (OSError, ValueError):
            return None
        return (
            plan if isinstance(plan, dict) and {"scripts", "closed", "groups", "ipv6", "uid"} <= plan.keys() else None
        )

    def _keep(self, plan: dict[str, Any]) -> None:
        self._write("plan.json", plan, mode=0o600)

    # -- the rules ----------------------------------------------------------------------------------------------------

    def _apply(self, plan: dict[str, Any] | None) -> None:
        """Put a plan into force: whichever of its scripts the kernel takes; else leave what is there, or close."""
        closed = self._closed is not None or plan is None
        scripts = [nft.refusal()] if plan is None else [plan["closed"]] if closed else list(plan["scripts"])
        why = ""
        for script in scripts:
            try:
                self._load(script)
            except HostError as error:
                why = str(error)
                continue
            self._plan = plan if plan is not None else self._plan
            self._say("kernel", None)
            break
        else:
            self._say("kernel", f"the kernel does not take the rules: {why}")
            if self._plan is None or closed:
                with contextlib.suppress(HostError):
                    self._load(nft.refusal())
            self._due["plan"] = time.monotonic() + self._again
            self._again = min(self._again * 2, LOOK_AGAIN_SECONDS[1])
        if plan is not None:
            self._set_fronts(ipv6=plan["ipv6"])
        if self._reader is not None:
            self._expected = ownership.listing(self._reader)
        self._due["probe"] = 0.0

    def _load(self, script: str) -> None:
        if self._reader is None or self._owner is None:
            nft.run(script)
            return
        self._reader.run(script)
        try:
            self._owner.run(nft.held(script))
        except HostError as error:
            self._say("owner", f"{error}: rules can be watched, and not held")

    def _set_fronts(self, *, ipv6: bool) -> None:
        try:
            nft.set_fronts(present=True, ipv6=ipv6)
        except HostError as error:
            self._say("addresses", f"containers cannot be led: {error}")
        else:
            self._say("addresses", None)

    def _verify(self) -> None:
        self._due["verify"] = time.monotonic() + VERIFY_SECONDS
        if self._reader is None:
            if nft.show() is None:
                self._heal()
        elif ownership.listing(self._reader) != self._expected:
            self._heal()
        if self._plan is not None:
            self._set_fronts(ipv6=self._plan["ipv6"])

    def _heal(self) -> None:
        self._healed += 1
        self._tell(4, "somebody changed our rules: put back")
        self._apply(self._plan)
        self._beat()

    def _look_at_groups(self) -> None:
        """A control group that was made anew has another number, and the rules name the one before."""
        self._due["groups"] = time.monotonic() + GROUPS_EVERY_SECONDS
        if self._plan is None or self._child is not None:
            return
        for path, number in self._plan["groups"].items():
            with contextlib.suppress(OSError):
                if (nft.UNIFIED / path).stat().st_ino != number:
                    self._start_plan()
                    return

        if (users := _stamp(USERS)) != self._users:
            self._users = users
            self._look_at_names()

    def _look_at_names(self) -> None:
        """A name of the configuration may have another number by now."""
        if self._child is None:
            self._start_plan(only_looking=True)
        else:
            self._due["names"] = time.monotonic() + GROUPS_EVERY_SECONDS

    # -- does it arrive? ----------------------------------------------------------------------------------------------

    def _start_probe(self) -> None:
        self._due["probe"] = time.monotonic() + PROBE_AGAIN_SECONDS
        uid = None if self._plan is None else self._plan["uid"]
        if uid is None or self._closed is not None or self._probe.running:
            self._answer = None if uid is None else self._answer
            return
        try:
            self._probe.start(uid, nft.METADATA["ip"][0], 80)
        except OSError as error:
            self._probed(f"failed: {os_reason(error)}")

    def _probed(self, word: str) -> None:
        changed, self._answer = word != self._answer, word
        if word == "agent":
            self._due["probe"] = time.monotonic() + PROBE_EVERY_SECONDS
        if changed:
            self._beat()

    def _state(self) -> tuple[str, str | None]:
        if self._closed is not None:
            return "closed", self._closed
        if self._plan is None or self._plan.get("error") is not None:
            return "closed", f"workers are refused: {self._error}"
        if self._answer is None and self._plan["uid"] is not None:
            return "unanswered", "not asked yet"
        if self._answer is None or self._answer == "agent":
            return "led", self._error
        words = arrival.said(self._answer)
        if self._answer.startswith("http "):
            return "astray", f"a worker that asks the metadata service does not reach the agent: {words}"
        return "unanswered", f"a worker that asks the metadata service gets none: {words}"

    def _beat(self) -> None:
        self._due["beat"] = time.monotonic() + BEAT_SECONDS
        state, why = self._state()
        if self._ready and not self._probe.running:
            self._say("state", why if state != "led" else None)
        document = {
            "beat": time.clock_gettime(time.CLOCK_BOOTTIME),
            "pid": os.getpid(),
            "state": state,
            "why": why,
            "error": self._error,
            "notes": [*self._pending, *self._notes],
            "plans": self._plans,
            "held": self._owner is not None and bool(self._expected and self._expected[1]),
            "healed": self._healed,
        }
        self._write("state.json", document, mode=0o644)
        self._notify(f"WATCHDOG=1\nSTATUS={state}{'' if why is None else f': {why[:200]}'}")

    def _write(self, name: str, document: dict[str, Any], *, mode: int) -> None:
        path = self._directory / f".{name}.new"
        try:
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
                os.fchmod(descriptor, mode)
                file.write(json.dumps(document).encode())
            path.rename(self._directory / name)
        except OSError as error:
            self._say("file", f"{path}: cannot be written: {os_reason(error)}")
        else:
            self._say("file", None)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Close, unless we are only started again: then what leads stays, and our copy of it is made anew."""
        self._stop_child()
        if _restarting():
            return
        self._closed = self._error = "workers are refused: credential-agent-redirect was stopped"
        self._apply(self._plan)
        self._beat()
        (self._directory / "plan.json").unlink(missing_ok=True)

    def _notify(self, text: str) -> None:
        address = self._address
        if not address:
            return
        address = f"\0{address[1:]}" if address.startswith("@") else address
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as made:
            made.sendto(text.encode(), address)

    def _say(self, what: str, text: str | None) -> None:
        """Log what is wrong with something, once, and that it is right again."""
        if self._told.get(what) == text:
            return
        before, self._told[what] = self._told.get(what), text
        if text is not None:
            self._tell(3, text)
        elif before is not None:
            self._tell(6, f"no longer: {before}")

    @staticmethod
    def _tell(level: int, text: str) -> None:
        # A log that nobody reads must not stop us: standard error does not block, and what does not fit is lost.
        with contextlib.suppress(OSError):
            os.write(2, f"<{level}>credential-agent: {text}\n".encode())


def _is_plan(plan: Any) -> bool:
    kinds = {"scripts": list, "closed": str, "groups": dict, "ipv6": bool, "notes": list, "pending": list,
             "uid": int | None, "error": str | None}  # fmt: skip
    return isinstance(plan, dict) and all(name in plan and isinstance(plan[name], kind) for name, kind in kinds.items())


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; ``None``: it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _netlink(family: int, groups: int) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, family)
    made.bind((0, groups))
    return made


def _drained(netlink: socket.socket, name: bytes) -> bool:
    """Read all that waits; whether any of it is about ``name``, or something was lost."""
    about = False
    while True:
        try:
            about |= name in netlink.recv(65_536)
        except BlockingIOError:
            return about
        except OSError:  # ENOBUFS: more happened than could be told
            about = True


def _restarting() -> bool:
    """Whether systemd ends us only to start us again. In doubt not: a stop closes."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["systemctl", "list-jobs", "--no-legend", "--plain", UNIT],  # noqa: S607 - systemd's own search path
            capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return any(line.split()[1:3] == [UNIT, "restart"] for line in done.stdout.splitlines())


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Hold the rules: ``DIRECTORY COMMAND...``; the command prints a plan.

    The unit calls this itself (``python -c``): by way of ``agent.cli`` the process would be twice as large.
    """
    with contextlib.suppress(OSError):
        os.set_blocking(2, False)
    Holder(arguments[1:], Path(arguments[0]), environ.get("NOTIFY_SOCKET")).run()
