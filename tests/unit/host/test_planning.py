"""What comes of the child that makes a plan."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.host.planning import Outcome, Planner, known_users, last_section, saved
from agent.host.ranges import MAX_UID

PLAN: dict[str, Any] = {
    "scripts": ["one"],
    "closed": "none",
    "groups": {},
    "ipv6": True,
    "notes": [],
    "pending": [],
    "uid": None,
    "error": None,
}


def child(program: str) -> list[str]:
    return [sys.executable, "-I", "-c", program]


@pytest.fixture
def planners() -> Iterator[list[Planner]]:
    made: list[Planner] = []
    yield made
    for planner in made:
        planner.stop()


def outcome_of(planner: Planner) -> Outcome:
    """What it comes to, however many pieces it prints."""
    assert planner.start() is None
    while (outcome := planner.result()) is None:
        select.select([planner], [], [])
    assert not planner.running
    return outcome


def test_what_the_child_prints_is_the_plan() -> None:
    """All of it, though it is longer than a pipe holds; and the same planner plans again."""
    long = {**PLAN, "scripts": ["x" * 300_000]}
    planner = Planner(child(f"import json; print(json.dumps({{**{PLAN!r}, 'scripts': ['x' * 300_000]}}))"))

    assert outcome_of(planner).plan == long
    assert outcome_of(planner).plan == long


@pytest.mark.parametrize(
    "printed",
    [
        *("", "no json", "[]", "null", "[" * 100_000),
        *(json.dumps({name: value for name, value in PLAN.items() if name != left}) for left in PLAN),
        *(json.dumps({**PLAN, name: 1.5}) for name in PLAN),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_plan_is_none(tmp_path: Path, printed: str) -> None:
    """A plan has every member, and each is of its kind; anything else is said, and raises nothing."""
    file = tmp_path / "printed"
    file.write_text(printed)

    assert outcome_of(Planner(["cat", str(file)])) == Outcome(None, "the rules cannot be made: status 0")


def test_a_child_that_fails_made_no_plan() -> None:
    """Whatever it printed before: its status is told."""
    failing = Planner(child(f"import json, sys; print(json.dumps({PLAN!r})); sys.exit(7)"))

    assert outcome_of(failing) == Outcome(None, "the rules cannot be made: status 7")


def test_a_command_that_is_not_there_is_told_at_once() -> None:
    """No child is awaited then."""
    planner = Planner(["/nowhere/planner"])

    assert planner.start() == Outcome(None, "/nowhere/planner: cannot be run: no such file or directory")
    assert not planner.running
    assert planner.result() is None


def test_a_child_that_takes_too_long_is_ended(planners: list[Planner]) -> None:
    """Whoever waits for ever has no rules for ever."""
    stuck = Planner(child("import signal; signal.pause()"), seconds=0)
    planners.append(stuck)

    assert stuck.start() is None
    while (outcome := stuck.result()) is None:
        pass
    assert outcome == Outcome(None, "the rules could not be made within 0 s")
    assert not stuck.running


def test_a_child_that_says_all_and_does_not_end_is_ended(planners: list[Planner]) -> None:
    """Whoever holds the rules has more to do than to wait for its status."""
    planner = Planner(child("import os, signal; os.close(1); signal.pause()"), end_seconds=0.1)
    planners.append(planner)
    assert "does not end" in outcome_of(planner).why


def test_a_child_that_the_kernel_holds_is_not_waited_for(
    planners: list[Planner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a call to a disk that hangs no signal ends it: nobody waits, none is begun beside it, and one is when it ends."""
    planner = Planner(child("import signal; signal.pause()"), end_seconds=0.1)
    planners.append(planner)
    with monkeypatch.context() as held:
        heeded: list[subprocess.Popen[bytes]] = []

        def later(child: subprocess.Popen[bytes]) -> None:
            heeded.append(child)

        held.setattr(subprocess.Popen, "kill", later)  # as the kernel does it then
        assert planner.start() is None
        planner.stop()
        assert not planner.running
        for _ in range(2):
            outcome = planner.start()
            assert outcome is not None
            assert "the kernel holds it" in outcome.why
            assert not planner.running
    (stuck,) = heeded
    stuck.kill()
    stuck.wait(60)
    assert planner.start() is None
    assert planner.running


def test_one_child_at_a_time(planners: list[Planner]) -> None:
    """Who plans anew ends what was being planned: an answer to an older question is none."""
    planner = Planner(child("import signal; signal.pause()"))
    planners.append(planner)
    planner.start()
    first = planner.fileno()
    planner.start()

    assert planner.running
    assert select.select([planner], [], [], 0)[0] == []
    assert planner.fileno() >= first  # and no descriptor was left behind
    planner.stop()
    with pytest.raises(RuntimeError):
        planner.fileno()


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '"name"'])
def test_users_that_nobody_wrote_down_are_not_known(tmp_path: Path, text: str) -> None:
    """Of a file that is not there, or is none of ours, nobody's number is believed."""
    assert known_users(tmp_path / "users.json") == {}
    (tmp_path / "users.json").write_text(text)
    assert known_users(tmp_path / "users.json") == {}


def test_a_number_that_no_worker_can_have_is_not_known(tmp_path: Path) -> None:
    """Root's least of all: who was found with it would make root a worker."""
    path = tmp_path / "users.json"
    path.write_text(
        json.dumps({"alice": 1, "bob": MAX_UID, "root": 0, "carol": MAX_UID + 1, "dave": -1, "erin": "5", "frank": 2.5})
    )
    assert known_users(path) == {"alice": 1, "bob": MAX_UID}


def test_the_section_of_the_last_plan_is_known_while_there_is_that_plan(tmp_path: Path) -> None:
    """By it a broken configuration is led as before; a plan of an earlier version has none."""
    path = tmp_path / "plan.json"
    assert last_section(path) is None
    path.write_text(json.dumps(PLAN))
    assert last_section(path) is None
    path.write_text(json.dumps({**PLAN, "section": [{"uids": ["7"]}, 80]}))
    assert last_section(path) == [{"uids": ["7"]}, 80]


@pytest.mark.parametrize("left", ["scripts", "closed", "groups", "ipv6", "uid"])
def test_a_saved_plan_is_used_only_whole(tmp_path: Path, left: str) -> None:
    """What is not there, is no JSON or lacks what rules are loaded from is no plan; the words may be missing."""
    path = tmp_path / "plan.json"
    assert saved(path) is None

    path.write_text(json.dumps({name: PLAN[name] for name in ("scripts", "closed", "groups", "ipv6", "uid")}))
    assert saved(path) is not None

    for text in ("", "[]", "[" * 100_000, json.dumps({name: PLAN[name] for name in PLAN if name != left})):
        path.write_text(text)
        assert saved(path) is None
