"""What an operator sees: the status document and the metrics, both from the same facts.

The question they answer at 3 a.m. is "which identity does this worker use, and until when?". No secret is in either; an
access key id is shown by its last four characters only.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

import agent
from agent.core.counters import Counters
from agent.core.model import AwsCredential, Cloud
from agent.core.source import Ack
from agent.core.text import instant
from agent.core.view import Absent, Ended, Live, Origin, Pending
from agent.host.arrival import STATES, Arrival
from agent.identity import standing, until
from agent.identity.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

_STATE = {Live: "live", Pending: "pending", Ended: "ended", Absent: "absent"}


class ClockVitals(msgspec.Struct, frozen=True, kw_only=True):
    """Who is believed about the time (:mod:`agent.core.timekeeping`).

    Attributes:
        believed: the witness: ``kernel``, ``metadata``, ``aws``, ``google`` or ``wall``.
        vouched: whether anybody but an unsynchronised wall clock confirms our time.
        heard: how many answers of the clouds it was compared with.
        moves: how often it was moved since the start.
        lost_seconds: how long the machine stood still without its clocks counting it.
        differences: by how many seconds each cloud was ahead of us when last heard.
    """

    believed: str = "wall"
    vouched: bool = False
    heard: int = 0
    moves: int = 0
    lost_seconds: float = 0.0
    differences: Mapping[str, float] = {}


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """What the report needs beside the store.

    Attributes:
        wall_error_seconds: how far the machine's wall clock is ahead of our estimate of the time.
        clock: who is believed about the time.
        sources: each source and how it is: ``ok``, ``starting`` or what ails it.
        refusal: the last bundle that was refused.
        memory_unwritten: the state directory could not be written: a restart would forget.
        refused_variables: names of the bundle's variables that are not passed on.
        keys: the key ids by which this worker can be addressed.
        absent_keys: the names of keys that it is configured to have and was not given.
        requests: requests answered, by door and status.
        files: what was loaded from the files that the configuration names.
        published: where our public key stands for senders, and how it is: ``published`` or what ails it.
        overwritten: how often something else stood there.
        log_dropped: lines of the log that nobody took.
        without: what the configuration names and the machine does not have just now: by its key, why.
    """

    started: datetime
    wall_error_seconds: float
    clock: ClockVitals
    sources: Mapping[str, str]
    refusal: Ack | None
    memory_unwritten: bool
    keys: tuple[str, ...]
    refused_variables: tuple[str, ...] = ()
    absent_keys: tuple[str, ...] = ()
    audiences: tuple[str, ...]
    requests: Mapping[tuple[str, int], int] = {}
    redirect: Arrival | None = None
    files: tuple[msgspec.Struct, ...] = ()
    log_dropped: int = 0
    published: Mapping[str, str] = {}
    overwritten: int = 0
    without: Mapping[str, str] = {}


def status(store: Store, counters: Counters, vitals: Vitals, now: datetime) -> dict[str, Any]:
    """The status document, ready for JSON."""
    bundle = store.bundle
    return {
        "version": agent.__version__,
        "now": _stamp(now),
        "started": _stamp(vitals.started),
        "instance_id": store.memory.instance_id,
        "clouds": {str(cloud): _cloud(store, cloud, now) for cloud in Cloud},
        "bundle": None
        if bundle is None
        else {
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
        },
        "credentials": [
            {
                "cloud": str(slot.cloud),
                "grant": slot.id,
                "type": slot.type,
                "expires_at": _stamp(slot.expires_at),
                "next_attempt_at": _stamp(slot.renew_at),
                "failures_in_a_row": slot.attempts,
                "last_failure": None
                if slot.failure is None
                else {
                    "code": slot.failure.code,
                    "reason": slot.failure.message,
                    "permanent": slot.failure.denied,
                    "at": _stamp(slot.failure.at),
                },
            }
            for slot in standing.statuses(store.state)
        ],
        "sticky": sorted(str(cloud) for cloud in store.memory.decided),
        "sources": dict(vitals.sources),
        "last_refusal": None
        if vitals.refusal is None
        else {
            "origin": vitals.refusal.origin,
            "code": vitals.refusal.code,
            "reason": vitals.refusal.reason,
            "issuer": vitals.refusal.issuer,
            "subject": vitals.refusal.subject,
            "seq": vitals.refusal.seq,
            "at": _stamp(vitals.refusal.at),
        },
        "bundles": {"accepted": counters.accepted, "same": counters.same, "refused": dict(counters.refused)},
        "clock": {
            "wall_error_seconds": round(vitals.wall_error_seconds, 3),
            "samples": vitals.clock.heard,
            "trusted": vitals.clock.vouched,
            "believed": vitals.clock.believed,
            "ahead_seconds": {name: round(by, 1) for name, by in vitals.clock.differences.items()},
            "moves": vitals.clock.moves,
            "lost_seconds": round(vitals.clock.lost_seconds, 1),
        },
        "keys": list(vitals.keys),
        "absent_keys": list(vitals.absent_keys),
        "audiences": list(vitals.audiences),
        "memory_unwritten": vitals.memory_unwritten,
        "redirect": None
        if vitals.redirect is None
        else {
            "state": vitals.redirect.state,
            "arrives": vitals.redirect.arrives,
            "why": vitals.redirect.why,
            "notes": list(vitals.redirect.notes),
        },
        "files": [msgspec.to_builtins(file) for file in vitals.files],
        "log_dropped": vitals.log_dropped,
        "published": dict(vitals.published),
        "key_overwritten": vitals.overwritten,
        "without": dict(vitals.without),
    }


def _cloud(store: Store, cloud: Cloud, now: datetime) -> dict[str, Any]:
    answer = store.answer(cloud, now)
    document: dict[str, Any] = {
        "state": _STATE[type(answer)],
        "origin": str(standing.origin(store.state, cloud, now)),
        "identity": None,
        "why": None,
        "expires_at": None,
        "horizon": _stamp(until.valid_until(store.state, cloud, now)),
        "horizon_reason": None,
        "at_the_end": until.what_follows(store.state, cloud, now),
    }
    if not isinstance(answer, Live):
        document["why"] = answer.why
        return document
    document["identity"] = answer.name
    document["expires_at"] = _stamp(answer.credential.expires_at)
    document["horizon_reason"] = until.why_until(store.state, cloud, now)
    if isinstance(answer.credential, AwsCredential):
        document["access_key_id"] = f"...{answer.credential.access_key_id[-4:]}"
        document["role_arn"] = answer.credential.role_arn
        document["account_id"] = answer.credential.account_id
    return document


def metrics(store: Store, counters: Counters, vitals: Vitals, now: datetime) -> bytes:
    """The metrics in the Prometheus text format.

    Every name begins with ``credential_agent_``. A series that an alert watches must not vanish at the very outage: for
    a cloud that has ended, ``expires_seconds`` and ``horizon_seconds`` are 0. ``expires_seconds`` is absent while a
    cloud is absent or pending, ``horizon_seconds`` while nothing ends it.
    """
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - 3 MB that few workers need

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(store, counters, vitals, now))
    return bytes(generate_latest(registry))


class _Collector:
    """Makes the families anew at each scrape, from the store itself: nothing can go stale."""

    def __init__(self, store: Store, counters: Counters, vitals: Vitals, now: datetime) -> None:
        self._store, self._counters, self._vitals, self._now = store, counters, vitals, now

    def collect(self) -> Iterator[Metric]:
        """See ``prometheus_client``."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 - as above

        def gauge(name: str, text: str, labels: tuple[str, ...], rows: list[tuple[tuple[str, ...], float]]) -> Metric:
            family = GaugeMetricFamily(f"credential_agent_{name}", text, labels=labels)
            for values, number in rows:
                family.add_metric(values, number)
            return family

        def counter(name: str, text: str, labels: tuple[str, ...], rows: list[tuple[tuple[str, ...], float]]) -> Metric:
            family = CounterMetricFamily(f"credential_agent_{name}", text, labels=labels)
            for values, number in rows:
                family.add_metric(values, number)
            return family

        store, counters, vitals, now = self._store, self._counters, self._vitals, self._now
        answers = {cloud: store.answer(cloud, now) for cloud in Cloud}
        origins = {cloud: standing.origin(store.state, cloud, now) for cloud in Cloud}
        yield gauge("info", "The running version.", ("version",), [((agent.__version__,), 1.0)])
        yield gauge(
            "state",
            "1 for the state each cloud is in.",
            ("cloud", "state"),
            [((c, s), float(_STATE[type(answers[c])] == s)) for c in Cloud for s in _STATE.values()],
        )
        yield gauge(
            "origin",
            "1 for whose identity each cloud has.",
            ("cloud", "origin"),
            [((c, o), float(origins[c] is o)) for c in Cloud for o in Origin],
        )
        yield gauge(
            "expires_seconds",
            "Seconds until the credential being served expires; 0 once the cloud has ended.",
            ("cloud",),
            [
                ((c,), _left(a.credential.expires_at, now) if isinstance(a, Live) else 0.0)
                for c, a in answers.items()
                if isinstance(a, Live | Ended)
            ],
        )
        yield gauge(
            "horizon_seconds",
            "Seconds until a cloud can no longer be served if nothing new arrives; absent when nothing ends it, 0 "
            "once it has ended.",
            ("cloud",),
            [
                ((c,), 0.0 if isinstance(a, Ended) else _left(h or now, now))
                for c, a in answers.items()
                if (h := until.valid_until(store.state, c, now)) is not None or isinstance(a, Ended)
            ],
        )
        yield gauge("bundle_seq", "The seq in force.", (), [((), float(store.bundle.seq))] if store.bundle else [])
        yield counter("bundles_accepted", "Bundles accepted.", (), [((), counters.accepted)])
        yield counter("bundles_refused", "Bundles refused.", ("code",), _rows(counters.refused))
        yield counter("source_failures", "Failed attempts of a source.", ("source",), _rows(counters.source_troubles))
        yield gauge(
            "source_up", "1 while a source is well.", ("source",), [((n,), float(s == "ok")) for n, s in _pairs(vitals)]
        )
        yield counter("credentials_issued", "Credentials issued.", ("cloud", "grant"), _rows(counters.issued))
        yield counter("issue_failures", "Failed issues.", ("cloud", "grant", "code"), _rows(counters.failures))
        yield gauge(
            "last_issued_age_seconds",
            "Seconds since a credential was last issued.",
            ("cloud", "grant"),
            [(tuple(k.split(":")), (now - at) / timedelta(seconds=1)) for k, at in counters.last_issued.items()],
        )
        yield gauge(
            "renewal_failing",
            "1 while the last attempt to issue a credential failed; 2 when it was refused.",
            ("cloud", "grant"),
            [
                ((s.cloud, s.id), 0.0 if s.failure is None else 2.0 if s.failure.denied else 1.0)
                for s in standing.statuses(store.state)
            ],
        )
        yield gauge(
            "clock_wall_error_seconds",
            "How far the wall clock is ahead of the time the agent goes by.",
            (),
            [((), vitals.wall_error_seconds)],
        )
        yield counter(
            "clock_moves", "Corrections of the time the agent goes by.", (), [((), float(vitals.clock.moves))]
        )
        yield gauge("memory_unwritten", "1 when a restart would forget.", (), [((), float(vitals.memory_unwritten))])
        redirect = vitals.redirect
        yield gauge(
            "redirect_state",
            "1 for what becomes of a worker's request to the metadata addresses; absent where nothing redirects them.",
            ("state",),
            [] if redirect is None else [((state,), float(redirect.state == state)) for state in STATES],
        )
        yield counter(
            "key_overwritten",
            "Times that something else stood where this worker's public key is published.",
            (),
            [((), float(vitals.overwritten))],
        )
        yield gauge(
            "without",
            "1 for what the configuration names and the machine does not have just now.",
            ("key",),
            [((key,), 1.0) for key in sorted(vitals.without)],
        )
        yield counter("log_dropped", "Lines of the log that nobody took.", (), [((), float(vitals.log_dropped))])
        yield counter(
            "http_requests",
            "Requests answered.",
            ("door", "status"),
            [((door, str(code)), number) for (door, code), number in vitals.requests.items()],
        )


def _pairs(vitals: Vitals) -> list[tuple[str, str]]:
    return sorted(vitals.sources.items())


def _rows(table: Mapping[str, int]) -> list[tuple[tuple[str, ...], float]]:
    return [(tuple(key.split(":", 2)), float(number)) for key, number in sorted(table.items())]


def _left(moment: datetime, now: datetime) -> float:
    return max((moment - now).total_seconds(), 0.0)


def _stamp(moment: datetime | None) -> str | None:
    return None if moment is None else instant(moment)
