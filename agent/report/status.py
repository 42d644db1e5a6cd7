"""What is in the status document? Which identity each cloud has, until when, why, and what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

import agent
from agent.core.counters import Counters
from agent.core.model import AwsCredential, Bundle, Cloud
from agent.core.source import Ack
from agent.core.text import instant
from agent.core.verdict import SlotStatus
from agent.core.view import Live
from agent.host.arrival import Arrival
from agent.identity import standing, until
from agent.identity.store import Store
from agent.report.summary import summary
from agent.report.vitals import Vitals

SCHEMA: Final = "credential-agent/status"
SCHEMA_VERSION: Final = 1


def status(store: Store, counters: Counters, vitals: Vitals, now: datetime) -> dict[str, Any]:
    """The status document, ready for JSON."""
    bundle = store.bundle
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "version": agent.__version__,
        "now": _stamp(now),
        "started": _stamp(vitals.started),
        "instance_id": store.memory.instance_id,
        "clouds": {str(cloud): _cloud(store, cloud, now) for cloud in Cloud},
        "bundle": None if bundle is None else _bundle(bundle, store, vitals, now),
        "credentials": [_credential(slot) for slot in standing.statuses(store.state)],
        "sticky": sorted(str(cloud) for cloud in store.memory.decided),
        "sources": dict(vitals.sources),
        "source_read": {name: _stamp(at) for name, at in vitals.source_read.items()},
        "source_next": {
            name: _stamp(at + timedelta(seconds=vitals.source_every[name]))
            for name, at in vitals.source_read.items()
            if name in vitals.source_every and vitals.sources.get(name) == "ok"
        },
        "last_refusal": None if vitals.refusal is None else _refusal(vitals.refusal),
        "bundles": {"accepted": counters.accepted, "same": counters.same, "refused": dict(counters.refused)},
        "clock": _clock(vitals),
        "keys": list(vitals.keys),
        "signers": [dict(signer) for signer in vitals.signers],
        "absent_keys": list(vitals.absent_keys),
        "audiences": list(vitals.audiences),
        "memory_unwritten": vitals.memory_unwritten,
        "redirect": None if vitals.redirect is None else _redirect(vitals.redirect),
        "files": [msgspec.to_builtins(file) for file in vitals.files],
        "configuration": {"changed_at": _changed_at(vitals)},
        "log_dropped": vitals.log_dropped,
        "servers": [
            {
                "pid": one.pid,
                "since": _stamp(one.since),
                "version": one.version,
                "newest": one.newest,
                "apart": one.apart,
                "stands_by": one.stands_by,
            }
            for one in vitals.servers
        ],
        "servers_replaced": vitals.replaced,
        "published": dict(vitals.published),
        "key_overwritten": vitals.overwritten,
        "without": dict(vitals.without),
        "history": [
            {"at": _stamp(one.at), "kind": one.kind, "about": one.about, "said": one.said, "times": one.times}
            for one in vitals.history
        ],
    }


def _cloud(store: Store, cloud: Cloud, now: datetime) -> dict[str, Any]:
    answer, short = store.answer(cloud, now), summary(store, cloud, now)
    document: dict[str, Any] = {
        "state": short.state,
        "origin": short.origin,
        "identity": short.identity,
        "why": None,
        "expires_at": None,
        "horizon": short.until,
        "horizon_reason": None,
        "at_the_end": short.at_the_end,
    }
    if not isinstance(answer, Live):
        document["why"] = answer.why
        return document
    document["expires_at"] = _stamp(answer.credential.expires_at)
    document["horizon_reason"] = until.why_until(store.state, cloud, now)
    if isinstance(answer.credential, AwsCredential):
        document["access_key_id"] = f"...{answer.credential.access_key_id[-4:]}"
        document["role_arn"] = answer.credential.role_arn
        document["account_id"] = answer.credential.account_id
    return document


def _bundle(bundle: Bundle, store: Store, vitals: Vitals, now: datetime) -> dict[str, Any]:
    return {
        "issuer": bundle.issuer,
        "subject": bundle.subject,
        "id": bundle.bundle_id,
        "seq": bundle.seq,
        "origin": bundle.origin,
        "signer": bundle.signer,
        "recipient": bundle.recipient,
        "issued_at": _stamp(bundle.issued_at),
        "lease_until": _stamp(bundle.lease_until),
        "routes": {str(cloud): grant for cloud, grant in bundle.routes.items()},
        "on_expiry": bundle.on_expiry,
        "set_aside": [msgspec.to_builtins(aside) for aside in bundle.set_aside],
        "variables": sorted(set(standing.variables(store.state, now)) - set(vitals.refused_variables)),
        "refused_variables": list(vitals.refused_variables),
    }


def _credential(slot: SlotStatus) -> dict[str, Any]:
    failure = slot.failure
    return {
        "cloud": str(slot.cloud),
        "grant": slot.id,
        "type": slot.type,
        "expires_at": _stamp(slot.expires_at),
        "next_attempt_at": _stamp(slot.renew_at),
        "failures_in_a_row": slot.attempts,
        "last_failure": None
        if failure is None
        else {
            "code": failure.code,
            "reason": failure.message,
            "permanent": failure.denied,
            "at": _stamp(failure.at),
        },
    }


def _refusal(refusal: Ack) -> dict[str, Any]:
    return {
        "origin": refusal.origin,
        "code": refusal.code,
        "reason": refusal.reason,
        "issuer": refusal.issuer,
        "subject": refusal.subject,
        "seq": refusal.seq,
        "at": _stamp(refusal.at),
    }


def _clock(vitals: Vitals) -> dict[str, Any]:
    return {
        "wall_error_seconds": round(vitals.wall_error_seconds, 3),
        "samples": vitals.clock.heard,
        "trusted": vitals.clock.vouched,
        "believed": vitals.clock.believed,
        "ahead_seconds": {name: round(by, 1) for name, by in vitals.clock.differences.items()},
        "moves": vitals.clock.moves,
        "lost_seconds": round(vitals.clock.lost_seconds, 1),
    }


def _redirect(arrival: Arrival) -> dict[str, Any]:
    return {
        "state": arrival.state,
        "arrives": arrival.arrives,
        "why": arrival.why,
        "notes": list(arrival.notes),
    }


def _stamp(moment: datetime | None) -> str | None:
    return None if moment is None else instant(moment)


def _changed_at(vitals: Vitals) -> str | None:
    changed = vitals.configuration_changed
    return _stamp(datetime.fromtimestamp(changed, UTC)) if changed else None
