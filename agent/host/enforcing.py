"""Are the rules in force? Loads them, owns a second copy that nobody else can remove, and checks both."""

from __future__ import annotations

import contextlib

from agent.core.errors import HostError
from agent.host import fronts, nft, ownership, unroutable
from agent.host.planning import Plan
from agent.host.reporting import Reporter


class Rules:
    """The rules as they were loaded last.

    Where there is no libnftables, ``nft`` loads them, and there is no second copy.

    Args:
        reporter: reports what the kernel does not take.

    Attributes:
        lacking: what the rules in force do without, in words, because this kernel does not take it.
        why: the reason why what was last to be loaded is not in force; ``None``: it is.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._owner: ownership.Connection | None = None
        self._reader: ownership.Connection | None = None
        self._expected: tuple[str, ...] = ()
        self.lacking: tuple[str, ...] = ()
        self.why: str | None = None

    def connect(self) -> None:
        """Connect to the kernel; the tables of the second copy live as long as the connection."""
        try:
            self._reader, self._owner = ownership.Connection(), ownership.Connection()
        except HostError as error:
            self._unheld(error)

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
        if self._reader is None:
            self.connect()  # libnftables may have been installed since
        scripts = [nft.refusal()] if plan is None else [plan["closed"]] if closed else list(plan["scripts"])
        lacking = [] if plan is None or closed else list(plan.get("lacking", ()))
        taken = self._load_one_of(scripts, lacking)
        if not taken and (closed or plan is None or not in_force):
            with contextlib.suppress(HostError):
                self._load(nft.refusal())
        if plan is not None:
            self.set_fronts(ipv6=plan["ipv6"])
        if self._reader is not None:
            self._expected = ownership.listing(self._reader)
        if taken:
            unroutable.lift(self._reporter.directory / unroutable.MARK)
        return taken

    def are_intact(self) -> bool:
        """Whether the kernel has what was loaded last, and nothing was added to it."""
        if self._reader is None:
            try:
                return nft.show() is not None
            except HostError:  # neither library nor program: no rules, and the reason was reported
                return False
        return ownership.listing(self._reader) == self._expected

    def set_fronts(self, *, ipv6: bool) -> None:
        """Have the addresses that containers are sent to; see :func:`agent.host.fronts.set_fronts`."""
        try:
            fronts.set_fronts(present=True, ipv6=ipv6)
        except HostError as error:
            self._reporter.say("addresses", f"containers cannot be led: {error}")
        else:
            self._reporter.say("addresses", None)

    def _load_one_of(self, scripts: list[str], lacking: list[str]) -> bool:
        why = ""
        for number, script in enumerate(scripts):
            try:
                self._load(script)
            except HostError as error:
                why = str(error)
            else:
                self._reporter.say("kernel", None)
                self.why = None
                self.lacking = tuple(filter(None, lacking[number : number + 1]))
                self._reporter.say("lacking", next(iter(self.lacking), None))
                return True
        self.why = f"the kernel does not take the rules: {why}"
        if (self._reporter.directory / unroutable.MARK).exists():
            self.why = f"{unroutable.WHY}: {why}"
        self._reporter.say("kernel", self.why)
        return False

    def _load(self, script: str) -> None:
        if self._reader is None or self._owner is None:
            nft.run(script)
            return
        self._reader.run(script)
        try:
            self._owner.run(nft.held(script))
        except HostError as error:
            self._unheld(error)

    def _unheld(self, error: HostError) -> None:
        self._reporter.say("owner", f"{error}: rules can be watched, and not held")
