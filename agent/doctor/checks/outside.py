"""Do the machine's metadata services and the clouds answer, and does everybody agree about the time?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

from agent.core.text import spell
from agent.doctor.checks.slow import hung
from agent.doctor.facts import Control, Endpoint, Facts, Service, Unknown
from agent.doctor.finding import Finding, fail, ok, skipped, warn

METADATA: Final = "metadata"
CLOUDS: Final = "clouds"
CLOCK: Final = "clock"
SHOW: Final = "credential-agent config show upstream"
NAMES: Final = "cat /etc/resolv.conf"
ROUTE: Final = "ip route get 169.254.169.254"
TIME: Final = "timedatectl"

#: As `status` calls them: what neither STS nor Google renews. A session ends; brokers and metadata services are others.
_NOT_THERE: Final = frozenset({"aws-session", "gcp-token", "env", "http-broker", "instance"})

_OPTIONS: Final = "aws ec2 modify-instance-metadata-options --instance-id {} "
_SERVICE: Final[Mapping[str, tuple[str, str]]] = {
    "disabled": (
        "the metadata service is switched off for this instance: whoever may change it switches it on",
        f"{_OPTIONS}--http-endpoint enabled",
    ),
    "hop-limit": (
        "it answers, and its tokens do not come this far: the hop limit is 1, and this is a container",
        f"{_OPTIONS}--http-put-response-hop-limit 2",
    ),
    "between": ("something else answers in its place, a proxy say: nothing may take these requests to itself", ROUTE),
    "absent": ("what answers there is no such service", ROUTE),
    "elsewhere": ("this machine is in the other cloud", SHOW),
    "silent": ("it does not answer", ROUTE),
}
"""Causes and commands; the first two are for a computer that may change the instance, which may be another one."""

APART: Final = timedelta(minutes=5)
"""AWS refuses requests that are dated further off (Signature Version 4), Google assertions too."""
NOTABLE: Final = timedelta(seconds=60)


def metadata(facts: Facts) -> Iterator[Finding]:
    """The machine's own services."""
    found = facts.metadata
    if isinstance(found, Unknown) and found.hung:
        yield hung(METADATA, found, "what stands at the metadata address does not answer", ROUTE, facts)
        return
    if isinstance(found, Unknown):
        yield skipped(METADATA, found.why, next=facts.more)
        return
    for service in found.services:
        yield _service(service, found.instance, alone=len(found.services) == 1)
    if not found.services:
        said = "this machine has none by its firmware" if found.platform == "other" else "switched off (upstream)"
        yield ok(METADATA, f"{said}: no identity of its own is served")


def _service(service: Service, instance: str, *, alone: bool) -> Finding:
    if service.state == "ok":
        return ok(METADATA, f"it answers: {service.why}", about=service.name)
    if service.state == "no-identity":
        said = f"it answers, and {service.why}: without a bundle there is no identity"
        return warn(METADATA, said, "credential-agent status", about=service.name)
    if service.state == "elsewhere" and not alone:
        return ok(METADATA, f"this machine is in the other cloud: {service.why}", about=service.name)
    cause, command = _SERVICE[service.state]
    if not instance and command.startswith("aws "):
        command = ROUTE
    return (fail if alone else warn)(METADATA, f"{cause}: {service.why}", command.format(instance), about=service.name)


def clouds(facts: Facts) -> Iterator[Finding]:
    """Where credentials are renewed."""
    found = facts.clouds
    if isinstance(found, Unknown) and found.hung:
        yield warn(CLOUDS, f"{found.why}: whether STS and Google can be reached is not known", NAMES)
        return
    if isinstance(found, Unknown):
        yield skipped(CLOUDS, found.why, next=facts.more)
        return
    needed = _needed(facts)
    for endpoint in found.endpoints:
        if not endpoint.why:
            yield ok(CLOUDS, "it answers", about=endpoint.origin)
        elif needed is not None and endpoint.cloud not in needed:
            yield skipped(CLOUDS, f"{endpoint.why}; nothing here is renewed there", about=endpoint.origin)
        else:
            level = warn if needed is None else fail
            yield level(CLOUDS, f"{endpoint.why}{_why(endpoint)}", _next(endpoint), about=endpoint.origin)


