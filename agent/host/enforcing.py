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
from agent.host import aliases, lasting, nft, nft_text, ownership, systemctl, unroutable
from agent.host.apart import CrashedError
from agent.host.planning import Plan
from agent.host.reporting import WARNING, Reporter
from agent.host.tools import KilledError, LateError

#: The first is there while the second copy is loaded, and when a process has not come out of that. So is the second
#: then while its successor tries once more, since whatever ends a process may have ended it just there. Where that
#: does not come out of it either, the next goes without.
OWNING_FILES: Final = ("owning", "owning-again")
_HANDOVER: Final = "handover"
HAND_OVER_SECONDS: Final = 3.0
LOAD_SECONDS: Final = 10.0
"""For all scripts of one load together, and then :data:`STEP_SECONDS` for each thing that is left to do: where ``nft``
hangs the sum stays far below the unit's ``WatchdogSec=``, and workers are refused in some other way before that."""
STEP_SECONDS: Final = 2.0
_UNIT_SECONDS: Final = 10.0
_MOST_DOUBTS: Final = 3
# What a closed table leaves to those who led before it. (The rest of that table refuses, root's jobs in slices too.)
LEADING: Final = ("lead_output", "lead_forwarded")
_NO_ANSWER: Final = (CrashedError, KilledError, LateError)


