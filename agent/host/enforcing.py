"""Are the rules in force? Loads them, owns a second copy that nobody else can remove, and checks both.

Where libnftables crashes on a script the next one is tried, which does without something; where it crashes on all, or
on the closed table itself, the routing policy refuses (:mod:`agent.host.unroutable`).
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final

from agent.core.errors import HostError
from agent.host import aliases, lasting, nft, ownership, systemctl, unroutable
from agent.host.apart import CrashedError
from agent.host.planning import Plan
from agent.host.reporting import Reporter

#: It is there while the second copy is loaded, and when a process has not come out of that: then the next goes without.
OWNING_FILE: Final = "owning"
_HANDOVER: Final = "handover"
HAND_OVER_SECONDS: Final = 3.0


class Rules:
    """The rules as they were loaded last.

    Where there is no libnftables, ``nft`` loads them, and there is no second copy.

    Args:
        reporter: reports what the kernel does not take.

    Attributes:
        lacking: what the rules in force do without, in words, because this kernel does not take it.
        why: the reason why the rules last loaded are not in force; ``None``: it is.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._owner: ownership.Connection | None = None
        self._owning = reporter.directory / OWNING_FILE
        self._crashed = False
        self._expected: tuple[str, ...] = ()
        self.lacking: tuple[str, ...] = ()
        self.why: str | None = None

    def connect(self) -> None:
        """Connect to the kernel; the tables of the second copy live as long as the connection."""
        self._crashed = os.path.lexists(self._owning)
        try:
            self._owner = ownership.Connection()
        except HostError as error:
            self._unheld(error)

    def hand_over(self) -> None:
        """Wait, but not long, until the watching unit has a copy of its own, so that there is none for no moment."""
        try:
            if not systemctl.is_active(systemctl.WATCH):
                return
            nft.run(f"add chain {nft.CLOSED} {_HANDOVER}\n")  # what that unit listens for
            until = time.monotonic() + HAND_OVER_SECONDS
            while nft.show(nft.KEPT) is None and time.monotonic() < until:
                time.sleep(0.02)
            nft.run(f"delete chain {nft.CLOSED} {_HANDOVER}\n")
        except HostError as error:
            self._reporter.say("handover", f"{error}: a flush opens for a moment from now on")

    def end(self) -> None:
        """An orderly end: nothing crashed."""
        self._owning.unlink(missing_ok=True)

    @property
    def held(self) -> bool:
        """Whether the second copy was there when the rules were loaded."""
        return self._owner is not None and bool(self._expected and self._expected[1])

    def load(self, plan: Plan | None, *, closed: bool, in_force: bool) -> bool:
        """Load whichever of the plan's scripts the kernel takes; else leave what is there, or close.

        Args:
            plan: ``None``: there is none, and everything is refused.
            closed: load the plan's script that refuses workers.
            in_force: whether a plan is in force, which may stay there.

        Returns:
            Whether the kernel took one.
        """
        if self._owner is None:
            self.connect()  # libnftables may have been installed since
        scripts = _refusals() if plan is None else [plan["closed"]] if closed else list(plan["scripts"])
        lacking = [] if plan is None or closed else list(plan.get("lacking", ()))
        taken = self._load_one_of(scripts, lacking)
        if not taken and (closed or plan is None or not in_force):
            self._refuse()
        if plan is not None:
            self.set_aliases(ipv6=plan["ipv6"])
        self._expected = self._listing() or ()
        self.give_way_back()
        return taken

    def give_way_back(self) -> None:
        """Where nothing could be loaded at first, workers have no route: they do again once something is in force."""
        if self.why is None:
            try:
                unroutable.lift(self._reporter.directory / unroutable.MARK)
            except HostError as error:
                self._reporter.say("way", f"{error}: workers have no way to the metadata service yet")
            else:
                self._reporter.say("way", None)

    def are_intact(self) -> bool:
        """Whether the kernel has what it had after the last load, and nothing was added to it; true in doubt."""
        found = self._listing()
        return found is None or found == self._expected

    def set_aliases(self, *, ipv6: bool) -> None:
        """Have the addresses that containers are sent to; see :func:`agent.host.aliases.set_aliases`."""
        try:
            aliases.set_aliases(present=True, ipv6=ipv6)
        except HostError as error:
            self._reporter.say("addresses", f"containers cannot be led: {error}")
        else:
            self._reporter.say("addresses", None)

    def _load_one_of(self, scripts: list[str], lacking: list[str]) -> bool:
        why, crashed = "", []
        for number, script in enumerate(scripts):
            try:
                self._load(script)
            except HostError as error:
                why = str(error)
                if isinstance(error, CrashedError):
                    crashed.append(f"rules {number + 1} of {len(scripts)} are left out: {error}")
            else:
                self._reporter.say("kernel", None)
                self.why = None
                self.lacking = tuple(filter(None, [*lacking[number : number + 1], *crashed]))
                self._reporter.say("lacking", "; ".join(self.lacking) or None)
                return True
        self.why = f"the kernel does not take the rules: {why}"
        if (self._reporter.directory / unroutable.MARK).exists():
            self.why = f"{unroutable.WHY}: {why}"
        self._reporter.say("kernel", self.why)
        return False

    def _load(self, script: str) -> None:
        if self._owner is None:
            nft.run(script)
            return
        ownership.run_apart(script)
        try:
            self._own(script, self._owner)
        except HostError as error:
            self._unheld(error)
            # What it owns are the rules before these: two copies that differ would be worse than one.
            self._owner.close()
            self._owner = None  # one that is closed must not be used: the library would crash
            self.connect()
        else:
            self._reporter.say("owner", None)
        ownership.give_back()

    def _own(self, script: str, owner: ownership.Connection) -> None:
        """Load the second copy, which must happen in this process."""
        if self._crashed:
            raise CrashedError(f"{ownership.LIBRARY} crashed on them before")
        # (Of another name: those that this process owns no other may even pretend to change.)
        ownership.run_apart(nft.held(script, "_rehearsed"), rehearsal=True)
        with contextlib.suppress(OSError):
            self._owning.touch()
        try:
            owner.run(nft.held(script))
        finally:
            self._owning.unlink(missing_ok=True)

    def _refuse(self) -> None:
        """Have at least the closed table; where even that cannot be loaded, and is not there, no way at all."""
        for script in _refusals():
            with contextlib.suppress(HostError):
                self._load(script)
                return
        try:
            there = "reject" in (nft.show(nft.CLOSED) or "")
        except HostError:
            there = False
        if not there and not (self._reporter.directory / unroutable.MARK).exists():
            with contextlib.suppress(HostError):
                systemctl.restart("credential-agent-closed.service")

    def _listing(self) -> tuple[str, ...] | None:
        """The tables as they are, or, without the library, which there are; ``None``: it cannot be told."""
        try:
            found = ownership.listing() if self._owner is not None else _there()
        except HostError as error:
            self._reporter.say("listing", f"{error}: changes of the rules are not seen")
            return None
        self._reporter.say("listing", None)
        return found

    def _unheld(self, error: HostError) -> None:
        self._reporter.say("owner", f"{error}: rules can be watched, and not held")


def _there() -> tuple[str, ...]:
    return tuple(table for table in (nft.TABLE, nft.CLOSED) if nft.show(table) is not None)


def _refusals() -> list[str]:
    """The closed table, with the system users who were workers before; without, where the kernel has them already."""
    before = lasting.read()
    return [nft.refusal(before), nft.refusal()] if before else [nft.refusal()]
