"""Does a worker's request to the metadata service arrive at the agent?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Final

from agent.core.installed import START
from agent.doctor.facts import Arrival, Control, Facts, Unknown
from agent.doctor.finding import Finding, fail, ok, skipped, warn

CHECK: Final = "redirect"
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
    if not found.expected:
        yield skipped(CHECK, "workers are not led on this machine: they ask by the variables of the environment file")
        return
    broken = _broken(found)
    strays = {} if broken else {who: word for who, word in found.asked.items() if word != "agent"}
    if broken:
        yield fail(CHECK, *broken)
    for who, word in strays.items():
        yield _stray(who, word, facts)
    if not broken and found.why:
        yield warn(CHECK, f"led by the rules of before: {found.why}", "credential-agent redirect apply")
    for name in found.strangers:
        said = f"redirect.users: no user {name!r} on this machine: it is no worker until there is"
        yield warn(CHECK, said, f"getent passwd {shlex.quote(name)}")
    for note in found.notes:
        if "refused" in note or not any(repr(name) in note for name in found.strangers):
            yield warn(CHECK, note, "credential-agent redirect apply")
    if not broken and not strays and not found.why:
        who = f" ({', '.join(found.asked)} asked just now)" if found.asked else ""
        yield ok(CHECK, f"a worker's request arrives{who}")


def _unseen(found: Unknown) -> Finding:
    if not found.hung:
        return skipped(CHECK, found.why)
    # Under load, or where a filter drops: the command has more time.
    return warn(
        CHECK, f"whether a worker's request arrives is not known: {found.why}", "credential-agent redirect check"
    )


def _stray(who: str, word: str, facts: Facts) -> Finding:
    """What a request of ``who`` met that did not arrive."""
    if word == "timeout" and isinstance(facts.control, Control) and facts.control.state == "answered":
        said = f"a request of {who} is led and lost on its way, since the agent answers: something filters it"
        return fail(CHECK, said, "nft list ruleset")
    cause, command = _ASKED.get(word, (f"is answered by another service ({word})", RESTART))
    return fail(CHECK, f"a request of {who} {cause}", command)


def _broken(found: Arrival) -> tuple[str, str] | None:
    """Why no worker's request arrives, and what to type."""
    said = found.why or found.state
    if found.table is False:
        return f"the rules are not in the kernel (flushed?): workers are refused; {said}", RESTART
    match found.state:
        case "led":
            return None
        case "closed":
            return f"workers are refused: {said}", "credential-agent redirect apply"
        case "unanswered":
            return f"workers are led, and nobody answers: {said}", START
        case _:
            return f"{found.state}: {said}", RESTART
