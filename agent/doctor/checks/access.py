"""May those get at the agent to whom it is open, and nobody change what decides for everybody?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from agent.core.installed import CAT, RELOAD, START
from agent.doctor.facts import Exposed, Facts, Unknown, Way
from agent.doctor.finding import Finding, fail, ok, skipped, warn

CHECK: Final = "access"
SERVER_SOCKET: Final = "credential-agent-serve.socket"


def access(facts: Facts) -> Iterator[Finding]:
    """Each way by itself; a directory that is closed is told once."""
    found = facts.access
    if isinstance(found, Unknown):
        yield skipped(CHECK, found.why, next=facts.more)
        return
    said = list(_closed(found.ways, facts))
    said += [finding for way in found.ways for finding in _way(way, facts)]
    said += [_exposed(one) for one in found.exposed]
    said += _inside(facts)
    yield from said
    if not said:
        yield ok(CHECK, "who may use the agent can, and nobody else may change what it goes by")


def _closed(ways: tuple[Way, ...], facts: Facts) -> Iterator[Finding]:
    shut = [way for way in ways if way.state == "closed"]
    for directory in dict.fromkeys(way.blocked for way in shut):
        names = [way.path for way in shut if way.blocked == directory]
        who = _who(next(way for way in shut if way.blocked == directory), facts)
        said = f"{who} may not enter it, and so not use {', '.join(dict.fromkeys(names))}"
        yield fail(CHECK, said, f"chmod o+x {shlex.quote(directory)}", about=directory)


def _way(way: Way, facts: Facts) -> Iterator[Finding]:
    path = shlex.quote(way.path)
    if way.state == "denied":
        said = f"{_who(way, facts)} may not {way.act} it: its mode is {way.mode}, its owner {way.owner}"
        command = f"chmod {way.wanted} {path}"
        if way.group:
            command = f"chgrp {shlex.quote(way.group)} {path} && {command}"
        elif way.user:
            command = f"chown {way.user} {path} && {command}"
        yield fail(CHECK, said, command, about=way.path)
    elif way.state == "noexec":
        yield fail(
            CHECK, "nothing may be run there: its file system is mounted noexec", f"findmnt -T {path}", about=way.path
        )
    elif way.state == "absent" and way.user and _has_its_unit(facts):
        said = "it is not there: the agent, once it restarts, cannot tell the unit that answers workers what to serve"
        yield fail(
            CHECK, said, f"systemctl restart credential-agent-serve.socket {START.rpartition(' ')[2]}", about=way.path
        )
    elif way.state == "absent" and way.act == "read" and way.group and _answers(facts):
        said = f"it is not there: programs of {way.group} that read it find no agent"
        yield warn(CHECK, said, RELOAD, about=way.path)


def _inside(facts: Facts) -> Iterator[Finding]:
    """What only the service's process sees."""
    if isinstance(facts.inside, Unknown):
        return
    for path in facts.inside.read_only:
        said = "the service cannot write there: it is read-only in the unit's sandbox, and nowhere else"
        yield fail(CHECK, said, CAT, about=path)
    for path in facts.inside.hidden:
        said = "the service does not see it: the unit's sandbox hides it; a restart would be without"
        yield fail(CHECK, said, CAT, about=path)


def _has_its_unit(facts: Facts) -> bool:
    """Whether this machine has the unit that answers workers: a release before it, or a container, has none."""
    units = {} if isinstance(facts.units, Unknown) else facts.units.units
    return SERVER_SOCKET in units and units[SERVER_SOCKET].load == "loaded"


def _answers(facts: Facts) -> bool:
    return not isinstance(facts.control, Unknown) and facts.control.state == "answered"


def _who(way: Way, facts: Facts) -> str:
    if not facts.root:
        return "this user"
    if way.user:
        return f"the user {way.user}"
    return f"a member of {way.group}" if way.group else "a worker"


def _exposed(one: Exposed) -> Finding:
    path = shlex.quote(one.path)
    command = f"chown {one.owner} {path} && chmod {one.keep} {path}"
    if one.act == "read":
        return warn(
            CHECK, f"{one.whom} may read it: it holds the token of the container endpoint", command, about=one.path
        )
    if one.act == "ask":
        return warn(CHECK, f"{one.whom} may ask it: status, metrics, and hand in bundles", command, about=one.path)
    said = f"{one.whom} may change it, and so what every worker is served"
    return fail(CHECK, said, command, about=one.path)
