"""What is said of each thing that can be wrong: its cause, and a command that can be typed as it stands."""

from __future__ import annotations

import re
import shlex
from typing import Any, NamedTuple

import click
import pytest

from agent.cli import cli
from agent.doctor import diagnose, failed
from agent.doctor.checks import CHECKS
from agent.doctor.facts import Arrival, Configuration, Control, Facts, Fault, Unknown
from agent.doctor.finding import Finding, Level, fail, ok, ordered, skipped, warn
from tests.unit.doctor.support import PATH, answered, cloud, healthy, key_file, silent, unit, with_


class Case(NamedTuple):
    """One thing that is wrong.

    Attributes:
        check: the check that must say so.
        cause: in its line.
        next: in its command.
    """

    name: str
    facts: Facts
    check: str
    level: Level
    cause: str
    next: str


def led(**changes: Any) -> Arrival:
    return Arrival(**{"expected": True, "state": "led", "table": True, **changes})


HUNG = Unknown(why="no answer within 2 s", hung=True)
CASES = [
    # -- the daemon
    Case("masked", with_(units=unit(load="masked"), control=silent()), "daemon", Level.FAIL, "masked", "systemctl unmask"),
    Case("not installed", with_(units=unit(load="not-found"), control=Control(state="absent", path="/x", why="nobody")),
         "daemon", Level.FAIL, "not installed", "credential-agent run"),
    Case("bad unit", with_(units=unit(load="bad-setting"), control=silent()), "daemon", Level.FAIL, "bad-setting", "systemd-analyze"),
    Case("stopped by hand", with_(units=unit(active="inactive", sub="dead", result="success"), control=silent()),
         "daemon", Level.FAIL, "is stopped", "systemctl start"),
    Case("a mistake in the configuration",
         with_(units=unit(active="activating", sub="auto-restart", status="78", last_error="x: unknown key"), control=silent()),
         "daemon", Level.FAIL, "x: unknown key", "credential-agent check"),
    Case("crashes", with_(units=unit(result="signal", status="11"), control=silent()), "daemon", Level.FAIL, "signal", "journalctl"),
    Case("out of memory", with_(units=unit(result="oom-kill", status="9"), control=silent()), "daemon", Level.FAIL, "memory", "journalctl --no-pager -k"),
    Case("no service user", with_(units=unit(status="217"), control=silent()), "daemon", Level.FAIL, "user is not there", "systemd-sysusers"),
    Case("state directory", with_(units=unit(status="238"), control=silent()), "daemon", Level.FAIL, "another user's", "chown -R"),
    Case("stopped by a signal", with_(units=unit(active="active", sub="running", result="success", pid=42, process="T"), control=silent()),
         "daemon", Level.FAIL, "SIGSTOP", "kill -CONT 42"),
    Case("held by the kernel", with_(units=unit(active="active", result="success", pid=42, process="D"), control=silent()),
         "daemon", Level.FAIL, "kernel holds it", "/proc/42/stack"),
    Case("hangs", with_(units=unit(active="active", result="success", pid=42, process="S"), control=silent()),
         "daemon", Level.FAIL, "hangs", "systemctl restart"),
    Case("its question hangs", with_(units=unit(active="active", result="success", pid=42, process="S"), control=HUNG),
         "daemon", Level.FAIL, "hangs", "systemctl restart"),
    Case("disabled", with_(units=unit(active="active", enabled="disabled")), "daemon", Level.WARN, "next boot", "systemctl enable"),
    Case("no systemd", with_(units=Unknown(why="x"), control=Control(state="absent", path="/x", why="nobody listens")),
         "daemon", Level.FAIL, "nobody listens", "credential-agent run"),
    # -- the configuration
    Case("a typo", with_(configuration=Configuration(path=PATH, faults=(Fault(key="listen.htp", said="listen.htp: unknown key", text=True),))),
         "configuration", Level.FAIL, "unknown key", "credential-agent check"),
    Case("unreadable", with_(configuration=Configuration(path=PATH, faults=(Fault(key="", said=f"{PATH}: cannot be read: permission denied", text=True),))),
         "configuration", Level.FAIL, "permission denied", "chown root:credential-agent"),
    Case("a mount hangs", with_(configuration=HUNG), "configuration", Level.FAIL, "mount", "cat /proc/mounts"),
    # -- the key
    Case("absent", with_(keys=key_file(state="absent")), "key", Level.FAIL, "not there", "keygen"),
    Case("denied", with_(keys=key_file(state="denied", why="its mode is 0600")), "key", Level.FAIL, "may not read", "chown root:credential-agent"),
    Case("its directory", with_(keys=key_file(state="denied", blocked="/secret")), "key", Level.FAIL, "/secret", "chmod o+x /secret"),
    Case("everybody's", with_(keys=key_file(state="shared", why="its mode is 0644")), "key", Level.FAIL, "others may read", "chmod 0640"),
    Case("a directory", with_(keys=key_file(state="not-a-file", why="a directory")), "key", Level.FAIL, "a directory", "ls -ld"),
    Case("no key", with_(keys=key_file(state="not-a-key", why="a JWK is expected")), "key", Level.FAIL, "JWK", "keygen"),
    Case("its mount hangs", with_(keys=HUNG), "key", Level.FAIL, "mount", "cat /proc/mounts"),
    # -- the identity
    Case("ended", with_(control=answered(clouds={"aws": cloud(state="ended", why="the lease has ended")})),
         "identity", Level.FAIL, "lease has ended", "credential-agent status"),
    Case("ends soon", with_(control=answered(clouds={"aws": cloud(horizon="2030-01-01T00:10:00Z")})),
         "identity", Level.WARN, "10 min", "credential-agent refresh"),
    Case("renewal denied", with_(control=answered(credentials=[
            {"cloud": "aws", "grant": "g", "last_failure": {"code": "AccessDenied", "reason": "no", "permanent": True}}])),
         "identity", Level.FAIL, "AccessDenied", "journalctl"),
    # -- the redirect
    Case("flushed", with_(arrival=led(table=False)), "redirect", Level.FAIL, "not in the kernel", "restart credential-agent-redirect"),
    Case("closed", with_(arrival=led(state="closed", why="no user")), "redirect", Level.FAIL, "no user", "redirect apply"),
    Case("unanswered", with_(arrival=led(state="unanswered", why="timeout")), "redirect", Level.FAIL, "nobody answers", "restart credential-agent"),
    Case("astray", with_(arrival=led(state="astray", why="http 200")), "redirect", Level.FAIL, "astray", "restart credential-agent-redirect"),
    Case("nobody holds the rules", with_(arrival=led(state="unknown", why="not running")), "redirect", Level.FAIL, "not running", "restart credential-agent-redirect"),
    Case("another answers", with_(arrival=led(asked={"uid 1000": "http 200"})), "redirect", Level.FAIL, "another service", "restart credential-agent-redirect"),
    Case("an unknown user", with_(arrival=led(notes=("redirect.users: no user 'bob'",))), "redirect", Level.WARN, "bob", "redirect apply"),
]  # fmt: skip


