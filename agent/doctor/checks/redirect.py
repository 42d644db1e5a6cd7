"""Does a worker's request to the metadata service arrive at the agent?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Final

from agent.core.installed import START
from agent.doctor.checks.unit import SERVER, SERVICE
from agent.doctor.facts import Arrival, Control, Facts, Unit, Unknown
from agent.doctor.finding import Finding, fail, ok, skipped, warn

CHECK: Final = "redirect"
UNIT: Final = "credential-agent-redirect.service"
RESTART: Final = "systemctl restart credential-agent-redirect"
_ASKED: Final[Mapping[str, tuple[str, str]]] = {
    "refused": ("is refused", RESTART),
    "timeout": ("is led, and nobody answers", START),
    "unreachable": ("has no route: the machine needs a default route, even to a dummy", "ip route show"),
}


def redirect(facts: Facts) -> Iterator[Finding]:
    """What the holder of the rules says, what the kernel has, and what a request just now met."""
    found = facts.arrival
    if isinstance(found, Unknown):
        yield _unseen(found)
        return
    if not found.loopback:
        said = "the loopback interface is down: no request of a worker arrives, and little else works"
        yield fail(CHECK, said, "ip link set lo up")
        return
    if not found.expected and not found.table:
        yield from _not_led(facts)
        return
    broken = _broken(found)
    strays = {} if broken else {who: word for who, word in found.asked.items() if word != "agent"}
    if broken:
        yield fail(CHECK, *broken)
    for who, word in strays.items():
        yield _stray(who, word, facts)
    if not broken and found.why:
        yield warn(CHECK, f"led by the rules of before: {found.why}", "credential-agent redirect apply")
    yield from _noted(found)
    if not broken and not strays and not found.why:
        who = f" ({', '.join(found.asked)} asked just now)" if found.asked else ""
        yield ok(CHECK, f"a worker's request arrives{who}")


def _noted(found: Arrival) -> Iterator[Finding]:
    """What is not as the configuration says; a user who is not there is told once."""
    for name in found.strangers:
        said = f"redirect.users: no user {name!r} on this machine: it is no worker until there is"
        yield warn(CHECK, said, f"getent passwd {shlex.quote(name)}")
    for note in found.notes:
        if "refused" in note or not any(repr(name) in note for name in found.strangers):
            yield warn(CHECK, note, "credential-agent redirect apply")


def _not_led(facts: Facts) -> Iterator[Finding]:
    """Whether it is meant so: somebody took the rules away by hand, say, and the unit that makes them is not there."""
    unit = _unit(facts, UNIT)
    if unit is not None and unit.load == "loaded" and unit.enabled == "enabled" and unit.active != "active":
        said = f"workers are not led, and so are the machine: {UNIT} is enabled and {unit.active or 'stopped'}"
        yield fail(CHECK, said, f"systemctl start {UNIT}")
        return
    yield skipped(CHECK, "workers are not led on this machine: they ask by the variables of the environment file")


def _unit(facts: Facts, name: str) -> Unit | None:
    return None if isinstance(facts.units, Unknown) else facts.units.units.get(name)


def _unseen(found: Unknown) -> Finding:
    if not found.hung:
        return skipped(CHECK, found.why)
    # Under load, or where a filter drops: the command has more time.
    return warn(
        CHECK, f"whether a worker's request arrives is not known: {found.why}", "credential-agent redirect check"
    )


def _stray(who: str, word: str, facts: Facts) -> Finding:
    """What a request of ``who`` met that did not arrive."""
    server = _unit(facts, SERVER)
    if word == "timeout" and server is not None and (server.stopped or server.frozen or server.active != "active"):
        said = f"a request of {who} is led, and what answers workers does not ({SERVER})"
        return fail(CHECK, said, f"systemctl restart {SERVER}")
    if word == "timeout" and _answers(facts):
        said = f"a request of {who} is led and lost on its way, since the agent answers: something filters it"
        return fail(CHECK, said, "nft list ruleset")
    if not facts.root and word.startswith("http ") and _led(facts):
        said = f"{who} is no worker here: its requests get the machine's own service ([redirect] says who is one)"
        return warn(CHECK, said, "credential-agent config show redirect")
    cause, command = _ASKED.get(word, (f"is answered by another service ({word})", RESTART))
    return fail(CHECK, f"a request of {who} {cause}", command)


def _led(facts: Facts) -> bool:
    return isinstance(facts.arrival, Arrival) and facts.arrival.state == "led"


def _answers(facts: Facts) -> bool:
    """Whether the agent does, or at least runs where it is not ours to ask."""
    if not isinstance(facts.control, Control):
        return False
    service = _unit(facts, SERVICE)
    return facts.control.state == "answered" or (
        facts.control.state == "denied" and service is not None and service.active == "active"
    )


def _broken(found: Arrival) -> tuple[str, str] | None:
    """Why no worker's request arrives, and what to type."""
    said = found.why or found.state
    if found.table is False:
        return f"the rules are not in the kernel (flushed?): workers are refused; {said}", RESTART
    match found.state:
        case "led":
            return None
        case "closed":
            command = f"systemctl start {UNIT}" if "was stopped" in said else "credential-agent redirect apply"
            return said if said.startswith("workers are refused") else f"workers are refused: {said}", command
        case "unanswered" if "no route" in said:
            return f"workers are led, and get no answer: {said}", "ip route show"
        case "unanswered":
            return f"workers are led, and nobody answers: {said}", START
        case _:
            return f"{found.state}: {said}", RESTART
