"""Which rules are in force is decided by what a kernel takes: here one of the test's own."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.core.errors import HostError
from agent.host import aliases, enforcing, lasting, nft, ownership, systemctl, unroutable
from agent.host.apart import CrashedError
from agent.host.enforcing import OWNING_FILE, Rules
from agent.host.planning import Plan
from agent.host.reporting import Reporter

PLAN = cast(
    Plan,
    {"scripts": ["full", "some"], "closed": "closed", "ipv6": True, "lacking": ["", "without something"]},
)


class Kernel:
    """Takes scripts but those named; has what was loaded, and what a connection owns until that is closed.

    Attributes:
        refuses: what it does not take.
        crashes: on what the library crashes.
        library: whether there is one.
        loaded: what it took, in order: ``own:`` before what a connection owns, ``try:`` before a rehearsal.
        tables: the listing of the four tables.
        restarted: units.
    """

    def __init__(self) -> None:
        self.refuses: set[str] = set()
        self.crashes: set[str] = set()
        self.library = True
        self.loaded: list[str] = []
        self.tables: tuple[str, ...] | None = ("rules", "copy", "closed", "closed copy")
        self.shown: list[str | None] = []
        self.restarted: list[str] = []
        self.active: set[str] = set()
        self.connections: list[Connection] = []

    def take(self, how: str, script: str) -> None:
        if script in self.crashes or how + script in self.crashes:
            raise CrashedError("libnftables crashed")
        if script in self.refuses or how + script in self.refuses:
            raise HostError(f"nft: {script} is refused")
        self.loaded.append(how + script)

    def connect(self) -> Connection:
        if not self.library:
            raise HostError("no library")
        self.connections.append(Connection(self))
        return self.connections[-1]

    def listing(self) -> tuple[str, ...]:
        if self.tables is None:
            raise HostError("no listing")
        return self.tables

    def show(self, _table: str = nft.TABLE) -> str | None:
        return self.shown.pop(0) if self.shown else None


class Connection:
    """One that owns what it has loaded."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self.is_open = kernel, True

    def run(self, script: str) -> None:
        assert self.is_open, "the library crashes on a connection that is closed"
        self._kernel.take("own:", script)

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(ownership, "Connection", made.connect)
    monkeypatch.setattr(
        ownership, "run_apart", lambda script, *, rehearsal=False: made.take("try:" * rehearsal, script)
    )
    monkeypatch.setattr(ownership, "listing", made.listing)
    monkeypatch.setattr(ownership, "give_back", lambda: None)
    monkeypatch.setattr(nft, "run", lambda script: made.take("nft:", script))
    monkeypatch.setattr(nft, "show", made.show)
    monkeypatch.setattr(nft, "refusal", lambda uids=(): f"refusal{list(uids) or ''}")
    monkeypatch.setattr(nft, "held", lambda script, ending="": script)
    monkeypatch.setattr(aliases, "set_aliases", lambda **_: None)
    monkeypatch.setattr(systemctl, "restart", made.restarted.append)
    monkeypatch.setattr(systemctl, "is_active", lambda unit: unit in made.active)
    monkeypatch.setattr(lasting, "read", lambda: ())
    return made


@pytest.fixture
def rules(tmp_path: Path, kernel: Kernel) -> Rules:
    assert kernel.library
    return Rules(Reporter(tmp_path, None))


def first(kernel: Kernel) -> list[str]:
    """What was loaded into the tables that are nobody's own."""
    return [script for script in kernel.loaded if not script.startswith(("own:", "try:"))]


@pytest.mark.parametrize(
    ("plan", "closed", "in_force", "refuses", "taken", "loaded", "lacking"),
    [
        (PLAN, False, False, set(), True, ["full"], ()),
        (PLAN, False, True, {"full"}, True, ["some"], ("without something",)),
        (PLAN, False, True, {"full", "some"}, False, [], ()),
        (PLAN, False, False, {"full", "some"}, False, ["refusal"], ()),
        (PLAN, True, True, set(), True, ["closed"], ()),
        (PLAN, True, True, {"closed"}, False, ["refusal"], ()),
        (None, False, False, set(), True, ["refusal"], ()),
    ],
)
def test_the_first_script_that_the_kernel_takes_is_in_force(
    kernel: Kernel,
    rules: Rules,
    *,
    plan: Plan | None,
    closed: bool,
    in_force: bool,
    refuses: set[str],
    taken: bool,
    loaded: list[str],
    lacking: tuple[str, ...],
) -> None:
    """Where it takes none, what is in force stays; without any, and where workers are to be refused, they are."""
    kernel.refuses = refuses
    assert rules.load(plan, closed=closed, in_force=in_force) is taken
    assert first(kernel) == loaded
    assert [script[4:] for script in kernel.loaded if script.startswith("own:")] == loaded
    assert (rules.why is None, rules.lacking) == (taken, lacking)