class Rules:
    """The rules as they were loaded last.

    Where there is no libnftables, ``nft`` loads them, and there is no second copy.

    Args:
        reporter: reports what the kernel does not take.

    Attributes:
        why: the reason why the rules last loaded are not in force; ``None``: it is.
        closed: whether what is in force refuses workers; ``None``: that cannot be told, since nothing could be loaded,
            or what was to load it did not say how that ended.
        healed: how often somebody else had changed what is in force.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._owner: ownership.Connection | None = None
        self._owning = tuple(reporter.directory / name for name in OWNING_FILES)
        self._crashed = False
        self._expected: tuple[str, ...] | None = ()
        self._owns = self._held = False  # whether our connection has made the second copy, and it was there when looked
        self.healed, self._doubts, self._until = 0, 0, 0.0
        self._left_out: tuple[str, ...] = ()
        self._notes: dict[str, str] = {}
        self.why: str | None = None
        self.closed: bool | None = None

    def connect(self) -> None:
        """Connect to the kernel; the tables of the second copy live as long as the connection."""
        self._crashed = all(map(os.path.lexists, self._owning))
        try:
            self._owner = ownership.Connection()
        except HostError as error:
            self._unheld(error)

    def hand_over(self) -> None:
        """Wait, but not long, until the watching unit has a copy of its own, so that there is none for no moment."""
        try:
            if not systemctl.is_active(systemctl.WATCH):
                return
            nft.run(f"add chain {nft.CLOSED} {_HANDOVER}\n", seconds=STEP_SECONDS)  # what that unit listens for
            try:
                until = time.monotonic() + HAND_OVER_SECONDS
                while nft.show(nft.KEPT, seconds=STEP_SECONDS) is None and time.monotonic() < until:
                    time.sleep(0.02)
            finally:
                nft.run(f"delete chain {nft.CLOSED} {_HANDOVER}\n", seconds=STEP_SECONDS)
        except HostError as error:
            self._reporter.say("handover", f"{error}: a flush opens for a moment from now on")

    def end(self) -> None:
        """An orderly end: nothing crashed."""
        self._forget_owning()

    @property
    def held(self) -> bool:
        """Whether there is a second copy that only this process can change."""
        return self._owner is not None and self._owns and self._held

    @property
    def lacking(self) -> tuple[str, ...]:
        """What the rules in force do without, in words: what this kernel or this machine does not take."""
        return (*self._left_out, *self._notes.values())

    def load(self, plan: Plan | None, *, closed: bool, in_force: bool) -> bool:
        """Load whichever of the plan's scripts the kernel takes; else leave what is there, or close.

        Args:
            plan: ``None``: there is none, and everything is refused.
            closed: load the plan's script that refuses workers.
            in_force: whether a plan is in force, which may stay there.

        Returns:
            Whether the kernel took one.
        """
        self._until = time.monotonic() + LOAD_SECONDS
        if self._owner is None:
            self.connect()  # libnftables may have been installed since
        scripts = self._refusals() if plan is None else [plan["closed"]] if closed else list(plan["scripts"])
        lacking = [] if plan is None or closed else list(plan.get("lacking", ()))
        taken = self._load_one_of(scripts, lacking, closed=closed or plan is None)
        if not taken and (closed or plan is None or not in_force):
            self._refuse([] if plan is None else self._refusals())
        if plan is not None and (taken or in_force):  # else what guards those addresses may not be there either
            self.set_aliases(ipv6=plan["ipv6"])
        self._expect((nft.CLOSED,) if plan is None else (nft.TABLE, nft.CLOSED), taken=taken)
        self.give_way_back()
        return taken

    def _expect(self, tables: tuple[str, ...], *, taken: bool) -> None:
        """From now on the kernel is to have what it has; not where a table is gone already that it has just taken.

        Somebody flushed it meanwhile: the next look finds that, and puts it back. (Not without end: a list may lack
        what is there.) So it does with what could not be looked at.
        """
        if (found := self._listing()) is None:
            self._expected = None
            return
        there = set(found)
        if self._owner is not None:  # the first copies are the first and the third
            there = {name for name, text in zip((nft.TABLE, nft.CLOSED), found[::2], strict=False) if text}
        is_gone = taken and not there.issuperset(tables)
        self._doubts = self._doubts + 1 if is_gone else 0
        self._expected = ("", "") if is_gone and self._doubts <= _MOST_DOUBTS else found

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
        self._until = time.monotonic() + LOAD_SECONDS
        found = self._listing()
        if found is None or found == self._expected:
            return True
        if self._expected is not None:  # else nobody knows what became of them when they were made
            self.healed += 1
            self._reporter.log(WARNING, "somebody changed our rules: put back")
        return False

    def set_aliases(self, *, ipv6: bool) -> None:
        """Have the addresses that containers are sent to; see :func:`agent.host.aliases.set_aliases`."""
        try:
            aliases.set_aliases(present=True, ipv6=ipv6)
        except HostError as error:
            self._notes["addresses"] = f"containers cannot be led: {error}"
        else:
            self._notes.pop("addresses", None)
        self._reporter.say("addresses", self._notes.get("addresses"))

    def _left(self) -> float:
        """How many seconds the next step may take."""
        return max(STEP_SECONDS, self._until - time.monotonic())

    def _load_one_of(self, scripts: list[str], lacking: list[str], *, closed: bool) -> bool:
        why, crashed = "", []
        for number, script in enumerate(scripts):
            try:
                self._load(script)
            except HostError as error:
                why = str(error)
                self._doubt(error, closed=closed)
                if isinstance(error, CrashedError):
                    crashed.append(f"rules {number + 1} of {len(scripts)} are left out: {error}")
                if time.monotonic() >= self._until:
                    break  # it hangs, and would on the next ones too
            else:
                self._reporter.say("kernel", None)
                self.why, self.closed = None, closed
                self._left_out = tuple(filter(None, [*lacking[number : number + 1], *crashed]))
                self._reporter.say("lacking", "; ".join(self._left_out) or None)
                return True
        self.why = f"the kernel does not take the rules: {why}"
        if (self._reporter.directory / unroutable.MARK).exists():
            self.why = f"{unroutable.WHY}: {why}"
        self._reporter.say("kernel", self.why)
        return False

    def _doubt(self, error: HostError, *, closed: bool) -> None:
        """What did not say how it ended may have done it: what is in force is known only if both would do the same."""
        if self.closed is not closed and isinstance(error, _NO_ANSWER):
            self.closed = None

    def _load(self, script: str) -> None:
        if self._owner is None:
            nft.run(script, seconds=self._left())
            return
        ownership.run_apart(script, seconds=self._left())
        try:
            self._own(script, self._owner)
        except HostError as error:
            self._unheld(error)
            # What it owns are the rules before these: two copies that differ would be worse than one.
            self._owner.close()
            self._owner = None  # one that is closed must not be used: the library would crash
            self.connect()
        else:
            self._owns = self._held = True
            self._notes.pop("owner", None)
            self._reporter.say("owner", None)
        ownership.give_back()

    def _own(self, script: str, owner: ownership.Connection) -> None:
        """Load the second copy, which must happen in this process."""
        if self._crashed:
            raise CrashedError(f"{ownership.LIBRARY} crashed on them before")
        # (Of another name: those that this process owns no other may even pretend to change.)
        ownership.run_apart(nft.held(script, "_rehearsed"), rehearsal=True, seconds=self._left())
        first, again = self._owning
        with contextlib.suppress(OSError):
            (again if os.path.lexists(first) else first).touch()
        try:
            owner.run(nft.held(script))
        finally:
            self._forget_owning()

    def _forget_owning(self) -> None:
        for file in self._owning:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    def _refuse(self, scripts: list[str]) -> None:
        """Have at least the closed table; where even that cannot be loaded, and is not there, no way at all."""
        for script in scripts:
            try:
                self._load(script)
            except HostError as error:
                self._doubt(error, closed=True)
            else:
                self.closed = True
                return
        try:
            there = "reject" in (nft.show(nft.CLOSED, seconds=self._left()) or "")
        except HostError:
            there = False
        if there and not _leading(is_library=self._owner is not None, seconds=self._left()):
            self.closed = True
        mark = self._reporter.directory / unroutable.MARK
        if not there and not mark.exists():
            with contextlib.suppress(HostError):
                systemctl.restart(unroutable.UNIT, seconds=_UNIT_SECONDS)
        if mark.exists():
            self.closed = True

    def _listing(self) -> tuple[str, ...] | None:
        """The tables as they are, or, without the library, which there are; ``None``: it cannot be told."""
        try:
            seconds = self._left()
            found = ownership.listing(seconds=seconds) if self._owner is not None else _there(seconds)
        except HostError as error:
            self._reporter.say("listing", f"{error}: changes of the rules are not seen")
            return None
        self._reporter.say("listing", None)
        self._held = any(found[1:2])
        return found

    def _unheld(self, error: HostError) -> None:
        self._owns = False
        said = f"{error}: rules can be watched, and not held"
        self._reporter.say("owner", said)
        if isinstance(error, CrashedError):
            self._notes["owner"] = said

    def _refusals(self) -> list[str]:
        """The closed table, with the system users who were workers before; without, where the kernel has them already.

        Where somebody is led, by our rules or by those of a process before us, nobody is any more.
        """
        before = _before()
        # (In the second copy they are not there.)
        end = nft_text.emptied(nft.TABLE, _leading(is_library=self._owner is not None, seconds=self._left()))
        texts = [nft.refusal(before), nft.refusal()] if before else [nft.refusal()]
        return [text + end for text in texts]


def _before() -> tuple[lasting.Range, ...]:
    """The system users who were workers before; where that cannot be read, whoever may be."""
    try:
        return lasting.read()
    except HostError:
        return lasting.UNCLEAR


def _leading(*, is_library: bool, seconds: float) -> tuple[str, ...]:
    """Which chains of the kernel's lead somebody, in either copy; all in doubt."""
    try:
        text = "".join(ownership.listing(seconds=seconds)[:2]) if is_library else nft.show(seconds=seconds) or ""
    except HostError:
        return LEADING
    return tuple(name for name in LEADING if f"chain {name} {{" in text)


def _there(seconds: float) -> tuple[str, ...]:
    return tuple(table for table in (nft.TABLE, nft.CLOSED) if nft.show(table, seconds=seconds) is not None)