def _needed(facts: Facts) -> set[str] | None:
    """The clouds at which something is renewed; ``None``: nobody says."""
    if isinstance(facts.control, Unknown) or "credentials" not in facts.control.document:
        return None
    return {one["cloud"] for one in facts.control.document["credentials"] if one["type"] not in _NOT_THERE}


def _why(endpoint: Endpoint) -> str:
    return {
        "proxy": " (upstream.proxy)",
        "name": ": the name server does not answer, or does not know it",
        "tls": ": a proxy in between with a CA of its own (upstream.ca_file), or a clock that is off",
        "timeout": ": a firewall drops it, or a proxy is needed (upstream.proxy)",
    }.get(endpoint.kind, "")


def _next(endpoint: Endpoint) -> str:
    host = endpoint.origin.partition("://")[2].partition("/")[0].partition(":")[0]
    match endpoint.kind:
        case "name":
            return f"getent ahosts {host}" if host else NAMES
        case "tls":
            return TIME
        case "proxy":
            return SHOW
        case _:
            return "ip route show"


def clock(facts: Facts) -> Iterator[Finding]:
    """This machine's clock beside everybody who told the time."""
    witnesses = dict(_witnesses(facts))
    worst = max(witnesses.items(), key=lambda item: abs(item[1]), default=None)
    if worst is not None and abs(worst[1]) > NOTABLE.total_seconds():
        name, ahead = worst
        off = spell(timedelta(seconds=abs(ahead)), seconds=True)
        said = f"this machine's clock is {off} {'behind' if ahead > 0 else 'ahead of'} {name}"
        if abs(ahead) > APART.total_seconds():
            yield fail(CLOCK, f"{said}: clouds refuse what is signed so far off", TIME)
        else:
            yield warn(CLOCK, said, TIME)
        return
    agree = f"it agrees with {', '.join(sorted(witnesses))}" if witnesses else "nobody told the time"
    if isinstance(facts.clock, Unknown):
        yield skipped(CLOCK, facts.clock.why)
    elif facts.clock.synchronised or witnesses:
        kept = "" if facts.clock.synchronised else "; no NTP client keeps it"
        yield ok(CLOCK, f"{agree}{kept}")
    elif not facts.root and "clock" not in _document(facts):
        yield skipped(CLOCK, "no NTP client keeps it; who tells the agent the time is for root to see", next=facts.more)
    else:
        yield warn(CLOCK, f"{agree}, and no NTP client keeps it right", TIME)


def clock_is_right(facts: Facts) -> bool:
    """Whether somebody says so, and nobody else: then what is over or not yet is not this machine's mistake."""
    witnesses = dict(_witnesses(facts))
    kept = not isinstance(facts.clock, Unknown) and facts.clock.synchronised
    return (kept or bool(witnesses)) and all(abs(ahead) <= NOTABLE.total_seconds() for ahead in witnesses.values())


def _witnesses(facts: Facts) -> Iterator[tuple[str, float]]:
    """By how many seconds each was ahead of the wall clock."""
    told = _document(facts).get("clock", {})
    # The agent's own time may be a corrected one: what it says is relative to the wall clock by that much.
    error = float(told.get("wall_error_seconds", 0.0))
    for name, ahead in told.get("ahead_seconds", {}).items():
        yield f"{name} (to the agent)", float(ahead)
    if error:
        yield "the agent's own time", -error
    for place in (facts.metadata, facts.clouds):
        for one in getattr(place, "services", ()) or getattr(place, "endpoints", ()):
            if one.ahead_seconds is not None:
                yield getattr(one, "name", "") or one.origin, one.ahead_seconds


def _document(facts: Facts) -> Mapping[str, Any]:
    """What the agent says; empty: it says nothing, or not to us."""
    return facts.control.document if isinstance(facts.control, Control) else {}