def test_rules_that_the_library_crashes_on_are_said_to_be_left_out(kernel: Kernel, rules: Rules) -> None:
    """The next are in force, and their lack has both reasons."""
    kernel.crashes = {"full"}
    assert rules.load(PLAN, closed=False, in_force=False)
    assert rules.lacking[0] == "without something"
    assert "rules 1 of 2 are left out" in rules.lacking[1]


def test_where_there_is_no_library_nft_loads_them_once(kernel: Kernel, rules: Rules) -> None:
    """There is no second copy then; the library is looked for again at the next load."""
    kernel.library = False
    kernel.shown = ["rules", "closed"]
    assert rules.load(PLAN, closed=False, in_force=False)
    assert kernel.loaded == ["nft:full"]
    assert not rules.held
    kernel.library = True
    assert rules.load(PLAN, closed=False, in_force=True)
    assert kernel.loaded[1:] == ["full", "try:full", "own:full"]
    assert rules.held


@pytest.mark.parametrize("fails", ["try:full", "own:full"])
@pytest.mark.parametrize("crashed", [False, True])
def test_a_second_copy_that_cannot_be_is_none(
    kernel: Kernel, rules: Rules, tmp_path: Path, fails: str, crashed: bool
) -> None:
    """The rules are in force all the same; what was owned before is let go, since two copies that differ would be worse."""
    assert rules.load(PLAN, closed=True, in_force=False)
    (kernel.crashes if crashed else kernel.refuses).add(fails)
    assert rules.load(PLAN, closed=False, in_force=True)
    assert first(kernel) == ["closed", "full"]
    assert [connection.is_open for connection in kernel.connections] == [False, True]
    assert not (tmp_path / OWNING_FILE).exists()
    kernel.refuses.clear()
    kernel.crashes.clear()
    assert rules.load(PLAN, closed=False, in_force=True)
    assert kernel.loaded[-1] == "own:full"


def test_a_connection_that_was_let_go_is_not_used_again(kernel: Kernel, rules: Rules) -> None:
    """Also where there is no other: the library was removed meanwhile."""
    assert rules.load(PLAN, closed=False, in_force=False)
    kernel.refuses, kernel.library, kernel.shown = {"own:full"}, False, ["rules", "closed"]
    assert rules.load(PLAN, closed=False, in_force=True)
    assert not rules.held
    assert rules.load(PLAN, closed=False, in_force=True)
    assert kernel.loaded[-1] == "nft:full"


def test_a_process_that_crashed_on_the_second_copy_is_followed_by_one_without(
    kernel: Kernel, rules: Rules, tmp_path: Path
) -> None:
    """Else each of its successors would; an orderly end forgets it."""
    (tmp_path / OWNING_FILE).touch()
    rules.connect()
    assert rules.load(PLAN, closed=False, in_force=False)
    assert kernel.loaded == ["full"]
    rules.end()
    rules.connect()
    assert rules.load(PLAN, closed=False, in_force=True)
    assert kernel.loaded[1:] == ["full", "try:full", "own:full"]


