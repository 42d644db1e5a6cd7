"""The conditions inside what a doctor says: each was found by a change that no other test noticed."""

from __future__ import annotations

from typing import Any

import pytest

from agent.doctor import diagnose
from agent.doctor.facts import (
    Access,
    Bundles,
    Configuration,
    Control,
    Fault,
    KeyFile,
    KeyFiles,
    Memory,
    Metadata,
    Releases,
    Units,
    Unknown,
    Way,
)
from agent.doctor.finding import Finding, Level
from tests.unit.doctor.support import PATH, SERVICE, answered, beside, cloud, found, server, status, with_


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


def test_a_directory_that_is_closed_names_what_lies_behind_it() -> None:
    """Of two, each has its own: opening one opens nothing behind the other."""
    ways = tuple(
        Way(path=f"/{name}/file", act="read", state="closed", blocked=f"/{name}") for name in ("first", "second")
    )
    found = {one.about: one.said for one in said("access", access=Access(ways=ways))}
    assert set(found) == {"/first", "/second"}
    for name, other in (("first", "second"), ("second", "first")):
        assert f"/{name}/file" in found[f"/{name}"]
        assert f"/{other}/file" not in found[f"/{name}"]


@pytest.mark.parametrize(("answers", "told"), [(True, True), (False, False)])
def test_a_file_that_the_agent_would_have_made_is_missed_where_it_runs(*, answers: bool, told: bool) -> None:
    """An agent that does not answer is told already: what it would have written is no second trouble."""
    way = Way(path="/run/token", act="read", group="workers", state="absent")
    control = answered() if answers else Control(state="absent", path="/run/c", why="no such file")
    found = [one for one in said("access", access=Access(ways=(way,)), control=control) if one.about == "/run/token"]
    assert bool(found) is told


@pytest.mark.parametrize(("load", "told"), [("loaded", False), ("not-found", True)])
def test_what_a_socket_starts_is_told_only_where_it_is_gone(load: str, *, told: bool) -> None:
    """An installation that was broken off leaves a socket that starts nothing."""
    units = beside("credential-agent-serve.socket", triggers=("credential-agent-serve.service",))
    other = beside("credential-agent-serve.service", load=load)
    both = Units(present=True, units={**units.units, **other.units})
    found = [one for one in said("daemon", units=both) if "which is not there" in one.said]
    assert bool(found) is told


def test_where_no_source_is_configured_that_is_how_it_is() -> None:
    """Bundles are pushed then; where there is one, that is not said."""
    none = Bundles(held=(), signers=tuple(status()["signers"]), audiences=("urn:a",), kids=("THUMB",))
    (one,) = said("source", bundles=none)
    assert (one.level, "none is configured" in one.said) == (Level.OK, True)
    assert not any("none is configured" in one.said for one in said("source"))


@pytest.mark.parametrize(
    ("used", "limit", "warned"),
    [(0, 0, False), (100 << 20, 0, False), (10 << 20, 100 << 20, False), (95 << 20, 100 << 20, True)],
)
def test_a_limit_is_near_only_where_there_is_one(used: int, limit: int, *, warned: bool) -> None:
    """Nine tenths of it; without a limit no use is near it, and with one a small use is not."""
    found = said("memory", memory=Memory(total=8 << 30, available=4 << 30, used=used, limit=limit))
    assert [one.level for one in found] == [Level.WARN if warned else Level.OK]


@pytest.mark.parametrize(
    ("platform", "words"), [("other", "by its firmware"), ("ec2", "switched off")], ids=["elsewhere", "switched off"]
)
def test_a_machine_without_a_metadata_service_is_no_trouble(platform: str, words: str) -> None:
    """It is told why there is none; where there is one, nothing of the kind."""
    (one,) = said("metadata", metadata=Metadata(platform=platform, instance="", services=()))
    assert (one.level, words in one.said) == (Level.OK, True)
    assert not any("no identity of its own" in one.said for one in said("metadata"))


