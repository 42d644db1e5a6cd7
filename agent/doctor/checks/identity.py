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
SOON: Final = timedelta(hours=2)
"""Earlier than the alert on ``credential_agent_horizon_seconds``: whoever looks now can still send a bundle in time."""


def identity(facts: Facts) -> Iterator[Finding]:
    """Each cloud's; what ends soon, and why there is none."""
    if isinstance(facts.control, Unknown) or facts.control.state != "answered":
        yield skipped(CHECK, "the agent does not say")
        return
    document = facts.control.document
    clouds: Mapping[str, Mapping[str, Any]] = document.get("clouds", {})
    now = datetime.fromisoformat(document["now"])
    live = [name for name, cloud in clouds.items() if cloud["state"] == "live"]
    for name, cloud in clouds.items():
        if name in live:
            yield _live(name, cloud, now)
        elif cloud["state"] == "absent" and live:
            yield ok(CHECK, f"none: {cloud.get('why') or 'absent'}", about=name)
        elif cloud["state"] == "pending":
            yield warn(
                CHECK, f"none yet: {cloud.get('why') or 'pending'}", "credential-agent wait --workers", about=name
            )
        else:
            said = f"none: {cloud.get('why') or cloud['state']}"
            yield fail(CHECK, said, _next(facts, document, cloud), about=name)
    for one in document.get("credentials", ()):
        failure = one["last_failure"]
        if failure is not None:
            said = f"renewal of {one['grant']} fails ({failure['code']}): {failure['reason']}"
            level = fail if failure["permanent"] else warn
            yield level(CHECK, said, JOURNAL, about=one["cloud"])


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