def test_the_mark_of_a_crash_is_there_while_the_second_copy_is_loaded(
    kernel: Kernel, rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that does not come out of it has left the mark, and one that does has not."""
    there: list[bool] = []
    take = kernel.take

    def looked(how: str, script: str) -> None:
        if how == "own:":
            there.append((tmp_path / OWNING_FILE).exists())
        take(how, script)

    monkeypatch.setattr(kernel, "take", looked)
    assert rules.load(PLAN, closed=False, in_force=False)
    assert there == [True]
    assert not (tmp_path / OWNING_FILE).exists()


def test_a_change_of_any_table_is_seen(kernel: Kernel, rules: Rules) -> None:
    """One that is gone too; what cannot be looked at counts as it was, or each look would load them anew."""
    assert not rules.held
    rules.load(PLAN, closed=False, in_force=False)
    assert rules.are_intact()
    whole = kernel.tables
    assert whole is not None
    for number in range(4):
        for other in ("", "another"):
            kernel.tables = (*whole[:number], other, *whole[number + 1 :])
            assert not rules.are_intact()
    kernel.tables = None
    assert rules.are_intact()
    kernel.tables = whole
    assert rules.are_intact()
    assert rules.held
    kernel.tables = (whole[0], "", *whole[2:])
    rules.load(PLAN, closed=False, in_force=True)
    assert not rules.held


def test_without_the_library_a_table_that_is_gone_is_missed(kernel: Kernel, rules: Rules) -> None:
    """Either of the two."""
    kernel.library = False
    kernel.shown = ["rules", "closed"]
    rules.load(PLAN, closed=False, in_force=False)
    for found in (["rules", "closed"], [None, "closed"], ["rules", None], [None, None]):
        kernel.shown = list(found)
        assert rules.are_intact() is (None not in found)


@pytest.mark.parametrize(
    ("there", "marked", "restarted"),
    [
        ("table { reject }", False, False),
        ("table { }", False, True),
        (None, False, True),
        (None, True, False),
    ],
)
def test_where_nothing_can_be_loaded_there_is_no_way_at_all(
    kernel: Kernel, rules: Rules, tmp_path: Path, *, there: str | None, marked: bool, restarted: bool
) -> None:
    """Unless the closed table is there from before, or the way was taken away already."""
    kernel.refuses = {"full", "some", "refusal"}
    kernel.shown = [there]
    if marked:
        (tmp_path / unroutable.MARK).touch()
    assert not rules.load(PLAN, closed=False, in_force=False)
    assert kernel.restarted == ["credential-agent-closed.service"] * restarted
    assert (unroutable.WHY in (rules.why or "")) is marked
    assert (tmp_path / unroutable.MARK).exists() is marked  # the way is not given back


def test_without_a_plan_workers_are_refused_whatever_is_in_force(kernel: Kernel, rules: Rules) -> None:
    """What is in force was another plan's."""
    kernel.refuses = {"refusal"}
    assert not rules.load(None, closed=False, in_force=True)
    assert kernel.restarted == ["credential-agent-closed.service"]


def test_a_plan_says_by_which_addresses_containers_are_led(
    kernel: Kernel, rules: Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are there with the plan, in force or not; without one nobody is led."""
    asked: list[dict[str, bool]] = []
    monkeypatch.setattr(aliases, "set_aliases", lambda **how: asked.append(how))
    rules.load(None, closed=False, in_force=False)
    assert asked == []
    rules.load(PLAN, closed=False, in_force=False)
    kernel.refuses = {"full", "some"}
    rules.load(cast(Plan, {**PLAN, "ipv6": False}), closed=False, in_force=True)
    assert asked == [{"present": True, "ipv6": True}, {"present": True, "ipv6": False}]


def test_who_was_a_worker_before_is_refused_where_the_kernel_takes_that(
    kernel: Kernel, rules: Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes none that overlap those that it has: then without."""
    monkeypatch.setattr(lasting, "read", lambda: ((7, 9),))
    assert rules.load(None, closed=False, in_force=False)
    kernel.refuses = {"refusal[(7, 9)]"}
    assert rules.load(None, closed=False, in_force=False)
    assert first(kernel) == ["refusal[(7, 9)]", "refusal"]


def test_the_way_is_given_back_once_something_is_in_force(
    kernel: Kernel, rules: Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before that; one that cannot be given back is tried again at the next load."""
    lifted: list[Any] = []

    def lift(mark: Path) -> None:
        lifted.append(mark.name)
        if len(lifted) == 1:
            raise HostError("ip: not just now")

    monkeypatch.setattr(unroutable, "lift", lift)
    kernel.refuses = {"full", "some"}
    rules.load(PLAN, closed=False, in_force=True)
    assert lifted == []
    kernel.refuses = set()
    for times in (1, 2):
        assert rules.load(PLAN, closed=False, in_force=True)
        assert lifted == [unroutable.MARK] * times


def test_a_stop_waits_until_the_watching_unit_has_a_copy(
    kernel: Kernel, rules: Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told by a chain, which is taken away again; where that unit does not run nothing is done."""
    slept: list[float] = []
    monkeypatch.setattr(enforcing, "time", SimpleNamespace(sleep=slept.append, monotonic=time.monotonic))
    rules.hand_over()
    assert kernel.loaded == []
    kernel.active = {systemctl.WATCH}
    kernel.shown = [None, None, "a copy"]
    rules.hand_over()
    words = [script.split()[0] for script in kernel.loaded]
    assert (words, len(slept)) == (["nft:add", "nft:delete"], 2)