def of(case: Case) -> list[Finding]:
    return [found for found in diagnose(case.facts) if found.check == case.check and found.level is case.level]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.check}: {case.name}")
def test_each_failure_is_told_with_its_cause_and_the_next_command(case: Case) -> None:
    """What is broken is found by the check whose it is, at its level, with the cause and what to type."""
    said = [(found.said, found.next or "") for found in of(case)]
    assert [line for line in said if case.cause in line[0] and case.next in line[1]], said


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.check}: {case.name}")
def test_every_next_command_can_be_typed(case: Case) -> None:
    """It is a program of a worker's machine, or one of ours whose options are right; nothing in it is left to fill in."""
    programs = {
        "systemctl", "systemd-sysusers", "systemd-analyze", "journalctl", "chown", "chmod", "ls", "cat", "df", "kill",
        "ip", "sudo", "credential-agent",
    }  # fmt: skip
    for found in diagnose(case.facts):
        for command in (found.next or "true").split(" && "):
            words = shlex.split(command)
            words = words[1:] if words[0] == "sudo" else words
            assert words[0] in programs | {"true"}, command
            assert not re.search(r"\.\.\.|<|\bUSER\b|\bFILE\b", command), command
            if words[0] == "credential-agent":
                typed(words[1:])


def typed(words: list[str]) -> None:
    """Parse a command line of ours, and run nothing. Raises click.UsageError."""
    context = click.Context(cli)
    name, command, rest = cli.resolve_command(context, words)
    assert command is not None
    inside = command.make_context(name, rest, parent=context)
    while isinstance(inside.command, click.Group):
        name, command, rest = inside.command.resolve_command(inside, [*inside._protected_args, *inside.args])
        assert command is not None
        inside = command.make_context(name, rest, parent=inside)


def test_a_healthy_worker_has_nothing_to_mend() -> None:
    """Nothing is said to be wrong where nothing is, each check says something, and no command is proposed."""
    found = diagnose(healthy())
    assert {one.level for one in found} <= {Level.OK}
    assert [one for one in found if one.next] == []
    assert {one.check for one in found} == set(CHECKS)
    assert not failed(found)


@pytest.mark.parametrize("name", sorted(set(Facts.__struct_fields__) - {"root", "seconds", "config_path"}))
def test_a_look_without_an_answer_breaks_no_check(name: str) -> None:
    """A probe that failed, or hung, leaves every other finding as it is, and its own checks still say something."""
    for why in (Unknown(why="not allowed"), HUNG):
        found = diagnose(with_(**{name: why}))
        assert {one.check for one in found} == set(CHECKS)
        assert all(one.next for one in found if one.level in {Level.FAIL, Level.WARN})


def test_every_finding_of_trouble_has_a_command() -> None:
    """No failure and no warning is told without what to type next."""
    for case in CASES:
        assert [one for one in diagnose(case.facts) if one.level in {Level.FAIL, Level.WARN} and not one.next] == []


def test_the_worst_comes_first_and_causes_before_consequences() -> None:
    """Findings are in the order of their levels, and within one as the checks are."""
    given = [ok("a", "1"), fail("b", "2", "ls"), warn("c", "3", "ls"), skipped("d", "4"), fail("e", "5", "ls")]
    assert [one.check for one in ordered(given)] == ["b", "e", "c", "d", "a"]
