"""The conditions inside what a doctor says: each was found by a change that no other test noticed."""

from __future__ import annotations

from typing import Any

import pytest

from agent.doctor import diagnose
from agent.doctor.facts import Configuration, Fault, KeyFile, KeyFiles, Releases
from agent.doctor.finding import Finding, Level
from tests.unit.doctor.support import PATH, answered, beside, server, with_


def said(check: str, **facts: Any) -> list[Finding]:
    return [one for one in diagnose(with_(**facts)) if one.check == check]


@pytest.mark.parametrize(
    ("active", "enabled", "warned"),
    [("inactive", "enabled", True), ("active", "enabled", False), ("inactive", "disabled", False)],
)
def test_what_may_be_stopped_is_told_only_where_it_is_and_should_not_be(
    active: str, enabled: str, warned: bool
) -> None:
    """Couriers can bring nothing: a warning where they were to, none where they run or nobody wanted them."""
    name = "credential-agent-courier.socket"
    found = [one for one in said("daemon", units=beside(name, active=active, enabled=enabled)) if one.about == name]
    assert [one.level for one in found] == ([Level.WARN] if warned else [])


def test_a_server_that_says_nonsense_of_itself_is_none() -> None:
    """Another version's status may hold anything there: the rest is told all the same."""
    findings = said("daemon", control=answered(servers=["x", None, server()]))
    assert {one.level for one in findings} == {Level.OK}
    findings = said("daemon", control=answered(servers=["x", None]))
    assert any(one.level is Level.FAIL and "no process answers workers" in one.said for one in findings)


@pytest.mark.parametrize(("running", "level"), [("", Level.OK), ("0.1.0", Level.OK), ("0.0.9", Level.WARN)])
def test_a_release_that_is_not_told_is_no_other_one(running: str, level: Level) -> None:
    """An agent that does not run, or says nothing of its version, is not an old one."""
    (one,) = said("version", releases=Releases(ours="0.1.0"), control=answered(version=running))
    assert one.level is level


def test_a_mistake_in_a_file_is_told_beside_a_directory_that_is_closed() -> None:
    """What may not be looked into explains only what could not be read at all."""
    faults = (
        Fault(key="", said="x: cannot be read", text=True),
        Fault(key="listen.htp", said="unknown key", text=True),
    )
    closed, typo = said("configuration", configuration=Configuration(path=PATH, blocked="/etc/x", faults=faults))
    assert closed.next == "chmod o+x /etc/x"
    assert (typo.about, "check" in str(typo.next)) == ("listen.htp", True)


def test_a_configuration_is_well_only_where_nothing_is_to_be_told() -> None:
    """A note is a warning, and no "ok" stands beside it."""
    found = said("configuration", configuration=Configuration(path=PATH, told=("x is not there yet",)))
    assert [one.level for one in found] == [Level.WARN]


@pytest.mark.parametrize(("path", "about"), [("/k", "/k"), ("", "keys[0]")])
def test_a_key_is_called_by_its_file_or_by_its_place_in_the_configuration(path: str, about: str) -> None:
    """A credential of systemd's has no file that a person could look at."""
    keys = KeyFiles(keys=(KeyFile(key="keys[0]", path=path, kids=("THUMB",)),))
    (one,) = said("key", keys=keys)
    assert (one.level, one.about) == (Level.OK, about)
