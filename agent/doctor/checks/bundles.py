"""Which bundle would this worker take, and which not; from where, signed by whom, sealed to whom?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from agent.core.source import is_elsewhere
from agent.doctor.checks.outside import clock_is_right
from agent.doctor.facts import Bundles, Control, Facts, Held, Unknown
from agent.doctor.finding import Finding, fail, ok, skipped, warn

SIGNERS: Final = "signers"
SOURCE: Final = "source"
BUNDLE: Final = "bundle"
REFRESH: Final = "credential-agent refresh"

_KEYS: Final = "credential-agent pubkey"
_SHOW: Final = "credential-agent config show "
_TIME: Final = "timedatectl"

_BY_SIGNERS: Final = frozenset({"signer", "signature", "issuer"})

#: By the word of a refusal (``agent/bundle/FORMAT.md``): what the worker has in its place, and what shows it.
_NEXT: Final[Mapping[str, str]] = {
    "recipient": _KEYS,
    "unwrap": _KEYS,
    "signer": f"{_SHOW}signers",
    "signature": f"{_SHOW}signers",
    "issuer": f"{_SHOW}signers",
    "lease": f"{_SHOW}signers",
    "audience": f"{_SHOW}identity",
    "variable": f"{_SHOW}environment",
    "not-yet-valid": _TIME,
    "far-future": _TIME,
    "expired": _TIME,
    "rollback": "credential-agent status",
    "conflict": "credential-agent status",
}


def signers(facts: Facts) -> Iterator[Finding]:
    """Whom this worker believes, and in what."""
    told = _status(facts).get("signers")
    found = facts.bundles
    if told is None and isinstance(found, Unknown):
        yield skipped(SIGNERS, found.why, next=facts.more)
        return
    believed: Sequence[Mapping[str, Any]] = found.signers if told is None and isinstance(found, Bundles) else told or ()
    if not believed and (isinstance(found, Unknown) or found.configured):
        yield fail(
            SIGNERS, "nobody is believed: no [[signers]] entry can be used, so no bundle counts", f"{_SHOW}signers"
        )
    for signer in believed:
        lease = signer.get("max_lease_seconds")
        bound = f", leases of at most {lease} s" if lease else ""
        said = f"may speak as {', '.join(signer['issuers'])}{bound} ({signer.get('origin', 'configuration')})"
        yield ok(SIGNERS, said, about=str(signer["kid"]))


def sources(facts: Facts) -> Iterator[Finding]:
    """Each source: whether it can be reached, and what it holds."""
    states: Mapping[str, str] = _status(facts).get("sources", {})
    found = facts.bundles
    if isinstance(found, Unknown):
        for name, state in states.items():
            yield _told(name, state, facts)
        if not states:
            yield skipped(SOURCE, found.why, next=facts.more)
        return
    for held in found.held:
        if held.name:
            yield _source(held, states.get(held.name, ""), facts, in_force=_status(facts).get("bundle") is not None)
    if not any(held.name for held in found.held):
        yield ok(SOURCE, "none is configured: bundles are pushed, or brought by couriers")


def _told(name: str, state: str, facts: Facts) -> Finding:
    """What the agent says of a source that we may not look at ourselves."""
    if state == "ok":
        return ok(SOURCE, "the agent reads it", about=name)
    if state == "starting":
        return skipped(SOURCE, "the agent has not had an answer of it yet", about=name, next=REFRESH)
    return _broken(name, state, "", facts)


def _source(held: Held, state: str, facts: Facts, *, in_force: bool) -> Finding:
    if held.state == "broken":
        return _broken(held.name, f"{held.why} ({held.hint})" if held.hint else held.why, held.path, facts)
    if state not in {"", "ok", "starting"} and held.state == "none" and not held.path:
        return warn(SOURCE, f"it holds nothing; the agent says: {state}", REFRESH, about=held.name)
    if state not in {"", "ok", "starting"}:
        return warn(SOURCE, f"it can be read now; the agent could not: {state}", REFRESH, about=held.name)
    where = f"{held.path} " if held.path else ""
    if held.state == "bundle":
        return ok(SOURCE, f"{where}holds a bundle", about=held.name)
    if in_force:
        return ok(SOURCE, f"{where}holds nothing; another way brought the bundle", about=held.name)
    look = f"ls -l {shlex.quote(held.path)}" if held.path else REFRESH
    return warn(SOURCE, f"{where}holds nothing: no bundle was put there yet", look, about=held.name)


def _broken(name: str, why: str, path: str, facts: Facts) -> Finding:
    if is_elsewhere(name, why, _named(facts)):
        return ok(SOURCE, f"this machine is in the other cloud: {why}", about=name)
    if "looks like a bundle" in why and path:
        command = f"credential-agent inspect {shlex.quote(path)}"
    elif path:
        command = f"ls -l {shlex.quote(path)}"
    elif "does not resolve" in why:
        command = "cat /etc/resolv.conf"
    elif "certificate" in why and clock_is_right(facts):
        why += "; this machine's clock is right, so it is an authority of its own (sources.ca_file), or a proxy's"
        command = f"{_SHOW}sources"
    elif "certificate" in why or " tls " in why:
        command = _TIME
    else:
        command = f"{_SHOW}sources"
    return fail(SOURCE, why, command, about=name)


def _named(facts: Facts) -> Iterator[str]:
    """The names of all sources."""
    looked = () if isinstance(facts.bundles, Unknown) else facts.bundles.held
    yield from (held.name for held in looked)
    yield from _status(facts).get("sources", ())


def bundle(facts: Facts) -> Iterator[Finding]:
    """What this worker says of what was found, of what was refused last, and of the file that it was asked about."""
    held = () if isinstance(facts.bundles, Unknown) else facts.bundles.held
    told = False
    for one in held:
        if one.state == "bundle":
            told = True
            yield _verdict(one, facts)
    refusal = _status(facts).get("last_refusal")
    if refusal is not None and not any(_is_that(one, refusal) for one in held):
        told = True
        yield _refused(refusal["code"], refusal["reason"], f"from {refusal['origin']} at {refusal['at']}", facts)
    if told:
        return
    in_force = _status(facts).get("bundle")
    if in_force is not None:
        yield ok(BUNDLE, f"seq {in_force['seq']} of {in_force['issuer']}, by {in_force['origin']}, is in force")
    elif isinstance(facts.bundles, Unknown):
        yield skipped(BUNDLE, facts.bundles.why, next=facts.more)
    else:
        yield skipped(BUNDLE, "none is in force, and none was found")


def _is_that(held: Held, refusal: Mapping[str, Any]) -> bool:
    """Whether what was refused last is what the source holds still: then it was told."""
    older = refusal["code"] == "rollback" and held.state == "bundle" and not held.code
    return held.name == refusal["origin"] and (older or held.code == refusal["code"])


def _verdict(held: Held, facts: Facts) -> Finding:
    about = held.name or "the file"
    status = _status(facts)
    running = set(map(str, status.get("keys", ())))
    if not held.code:
        return _taken(held, facts, about)
    if held.code in _BY_SIGNERS and (unread := _unread(facts)):
        said = f"not evaluated: {unread}, so this look does not know whom the worker believes"
        return skipped(BUNDLE, said, about=about)
    if held.code == "recipient" and running & set(held.recipients):
        return skipped(BUNDLE, "it is sealed to a key that only the running agent has; push it to hear", about=about)
    return _refused(held.code, held.why, "", facts, held)


def _unread(facts: Facts) -> str:
    """Which signers' files this look could not read; another check says why, and what to do."""
    found = facts.configuration
    keys = () if isinstance(found, Unknown) else [one.key for one in found.faults if one.key.startswith("signers[")]
    return f"{', '.join(keys)} cannot be read" if keys else ""


