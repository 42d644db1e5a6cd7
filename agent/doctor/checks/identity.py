"""Which identity do workers get, and until when?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from agent.core.installed import JOURNAL
from agent.core.text import when
from agent.doctor.facts import Facts, Unknown
from agent.doctor.finding import Finding, fail, ok, skipped, warn

CHECK: Final = "identity"
_REFUSED: Final = (
    "the cloud refuses: whoever gave the grant mends a policy, or seals another bundle",
    "credential-agent refresh",
)
_AGAIN: Final = ("it is tried again", JOURNAL)
_OVER: Final = ("what it is made from is over: a new bundle must come", "credential-agent refresh")
_DATED: Final = ("is a clock wrong, here or at the cloud?", "timedatectl")
#: By the cloud's own word: what it means here, and what to type.
_FAILED: Final[Mapping[str, tuple[str, str]]] = {
    "ExpiredToken": _OVER,
    "ExpiredTokenException": _OVER,
    "InvalidClientTokenId": _OVER,
    "invalid_grant": _OVER,
    "SignatureDoesNotMatch": _DATED,
    "RequestExpired": _DATED,
    "RequestTimeTooSkewed": _DATED,
    "RegionDisabledException": (
        "STS is off in this region for the account: name another one (aws.region)",
        "credential-agent config show aws",
    ),
}
SOON: Final = timedelta(hours=2)
"""Earlier than the alert on ``credential_agent_horizon_seconds``: whoever looks now can still send a bundle in time."""


def identity(facts: Facts) -> Iterator[Finding]:
    """Each cloud's; what ends soon, and why there is none."""
    if isinstance(facts.control, Unknown) or "clouds" not in facts.control.document:
        yield skipped(CHECK, "the agent does not say")
        return
    document = facts.control.document
    clouds: Mapping[str, Mapping[str, Any]] = document.get("clouds", {})
    now = datetime.fromisoformat(document["now"])
    live = [name for name, cloud in clouds.items() if cloud["state"] == "live"]
    for name, cloud in clouds.items():
        if name in live:
            yield _live(name, cloud, now)
        elif live and (cloud["state"] == "absent" or _of_no_bundle(name, cloud, document)):
            yield ok(CHECK, f"none: {cloud.get('why') or 'absent'}", about=name)
        elif cloud["state"] == "pending":
            yield warn(
                CHECK, f"none yet: {cloud.get('why') or 'pending'}", "credential-agent wait --workers", about=name
            )
        elif not _told_below(name, cloud, document):
            said = f"none: {cloud.get('why') or cloud['state']}{_brings_nothing(document, cloud)}"
            yield fail(CHECK, said, _next(facts, document, cloud), about=name)
    for one in document.get("credentials", ()):
        failure = one["last_failure"]
        if failure is not None:
            hint, command = _FAILED.get(failure["code"], _AGAIN if not failure["permanent"] else _REFUSED)
            said = f"renewal of {one['grant']} fails ({failure['code']}): {failure['reason']}; {hint}"
            level = fail if failure["permanent"] else warn
            yield level(CHECK, said, command, about=one["cloud"])


def _of_no_bundle(name: str, cloud: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Whether it is refused as nothing is allowed in it, and no bundle ever decided it: bundles bring the other."""
    return cloud["state"] == "ended" and name not in document.get("sticky", (name,))


def _told_below(name: str, cloud: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Whether a renewal that the cloud refuses is why there is none: that says it with what to do."""
    failures = [one["last_failure"] for one in document.get("credentials", ()) if one["cloud"] == name]
    why = cloud.get("why") or ""
    return any(one is not None and one["permanent"] and one["reason"] in why for one in failures)


def _brings_nothing(document: Mapping[str, Any], cloud: Mapping[str, Any]) -> str:
    """Where a bundle is in force, and decides no cloud at all."""
    if cloud["state"] == "absent" and document.get("bundle") is not None and document.get("sticky") == []:
        return "; the bundle in force brings variables, and no identity of a cloud"
    return ""


def _next(facts: Facts, document: Mapping[str, Any], cloud: Mapping[str, Any]) -> str:
    """What brings an identity where there is none: a configuration that takes bundles, or a bundle."""
    if not facts.root:
        return "credential-agent whoami"
    if cloud["state"] != "absent" or document.get("bundle") is not None:
        return "credential-agent status"
    # The file's comments say how a worker takes bundles.
    return "credential-agent refresh" if document.get("keys") else f"cat {facts.config_path}"


def _live(name: str, cloud: Mapping[str, Any], now: datetime) -> Finding:
    whose = {"bundle": "from the bundle", "fallback": "the machine's own"}.get(cloud["origin"], cloud["origin"])
    who = cloud.get("role_arn") or cloud["identity"]
    stamp = cloud.get("horizon") or cloud.get("until")
    if stamp is None:
        return ok(CHECK, f"{who} ({whose})", about=name)
    ends = datetime.fromisoformat(stamp)
    said = f"{who} ({whose}) until {stamp} ({when(ends, now)})"
    if cloud["origin"] == "bundle" and ends - now < SOON:
        reason = f": {cloud['horizon_reason']}" if cloud.get("horizon_reason") else ""
        then = cloud.get("at_the_end")
        said += f"{reason}; then: {then}; a new bundle must come" if then else f"{reason}; a new bundle must come"
        return warn(CHECK, said, "credential-agent refresh", about=name)
    return ok(CHECK, said, about=name)