@pytest.mark.parametrize(
    ("result", "words"), [("success", "is stopped"), ("", "is stopped"), ("exit-code", "ended last with exit-code")]
)
def test_a_service_that_has_failed_is_not_one_that_was_stopped(result: str, words: str) -> None:
    """Both are inactive: what it ended with says which, and what to type is another thing."""
    absent = Control(state="absent", path="/run/c", why="no such file")
    units = beside(SERVICE, active="inactive", sub="dead", result=result)
    found = said("daemon", units=units, control=absent)
    assert any(one.level is Level.FAIL and words in one.said for one in found)
    assert any("is stopped" in one.said for one in found) is (words == "is stopped")


@pytest.mark.parametrize(("target", "warned"), [("enabled", False), ("disabled", True)])
def test_the_next_boot_starts_what_its_target_starts(target: str, *, warned: bool) -> None:
    """A service that is disabled is started by the target that wants it, if that is enabled."""
    units = {**beside("credential-agent.target", enabled=target).units, **beside(SERVICE, enabled="disabled").units}
    both = Units(present=True, units=units)
    found = [one for one in said("daemon", units=both) if "next boot" in one.said]
    assert bool(found) is warned


def test_only_a_bundle_in_force_may_bring_no_identity() -> None:
    """Where there is none, an absent cloud is absent for another reason."""
    clouds = {"aws": cloud(state="absent", origin="none", identity=None, why="no grant")}
    clouds["gcp"] = clouds["aws"]
    for bundle, told in ((status()["bundle"], True), (None, False)):
        found = said("identity", control=answered(clouds=clouds, bundle=bundle, sticky=[]))
        assert any("brings variables" in one.said for one in found) is told


@pytest.mark.parametrize(("role", "who"), [("arn:aws:iam::1:role/r", "arn:aws:iam::1:role/r"), (None, "reader")])
def test_an_identity_is_called_by_its_role_or_else_by_its_name(role: str | None, who: str) -> None:
    """An operator asks which identity a worker has: one without a role has one too."""
    clouds = {
        "aws": cloud(role_arn=role, identity="reader"),
        "gcp": cloud(state="absent", origin="none", why="no grant"),
    }
    (one,) = [one for one in said("identity", control=answered(clouds=clouds)) if one.about == "aws"]
    assert one.said.startswith(f"{who} (from the bundle)")


@pytest.mark.parametrize(("path", "about"), [("/k", "/k"), ("", "keys[0]")])
def test_a_key_that_opens_nothing_is_called_as_one_that_does(path: str, about: str) -> None:
    """By its file, or by its place in the configuration where it is a credential of systemd's."""
    bad = KeyFile(key="keys[0]", path=path, name="" if path else "worker", state="not-a-key", why="it is empty")
    (one,) = said("key", keys=KeyFiles(keys=(bad,)))
    assert (one.level, one.about) == (Level.FAIL, about)


REFUSED = {"origin": "file", "at": "2029-12-31T23:00:00Z", "code": "signer", "reason": "it was so then"}