def _taken(held: Held, facts: Facts, about: str) -> Finding:
    """Nothing in it is wrong: is it newer than what is in force?"""
    in_force = _status(facts).get("bundle") or {}
    said = f"seq {held.seq} of {held.issuer} for {held.subject}, signer {held.signer}"
    if in_force.get("issuer") == held.issuer and in_force.get("subject") == held.subject:
        if in_force["seq"] == held.seq:
            return ok(BUNDLE, f"{said}: it is in force", about=about)
        if in_force["seq"] > held.seq:
            said += f": older than seq {in_force['seq']}, which is in force, so it is refused (rollback)"
            return (warn if held.name else fail)(BUNDLE, said, "credential-agent status", about=about)
    if held.withdraws:
        return ok(BUNDLE, f"{said}: it takes back what its sender sent", about=about)
    if not held.name:
        return ok(BUNDLE, f"{said}: this worker takes it", about=about)
    if isinstance(facts.control, Control) and facts.control.state == "answered" and not facts.control.courier:
        return warn(BUNDLE, f"{said}: this worker takes it, and has not yet", REFRESH, about=about)
    return ok(BUNDLE, f"{said}: this worker takes it when the agent runs", about=about)


def _refused(code: str, reason: str, whence: str, facts: Facts, held: Held | None = None) -> Finding:
    said = f"refused ({code}): {reason}"
    has = _has(code, facts)
    if has:
        said += f"; {has}"
    if held is not None and code in {"recipient", "unwrap"} and held.recipients:
        said += f"; it is sealed to {', '.join(held.recipients[:4])}"
    if whence:
        said += f" ({whence})"
    command = _NEXT.get(code)
    if command == _TIME and clock_is_right(facts):
        said += "; this machine's clock is right: its sender must seal another" + (
            "" if code == "expired" else ", and look at its own clock"
        )
        command = REFRESH
    elif code == "lease" and "may lease" not in reason:
        command = REFRESH
    if command is None:
        path = held.path if held is not None else ""
        command = f"credential-agent inspect {shlex.quote(path)}" if path else REFRESH
    about = "" if held is None else held.name or "the file"
    # What is in force stays so: a refused bundle costs nothing yet, unless there is none.
    level = warn if whence and _status(facts).get("bundle") is not None else fail
    return level(BUNDLE, said, command, about=about)


def _has(code: str, facts: Facts) -> str:
    """What this worker has in place of what the bundle names."""
    status, found = _status(facts), facts.bundles
    if code in {"recipient", "unwrap"}:
        kids = status.get("keys") or (() if isinstance(found, Unknown) else found.kids)
        return f"this worker's keys: {', '.join(kids) or 'none'}"
    if code in {"signer", "signature", "issuer"}:
        believed = status.get("signers") or (() if isinstance(found, Unknown) else found.signers)
        return "believed are: " + (
            ", ".join(f"{one['kid']} for {', '.join(one['issuers'])}" for one in believed) or "none"
        )
    if code == "audience":
        names = status.get("audiences") or (() if isinstance(found, Unknown) else found.audiences)
        return f"this worker answers to: {', '.join(names) or 'nothing'}"
    return ""


def _status(facts: Facts) -> Mapping[str, Any]:
    """What the daemon says; the redacted document of couriers has other members."""
    if isinstance(facts.control, Unknown) or facts.control.courier:
        return {}
    return facts.control.document
