"""Holds the rules: the process of ``credential-agent-redirect.service``.

Makes the rules, owns a second copy of them that nobody else can remove (:func:`agent.host.nft.held`), watches the first
copy and puts it back, looks up again what was not there, asks as a worker whether its request arrives, and says so in
a file. In doubt it refuses workers. Small and single-threaded. This file says what is due, and when; *which* rules
(:mod:`~agent.host.planning`), whether they are in force (:mod:`~agent.host.enforcing`), who changed something
(:mod:`~agent.host.netlink`), whether a request arrives (:mod:`~agent.host.arrival`), whose the agent's port is
(:mod:`~agent.host.ports`), which commands are done (:mod:`~agent.host.heard`) and how all of it is said
(:mod:`~agent.host.reporting`) are files of their own.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from agent.core.looks import Look, look_of
from agent.core.text import os_reason
from agent.host import arrival, heard, lasting, netlink, nft, planning, signals, systemctl
from agent.host.enforcing import Rules
from agent.host.notifying import TELL_AGAIN_SECONDS
from agent.host.planning import Outcome, Plan, Planner
from agent.host.ports import Reserved
from agent.host.reporting import Reporter, fitting
from agent.host.surroundings import LOOK_SECONDS, Surroundings

VERIFY_SECONDS: Final = 10.0
PROBE_EVERY_SECONDS: Final = 30.0
PROBE_AGAIN_SECONDS: Final = 2.0
BEAT_SECONDS: Final = 5.0
LOOK_AGAIN_SECONDS: Final = (1.0, 30.0)
GROUPS_EVERY_SECONDS: Final = 1.0
#: A user that is made again with another uid, or with other subordinate uids, shows in these files at once; one of a
#: directory (LDAP) only by asking.
USERS: Final = (Path("/etc/passwd"), Path("/etc/subuid"))
NAMES_EVERY_SECONDS: Final = 600.0
UNIT: Final = "credential-agent-redirect.service"
#: There from ``redirect close`` to ``redirect apply``, or to the next boot: no crash, restart or upgrade opens. The
#: command itself makes it, or removes it, before it sends its signal: so it says which of two came later.
CLOSED_FILE: Final = "closed"

_OURS: Final = b"credential_agent"
_BEING_MADE: Final = "the rules are being made"
_BY_COMMAND: Final = "workers are refused, by command (credential-agent redirect close)"
_MOST_REASON: Final = 2000
"""Characters. It may quote what somebody wrote into the configuration, and the state is read to its bound only."""
_HEEDED: Final = frozenset({signal.SIGTERM, signal.SIGINT, *heard.SIGNALS.values()})


class Holder:
    """One process, one loop.

    Long because it says of each thing when it is due; how each is done is in other files.

    Args:
        planner: the command that prints a plan (``credential-agent redirect plan``).
        directory: of the state file, ours alone to write.
        notify: systemd's socket for us (sd_notify(3)); ``None``: it wants no notification.
    """

    def __init__(self, planner: Sequence[str], directory: Path, notify: str | None = None) -> None:
        self._directory = directory
        self._reporter = Reporter(directory, notify)
        self._rules = Rules(self._reporter)
        self._ports = Reserved(self._reporter)
        self._surroundings = Surroundings()
        self._lasting = lasting.Kept()
        self._planner = Planner(planner)
        self._probe = arrival.Probe()
        self._watches = (netlink.rules(_OURS), netlink.addresses())
        self._wake, self._waker = socket.socketpair()
        # Mutable state, all of it.
        self._plan: Plan | None = None  # in force
        self._error: str | None = _BEING_MADE
        self._pending: list[str] = []
        self._notes: list[str] = []
        self._answer: str | None = None
        self._heard = heard.Heard(time.monotonic())
        # Why workers are to be refused by command.
        self._closed: str | None = self._commanded()
        self._plans = 0
        self._again = LOOK_AGAIN_SECONDS[0]
        self._due = dict.fromkeys(("plan", "probe", "verify", "beat", "groups", "around"), 0.0)
        self._due["plan"] = float("inf")
        self._due["names"] = time.monotonic() + NAMES_EVERY_SECONDS
        self._users = [_look(file) for file in USERS]
        self._tried: dict[str, int] = {}  # the control groups for which a plan was asked
        self._only_looking = self._stopping = self._ready = self._asked_before = False

    def run(self) -> None:
        """Until a signal ends it."""
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._waker.setblocking(False)
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in _HEEDED:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED)  # what came meanwhile is heeded now
        self._rules.connect()
        # The plan before the last end is in force again at once; without one, workers are refused until there is a
        # plan.
        self._apply(planning.saved(self._directory / planning.PLAN_FILE))
        self._start_plan()
        # A command that found no state of ours, and so sent no signal, has made or removed the file before this look.
        self._beat()
        if self._commanded() != self._closed:
            self._closed = self._commanded()
            self._apply(self._plan)
            self._beat()
        while not self._stopping:
            self._turn()
        self._end()

    # -- one turn -----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        files: list[Any] = [*self._watches, self._wake]
        files += [one for one in (self._planner, self._probe) if one.running]
        wait = max(0.0, min(*self._due.values(), time.monotonic() + BEAT_SECONDS) - time.monotonic())
        ready = select.select(files, [], [], wait)[0]
        for watch in self._watches:
            if watch in ready and watch.has_news():
                self._due["verify"] = 0.0
                # The way to us may be cut (loopback is down): ask sooner than when all is well.
                self._due["probe"] = min(self._due["probe"], time.monotonic() + PROBE_AGAIN_SECONDS)
        if self._wake in ready:
            self._signals()
        if (outcome := self._planner.result()) is not None:
            self._planned(outcome)
        if self._probe.running and (word := self._probe.result()) is not None:
            self._probed(word)
        self._do_what_is_due()

    def _do_what_is_due(self) -> None:
        work: dict[str, Callable[[], None]] = {
            "plan": partial(self._start_plan, only_looking=True),
            "groups": self._look_at_groups,
            "names": self._look_at_names,
            "verify": self._verify,
            "probe": self._start_probe,
            "around": self._look_around,
            "beat": self._beat,
        }
        for name, do in work.items():
            if time.monotonic() >= self._due[name]:
                do()

    def _signals(self) -> None:
        numbers = set(self._wake.recv(4096))
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            self._stopping = True
            return
        came = {command for command, number in heard.SIGNALS.items() if number in numbers}
        self._heard.hear(came, time.monotonic())
        if heard.APPLY in came and (heard.CLOSE not in came or self._commanded() is None):
            with contextlib.suppress(OSError):
                (self._directory / CLOSED_FILE).unlink(missing_ok=True)
            self._closed = None
        elif heard.CLOSE in came:
            self._closed = _BY_COMMAND
            self._apply(self._plan)
            self._reporter.write(CLOSED_FILE, {}, mode=0o600)
        self._heard.close()
        if came & {heard.APPLY, heard.RELOAD}:
            self._start_plan()
        if heard.CLOSE in came:
            self._beat()

    def _commanded(self) -> str | None:
        return _BY_COMMAND if os.path.lexists(self._directory / CLOSED_FILE) else None

    # -- the plan -----------------------------------------------------------------------------------------------------

    def _start_plan(self, *, only_looking: bool = False) -> None:
        self._due["plan"] = float("inf")
        self._due["names"] = time.monotonic() + NAMES_EVERY_SECONDS
        self._only_looking = only_looking
        self._heard.begin()
        if (outcome := self._planner.start()) is not None:
            self._planned(outcome)

    def _planned(self, outcome: Outcome) -> None:
        plan = outcome.plan
        self._plans += 1
        self._heard.end()
        is_whole = plan is None or self._completes(plan)
        if self._only_looking and self._is_in_force(plan):
            if self._pending or not is_whole:
                self._plan_again()
            return  # nothing is loaded anew: counters and counted connections stay
        error = outcome.why if plan is None else plan["error"]
        self._error = error
        if plan is not None and (error is None or self._plan is None or plan.get("section")):
            self._pending, self._notes = plan["pending"], plan["notes"]
            if error is None or not self._is_loaded(plan):  # tried again and again: counted connections stay
                self._apply(plan)
            if error is None:
                self._keep(plan)
        elif self._plan is None:
            self._apply(None)  # else what is in force stays
        for what, text in (("configuration", self._error), *((note, note) for note in (*self._pending, *self._notes))):
            self._reporter.say(what, text)
        if self._pending or error is not None or not is_whole:
            self._plan_again()
        elif self._rules.why is None:  # else it is looked at again already, less and less often
            self._again = LOOK_AGAIN_SECONDS[0]
        self._ready = True  # as the next beat tells
        self._due["probe"] = 0.0
        self._beat()

    def _keep(self, plan: Plan) -> None:
        """What is in force is what the next start begins with. The next boot refuses also whom a plan only names."""
        if plan == self._plan:
            self._reporter.write(planning.PLAN_FILE, plan, mode=0o600)
            self._reporter.write(planning.USERS_FILE, plan.get("users", {}), mode=0o600)
        both, new = (plan, self._plan or {}), self._plan is None
        self._lasting.keep((u for one in both for name in ("uids", "refused") for u in one.get(name, ())), beside=new)

    def _completes(self, plan: Plan) -> bool:
        """Put in what it cannot say because systemd does not answer: that stays as it is. Whether there was nothing."""
        if plan.get("reserve_is_known", True):
            return True
        plan |= {"reserve": (self._plan or {}).get("reserve", []), "reserve_is_known": True}
        return False

    def _is_in_force(self, plan: Plan | None) -> bool:
        return self._error is None and self._is_loaded(plan)

    def _is_loaded(self, plan: Plan | None) -> bool:
        is_as_commanded = self._rules.closed is (self._closed is not None)
        return self._rules.why is None and is_as_commanded and plan == self._plan

    def _plan_again(self) -> None:
        self._due["plan"] = time.monotonic() + self._again
        self._again = min(self._again * 2, LOOK_AGAIN_SECONDS[1])

    # -- the rules ----------------------------------------------------------------------------------------------------

    def _apply(self, plan: Plan | None, *, in_force: bool = True) -> None:
        """Put a plan into force; ``None``: there is none, and everything is refused.

        Args:
            plan: the plan.
            in_force: whether the one before may stay, where the kernel does not take this one.
        """
        in_force = in_force and self._plan is not None
        if not self._rules.load(plan, closed=self._closed is not None, in_force=in_force):
            self._plan_again()
        elif plan is not None:
            self._plan = plan
            self._tried.clear()
        if plan is not None:
            # Where it is not taken, what is in force leads to those of the one before.
            self._ports.want(one for each in (plan, self._plan or {}) for one in each.get("reserve", ()))
        self._asked_before = self._probe.running
        self._due["probe"] = 0.0

    def _verify(self) -> None:
        self._due["verify"] = time.monotonic() + VERIFY_SECONDS
        if not self._rules.are_intact():
            # What is left may be nothing: where ours cannot be made anew, only the second copy still leads anybody.
            self._apply(self._plan, in_force=self._rules.held)
            self._beat()
        if self._plan is not None:
            self._rules.set_aliases(ipv6=self._plan["ipv6"])
        self._rules.give_way_back()

    def _look_at_groups(self) -> None:
        """A control group that was made anew has another number, and the rules name the old one."""
        self._due["groups"] = time.monotonic() + GROUPS_EVERY_SECONDS
        self._ports.take()
        self._lasting.look()
        if self._plan is None or self._planner.running:
            return
        for path, number in self._plan["groups"].items():
            with contextlib.suppress(OSError):
                now = (systemctl.UNIFIED / path).stat().st_ino
                # One that was tried without success is tried again less and less often, as any plan is.
                if now not in {number, self._tried.get(path)}:
                    self._tried[path] = now
                    self._start_plan()
                    return

        if (users := [_look(file) for file in USERS]) != self._users:
            self._users = users
            self._look_at_names()

    def _look_at_names(self) -> None:
        """A name of the configuration may have another number by now."""
        if self._planner.running:
            self._due["names"] = time.monotonic() + GROUPS_EVERY_SECONDS
        else:
            self._start_plan(only_looking=True)

    def _look_around(self) -> None:
        self._due["around"] = time.monotonic() + LOOK_SECONDS
        plan = self._plan or {}
        self._surroundings.look(groups=plan.get("groups", ()), uids=plan.get("uids", ()), answer=self._answer)
        self._reporter.say("around", "; ".join(self._surroundings.notes) or None)

    # -- does it arrive? ----------------------------------------------------------------------------------------------

    def _start_probe(self) -> None:
        self._due["probe"] = time.monotonic() + PROBE_AGAIN_SECONDS
        uid = None if self._plan is None else self._plan["uid"]
        if uid is None or self._rules.closed:
            self._answer = None  # what was answered before is not so any more
        if uid is None or self._rules.closed or self._probe.running:
            return
        try:
            self._probe.start(uid, nft.METADATA["ip"][0], 80)
        except OSError as error:
            self._probed(f"failed: {os_reason(error)}")

    def _probed(self, word: str) -> None:
        if self._asked_before:  # under other rules
            self._asked_before, self._due["probe"] = False, 0.0
            return
        changed, self._answer = word != self._answer, word
        if word == "agent":
            self._due["probe"] = time.monotonic() + PROBE_EVERY_SECONDS
        if changed:
            self._look_around()
            self._beat()

    def _state(self) -> tuple[str, str | None]:
        plan, trouble = self._plan or {}, self._error or self._rules.why
        if self._rules.closed is None:
            return "unknown", trouble or _BEING_MADE
        if self._rules.closed or not plan or (plan.get("error") is not None and not plan.get("section")):
            return "closed", self._closed or f"workers are refused: {trouble or _BEING_MADE}"
        if self._answer is None and plan["uid"] is not None:
            return "unanswered", trouble or "not asked yet"
        if self._answer is None or self._answer == "agent":
            return "led", trouble
        words = arrival.said(self._answer)
        if self._answer.startswith("http "):
            return "astray", f"a worker that asks the metadata service does not reach the agent: {words}"
        return "unanswered", f"a worker that asks the metadata service gets none: {words}"

    def _beat(self) -> None:
        self._due["beat"] = time.monotonic() + BEAT_SECONDS
        state, why = self._state()
        if self._ready and not self._probe.running:
            self._reporter.say("state", why if state != "led" else None)
        document = {
            "beat": time.clock_gettime(time.CLOCK_BOOTTIME),
            "pid": os.getpid(),
            "state": state,
            "by_command": self._closed == _BY_COMMAND,
            "why": None if why is None else why[:_MOST_REASON],
            "error": None if self._error is None else self._error[:_MOST_REASON],
            "kernel": None if self._rules.why is None else self._rules.why[:_MOST_REASON],
            "notes": fitting(
                (
                    *self._rules.lacking,
                    *self._ports.lacking,
                    *self._lasting.lacking,
                    *self._surroundings.notes,
                    *self._notes,
                    *self._pending,
                ),
                arrival.MAX_BYTES // 2,
            ),
            "plans": self._plans,
            "done": self._heard.done,
            "held": self._rules.held,
            "healed": self._rules.healed,
        }
        self._reporter.write(arrival.STATE.name, document, mode=0o644)
        # Each time: what is told may find no place in the queue, and a start that is never announced is ended.
        ready = ("READY=1",) if self._ready else ()
        said = state if why is None else f"{state}: {' '.join(why.split())[:200]}"
        told = self._reporter.notify(*ready, "WATCHDOG=1", f"STATUS={said}")
        if not told:
            self._due["beat"] = time.monotonic() + min(BEAT_SECONDS, TELL_AGAIN_SECONDS)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Refuse workers, unless systemd only restarts us: then the rules stay, and our copy of them is made anew."""
        self._planner.stop()
        if systemctl.is_restarting(UNIT):
            self._rules.end()
            return
        # At once: a stop that takes too long is ended.
        with contextlib.suppress(OSError):
            (self._directory / planning.PLAN_FILE).unlink()
        self._closed = self._error = "workers are refused: credential-agent-redirect was stopped"
        self._apply(self._plan)
        self._beat()
        self._rules.hand_over()
        self._rules.end()


def _look(path: Path) -> Look | None:
    """How a file looks; ``None``: it is not there."""
    try:
        return look_of(path.stat())
    except OSError:
        return None


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Hold the rules: ``DIRECTORY COMMAND...``; the command prints a plan.

    The unit calls this itself (``python -c``): by way of ``agent.cli`` the process would be twice as large.
    """
    with contextlib.suppress(OSError):
        os.set_blocking(2, False)
    signals.begin(blocked=_HEEDED)
    Holder(arguments[1:], Path(arguments[0]), environ.get("NOTIFY_SOCKET")).run()