@pytest.mark.parametrize(
    ("holds", "refusal", "told"),
    [
        ({"code": "signer", "why": "it is so now"}, {}, False),
        ({"code": "signer", "why": "it is so now"}, {"origin": "push"}, True),
        ({"code": "lease", "why": "it is so now"}, {}, True),
        ({"seq": 3}, {"code": "rollback"}, False),
        ({"seq": 3}, {"code": "rollback", "origin": "push"}, True),
        ({"seq": 3}, {"code": "lease"}, True),
        ({"code": "lease", "why": "it is so now"}, {"code": "rollback"}, True),
        ({"state": "none"}, {"code": "rollback"}, True),
    ],
    ids=[
        "the same",
        "another source's",
        "another trouble",
        "an older one",
        "an older one, another source's",
        "taken by this look, and refused for another reason than its age",
        "an older one, and what is there has another trouble",
        "an older one that is gone",
    ],
)
def test_what_was_refused_last_is_told_beside_what_its_source_holds(
    holds: dict[str, Any], refusal: dict[str, str], *, told: bool
) -> None:
    """Once where both are the same; where this look finds something else, the agent's own word is told too."""
    control = answered(last_refusal={**REFUSED, **refusal})
    findings = said("bundle", bundles=found(**holds), control=control)
    assert any("it was so then" in one.said for one in findings) is told
    assert any("it is so now" in one.said for one in findings) is ("why" in holds)


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"active": "activating", "restarts": 3}, True),
        ({"active": "deactivating", "restarts": 3}, True),
        ({"active": "activating", "restarts": 2}, False),
        ({"active": "activating", "restarts": 0}, False),
        ({"active": "active", "restarts": 9}, False),
        ({"active": "activating", "sub": "auto-restart", "restarts": 0}, True),
    ],
)
def test_what_begins_again_and_again_is_told_while_it_does(changes: dict[str, Any], *, again: bool) -> None:
    """More often than a start that has to be tried twice; what runs now has got over it."""
    name = "credential-agent-serve.service"
    findings = said("daemon", units=beside(name, **changes))
    assert any("again and again" in one.said for one in findings if one.about == name) is again


@pytest.mark.parametrize(
    ("name", "status", "words", "not_words"),
    [
        ("credential-agent-serve.service", "217", "status 217 (", "status 0"),
        ("credential-agent-serve.service", "9", "status 9", "("),
        ("credential-agent-serve.service", "0", "exit-code", "status"),
        ("credential-agent-serve.service", "", "exit-code", "status"),
        ("credential-agent.socket", "217", "status 217", "("),
    ],
)
def test_what_systemd_says_of_a_failure_is_told(name: str, status: str, words: str, not_words: str) -> None:
    """With the status, if it tells anything, and what a status of systemd's own means of a service, and of nothing else."""
    (one,) = [
        one
        for one in said("daemon", units=beside(name, active="failed", result="exit-code", status=status))
        if one.about == name
    ]
    assert words in one.said
    assert not_words not in one.said


@pytest.mark.parametrize("name", ["credential-agent-redirect.service", "credential-agent-serve.socket"])
def test_what_is_stopped_and_may_be_is_named_by_us(name: str) -> None:
    """Of other units it is told elsewhere what their absence means."""
    found = said("daemon", units=beside(name, active="inactive", enabled="enabled"))
    assert [one for one in found if one.level is Level.WARN] == []


def test_what_a_socket_starts_may_be_a_unit_that_is_not_ours() -> None:
    """Of a unit that nobody looked at nothing is said."""
    units = beside("credential-agent-serve.socket", triggers=("another.service",))
    assert {one.level for one in said("daemon", units=units)} == {Level.OK}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"user": "credential-agent"}, Level.FAIL),
        ({"user": "credential-agent", "state": "ok"}, None),
        ({"act": "read", "group": "workers"}, Level.WARN),
        ({"act": "write", "group": "workers"}, None),
        ({"act": "read"}, None),
        ({"act": "read", "group": "workers", "state": "ok"}, None),
    ],
)
@pytest.mark.parametrize("unit", [True, False])
def test_what_is_not_there_is_told_where_somebody_is_to_find_it(
    changes: dict[str, Any], told: Level | None, *, unit: bool
) -> None:
    """The service's own way where its unit is there; what a group reads; nothing of what is well, or nobody's."""
    way = Way(**{"path": "/run/x", "act": "connect", "group": "", "user": "", "state": "absent", **changes})
    units = beside("credential-agent-serve.socket") if unit else beside("another.socket")
    findings = [one for one in said("access", access=Access(ways=(way,)), units=units) if one.about == "/run/x"]
    expected = None if told is Level.FAIL and not unit else told
    assert [one.level for one in findings] == ([expected] if expected is not None else [])


@pytest.mark.parametrize(
    "units", [Unknown(why="systemd does not answer"), Units(present=False)], ids=["silent", "without systemd"]
)
def test_without_systemd_no_check_of_units_fails(units: Units | Unknown) -> None:
    """A container, or a manager that is silent: where the agent answers, that is enough."""
    findings = said("daemon", units=units)
    assert [one.said for one in findings if "this check failed" in one.said] == []
    assert not any("next boot" in one.said for one in findings)


