"""Which rules are in force is decided by what a kernel takes: here one of the test's own."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from agent.core.errors import HostError
from agent.host import aliases, enforcing, lasting, nft, ownership, systemctl, unroutable
from agent.host.apart import CrashedError
from agent.host.enforcing import OWNING_FILES, Rules
from agent.host.planning import Plan
from agent.host.reporting import Reporter
from agent.host.tools import KilledError, LateError

PLAN = cast(
    Plan,
    {"scripts": ["full", "some"], "closed": "closed", "ipv6": True, "lacking": ["", "without something"]},
)


class Kernel:
    """Takes scripts but those named; has what was loaded, and what a connection owns until that is closed.

    Attributes:
        refuses: what it does not take.
        errors: how it does not take other scripts.
        crashes: on what the library crashes.
        library: whether there is one.
        loaded: what it took, in order: ``own:`` before what a connection owns, ``try:`` before a rehearsal.
        tables: the listing of the four tables.
        restarted: units.
    """

    def __init__(self) -> None:
        self.refuses: set[str] = set()
        self.errors: dict[str, HostError] = {}
        self.crashes: set[str] = set()
        self.library = True
        self.loaded: list[str] = []
        self.tables: tuple[str, ...] | None = ("rules", "copy", "closed", "closed copy")
        self.shown: list[str | None] = []
        self.restarted: list[str] = []
        self.active: set[str] = set()
        self.connections: list[Connection] = []

    def take(self, how: str, script: str) -> None:
        if script in self.errors:
            raise self.errors[script]
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

    def listing(self, *_: str, **__: float) -> tuple[str, ...]:
        if self.tables is None:
            raise HostError("no listing")
        return self.tables

    def show(self, _table: str = nft.TABLE, **_: float) -> str | None:
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
        ownership, "run_apart", lambda script, *, rehearsal=False, **_: made.take("try:" * rehearsal, script)
    )
    monkeypatch.setattr(ownership, "listing", made.listing)
    monkeypatch.setattr(ownership, "give_back", lambda: None)
    monkeypatch.setattr(nft, "run", lambda script, **_: made.take("nft:", script))
    monkeypatch.setattr(nft, "show", made.show)
    monkeypatch.setattr(nft, "refusal", lambda uids=(): f"refusal{list(uids) or ''}")
    monkeypatch.setattr(nft, "held", lambda script, ending="": script)
    monkeypatch.setattr(aliases, "set_aliases", lambda **_: None)
    monkeypatch.setattr(systemctl, "restart", lambda unit, **_: made.restarted.append(unit))
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
    assert not rules.held  # though there is a table of that name, somebody else's
    assert not (tmp_path / OWNING_FILES[0]).exists()
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
    """Once it is tried again: what ends a process may have ended it just then (SIGKILL). An orderly end forgets it."""
    (tmp_path / OWNING_FILES[0]).touch()
    rules.connect()
    (tmp_path / OWNING_FILES[1]).touch()
    again = Rules(Reporter(tmp_path, None))
    again.connect()
    assert again.load(PLAN, closed=False, in_force=False)
    assert kernel.loaded == ["full"]
    assert "crashed on them before" in again.lacking[0]
    kernel.loaded.clear()
    assert rules.load(PLAN, closed=False, in_force=False)
    assert kernel.loaded == ["full", "try:full", "own:full"]
    assert not any((tmp_path / name).exists() for name in OWNING_FILES)
    kernel.loaded.clear()
    (tmp_path / OWNING_FILES[0]).touch()
    rules.end()
    rules.connect()
    assert rules.load(PLAN, closed=False, in_force=True)
    assert kernel.loaded == ["full", "try:full", "own:full"]


@pytest.mark.parametrize("before", [0, 1])
def test_the_mark_of_a_crash_is_there_while_the_second_copy_is_loaded(
    kernel: Kernel, rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """A process that does not come out of it has left the mark, and one that does has not."""
    there: list[bool] = []
    for name in OWNING_FILES[:before]:
        (tmp_path / name).touch()
    take = kernel.take

    def looked(how: str, script: str) -> None:
        if how == "own:":
            there.extend((tmp_path / name).exists() for name in OWNING_FILES)
        take(how, script)

    monkeypatch.setattr(kernel, "take", looked)
    assert rules.load(PLAN, closed=False, in_force=False)
    assert there == [True, before == 1]
    assert not any((tmp_path / name).exists() for name in OWNING_FILES)


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


def test_what_nobody_could_look_at_was_changed_by_nobody(kernel: Kernel, rules: Rules) -> None:
    """It is loaded once more as soon as that can be told, since nobody knows what it was; only a change is called one."""
    whole, kernel.tables = kernel.tables, None
    for times in range(6):
        assert rules.load(PLAN, closed=False, in_force=times > 0)
        assert rules.are_intact()
        assert rules.held
    kernel.tables = whole
    assert not rules.are_intact()
    assert rules.healed == 0
    assert rules.load(PLAN, closed=False, in_force=True)
    assert rules.are_intact()
    kernel.tables = ("another", "copy", "closed", "closed copy")
    assert not rules.are_intact()
    assert rules.healed == 1


def test_without_the_library_a_table_that_is_gone_is_missed(kernel: Kernel, rules: Rules) -> None:
    """Either of the two."""
    kernel.library = False
    kernel.shown = ["rules", "closed"]
    rules.load(PLAN, closed=False, in_force=False)
    for found in (["rules", "closed"], [None, "closed"], ["rules", None], [None, None]):
        kernel.shown = list(found)
        assert rules.are_intact() is (None not in found)


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("plan", [PLAN, None])
def test_what_is_flushed_before_it_is_looked_at_is_missed(
    kernel: Kernel, rules: Rules, plan: Plan | None, *, library: bool
) -> None:
    """The kernel took it, and it is not there: that is what somebody did, and not what is to be. Not without end, though."""
    kernel.library, whole, gone = library, kernel.tables, ("", "copy", "", "closed copy")
    for times in range(4):
        kernel.tables = gone
        assert rules.load(plan, closed=False, in_force=False)
        assert rules.are_intact() is (times == 3)
        assert rules.held is library
    kernel.tables, kernel.shown = whole, ["rules", "closed"] if plan is not None else [None, None, "closed"]
    assert rules.load(plan, closed=False, in_force=False)
    kernel.shown = ["rules" if plan is not None else None, "closed"]
    assert rules.are_intact()


@pytest.mark.parametrize(
    ("fails", "in_force", "before", "closed", "after"),
    [
        ({}, True, None, False, False),
        ({}, True, None, True, True),
        ({"closed": HostError("no")}, True, False, True, True),  # the closed table alone, then
        ({"closed": HostError("no"), "refusal": HostError("no")}, True, False, True, False),
        ({"closed": HostError("no"), "refusal": HostError("no")}, True, None, True, None),
        ({"full": HostError("no"), "some": HostError("no")}, True, True, False, True),
        ({"full": HostError("no"), "some": HostError("no")}, False, None, False, True),
        ({"full": CrashedError("no end")}, True, True, False, False),
        ({"full": CrashedError("no end"), "some": HostError("no")}, True, True, False, None),
        ({"full": CrashedError("no end"), "some": HostError("no")}, True, False, False, False),
        ({"closed": LateError("no answer"), "refusal": HostError("no")}, True, False, True, None),
        ({"closed": HostError("no"), "refusal": KilledError("SIGTERM")}, True, False, True, None),
    ],
)
def test_whether_workers_are_refused_is_the_kernels_word(
    kernel: Kernel,
    rules: Rules,
    *,
    fails: dict[str, HostError],
    in_force: bool,
    before: bool | None,
    closed: bool,
    after: bool | None,
) -> None:
    """What it did not take leaves what was there; what did not say how it ended leaves a doubt, if it would be a change."""
    if before is not None:
        assert rules.load(PLAN, closed=before, in_force=False)
    kernel.errors = fails
    rules.load(PLAN, closed=closed, in_force=in_force)
    assert rules.closed is after


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("plan", [PLAN, None])
def test_whoever_is_refused_is_led_by_nothing_any_more(
    kernel: Kernel, rules: Rules, monkeypatch: pytest.MonkeyPatch, plan: Plan | None, *, library: bool
) -> None:
    """The closed table alone leaves what led before, of this process or of one before it: that is emptied with it."""
    kernel.library, kernel.refuses = library, {"closed"}
    text = "table inet credential_agent {\n\tchain lead_output {\n\t}\n}\n"
    kernel.tables, kernel.shown = (text, "", "", ""), [text]
    rules.load(plan, closed=True, in_force=True)
    refusal = f"refusaltable {nft.TABLE} {{\n\tchain lead_output {{ }}\n}}\nflush chain {nft.TABLE} lead_output\n"
    assert [script.removeprefix("nft:") for script in first(kernel)] == [refusal]
    kernel.tables = None  # it cannot be told: then both
    monkeypatch.setattr(kernel, "show", lambda *_, **__: kernel.listing())
    monkeypatch.setattr(nft, "show", kernel.show)
    rules.load(None, closed=False, in_force=False)
    assert "flush chain inet credential_agent lead_forwarded" in kernel.loaded[-1]


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("plan", [PLAN, None])
@pytest.mark.parametrize("closed", [True, False])
def test_an_nft_that_hangs_is_given_up_long_before_the_watchdog_comes(
    kernel: Kernel, rules: Rules, monkeypatch: pytest.MonkeyPatch, plan: Plan | None, *, library: bool, closed: bool
) -> None:
    """All attempts together; that workers are refused in some other way is asked for all the same."""
    now = [0.0]
    monkeypatch.setattr(enforcing, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def hangs(*_: object, seconds: float, **__: object) -> None:
        now[0] += seconds
        raise LateError("no answer")

    for module, name in ((ownership, "run_apart"), (ownership, "listing"), (nft, "run"), (nft, "show")):
        monkeypatch.setattr(module, name, hangs)
    restarted: list[str] = []

    def restart(unit: str, *, seconds: float) -> None:
        restarted.append(unit)
        now[0] += seconds

    monkeypatch.setattr(systemctl, "restart", restart)
    monkeypatch.setattr(lasting, "read", lambda: ((7, 9),))
    kernel.library = library
    assert not rules.load(plan, closed=closed, in_force=False)
    assert restarted == ["credential-agent-closed.service"]
    unit = Path(__file__).parents[3] / "systemd/credential-agent-redirect.service"
    watchdog, start = (
        float(found[1])
        for found in re.finditer(r"^(?:WatchdogSec|TimeoutStartSec)=(\d+)s$", unit.read_text(), re.MULTILINE)
    )
    assert now[0] * 2 <= min(watchdog, start)
    assert rules.closed is None


def test_what_containers_lack_is_said(kernel: Kernel, rules: Rules, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their address cannot be had: who looks at the status is told, and also when that is over."""
    assert kernel.library

    def none(**_: object) -> None:
        raise HostError("ip: not found")

    with monkeypatch.context() as patch:
        patch.setattr(aliases, "set_aliases", none)
        assert rules.load(PLAN, closed=False, in_force=False)
        assert list(rules.lacking) == ["containers cannot be led: ip: not found"]
    rules.set_aliases(ipv6=True)
    assert not rules.lacking


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
    """They are there once something leads, with a plan that is not in force too: where nothing does, nothing may guard them."""
    asked: list[dict[str, bool]] = []
    monkeypatch.setattr(aliases, "set_aliases", lambda **how: asked.append(how))
    rules.load(None, closed=False, in_force=False)
    kernel.refuses = {"full", "some"}
    rules.load(PLAN, closed=False, in_force=False)
    assert asked == []
    kernel.refuses = set()
    rules.load(PLAN, closed=False, in_force=False)
    kernel.refuses = {"full", "some"}
    rules.load(cast(Plan, {**PLAN, "ipv6": False}), closed=False, in_force=True)
    assert asked == [{"present": True, "ipv6": True}, {"present": True, "ipv6": False}]


def test_who_was_a_worker_before_is_refused_where_the_kernel_takes_that(
    kernel: Kernel, rules: Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes none that overlap those that it has: then without. Where the system refuses to say who it was, it may be anybody."""
    monkeypatch.setattr(lasting, "read", lambda: ((7, 9),))
    assert rules.load(None, closed=False, in_force=False)
    kernel.refuses = {"refusal[(7, 9)]"}
    assert rules.load(None, closed=False, in_force=False)
    assert first(kernel) == ["refusal[(7, 9)]", "refusal"]

    def refused() -> NoReturn:
        raise HostError("cannot be read")

    monkeypatch.setattr(lasting, "read", refused)
    assert rules.load(None, closed=False, in_force=False)
    assert first(kernel) == ["refusal[(7, 9)]", "refusal", f"refusal{list(lasting.UNCLEAR)}"]


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
    kernel.tables = None
    monkeypatch.setattr(nft, "show", kernel.listing)
    rules.hand_over()
    assert kernel.loaded[-1].startswith("nft:delete")  # or the next stop's were no news