KEY_FAULT = Fault(key="keys[0].path", said="keys[0]: no such file")
TYPO = Fault(key="listen.htp", said="listen.htp: unknown key", text=True)
CLOSED = Fault(key="", said=f"{PATH}: cannot be read: permission denied")


@pytest.mark.parametrize(
    ("faults", "root", "told"),
    [
        ((KEY_FAULT,), True, []),
        ((Fault(key="keys[0].path", said="expected a path", text=True),), True, ["expected a path"]),
        ((Fault(key="signers[0].path", said="no such file"),), True, ["no such file"]),
        ((TYPO, KEY_FAULT), True, ["unknown key"]),
        ((TYPO,), False, ["unknown key"]),
        ((CLOSED,), True, ["permission denied"]),
        ((Fault(key="signers[0].path", said="permission denied"),), False, ["permission denied"]),
        ((Fault(key="", said="expected a table"),), False, ["expected a table"]),
    ],
)
def test_each_mistake_of_a_configuration_is_told_once(
    faults: tuple[Fault, ...], told: list[str], *, root: bool
) -> None:
    """What another check looks at is told there; what a stranger may not read is no mistake, and what he reads is."""
    findings = said("configuration", root=root, configuration=Configuration(path=PATH, faults=faults))
    assert [[word in one.said for word in told] for one in findings if one.level is Level.FAIL] == (
        [[True]] if told else []
    )
    assert [one.level for one in findings] == ([Level.FAIL] if told else [Level.OK])


@pytest.mark.parametrize("beside_it", [(), (CLOSED,), (TYPO,)], ids=["alone", "twice", "with a typo"])
def test_what_is_for_root_and_the_service_alone_is_skipped_for_others(beside_it: tuple[Fault, ...]) -> None:
    """One word, with what to type, whatever else could be told of what could not be read."""
    configuration = Configuration(path=PATH, faults=(CLOSED, *beside_it))
    (one,) = said("configuration", root=False, configuration=configuration)
    assert (one.level, "root and the service alone" in one.said) == (Level.SKIPPED, True)


@pytest.mark.parametrize("faults", [(), (TYPO,)])
@pytest.mark.parametrize(("as_service", "eyes"), [(True, "the service"), (False, "this user")])
def test_a_file_that_was_changed_and_not_read_again_is_not_well(
    faults: tuple[Fault, ...], eyes: str, *, as_service: bool
) -> None:
    """A reload is what to type only where the file can be loaded; whose eyes saw it is told where all is well."""
    configuration = Configuration(path=PATH, as_service=as_service, faults=faults, changed=1_893_456_000)
    earlier = answered(configuration={"changed_at": "2029-12-31T00:00:00Z"})
    (one,) = said("configuration", configuration=configuration, control=earlier)
    assert (one.level, "changed after" in one.said) == ((Level.FAIL, False) if faults else (Level.WARN, True))
    if not faults:
        (one,) = said("configuration", configuration=configuration)
        assert one.said == f"{PATH}, as {eyes} sees it"


def test_of_a_file_behind_a_closed_directory_one_thing_is_told() -> None:
    """The directory, not the mode of what lies in it, which nobody saw."""
    fault = Fault(key="", said="/s/x: cannot be read", path="/s/x")
    (one,) = said("configuration", configuration=Configuration(path=PATH, blocked="/s", faults=(fault,)))
    assert one.next == "chmod o+x /s"


def test_of_a_file_that_the_service_may_not_read_its_mode_is_told_and_nothing_else() -> None:
    """One cause, one word: that what it holds cannot be used follows."""
    fault = Fault(key="signers[0].path", said="/s/x: permission denied", path="/s/x")
    (one,) = said("configuration", configuration=Configuration(path=PATH, faults=(fault,)))
    assert "/s/x" in str(one.next)
