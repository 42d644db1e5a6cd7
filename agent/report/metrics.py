"""What do alerts watch? The metrics, in the Prometheus text format; which of them are stable is in EVENTS.md."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import agent
from agent.bundle.codes import Code
from agent.core.counters import OUTCOMES, UNREADABLE, Counters
from agent.core.model import Cloud
from agent.core.served import CALLERS, REASONS
from agent.core.source import is_elsewhere
from agent.core.view import Ended, Live, Origin
from agent.host.arrival import STATES
from agent.identity import standing, until
from agent.identity.store import Store
from agent.report.summary import told
from agent.report.vitals import ANSWERS, Vitals

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

    Rows = Iterable[tuple[tuple[str, ...], float]]


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
    """Builds the families at each scrape, from the store itself: nothing can go stale."""

    def __init__(self, store: Store, counters: Counters, vitals: Vitals, now: datetime) -> None:
        self._store, self._counters, self._vitals, self._now = store, counters, vitals, now

    def collect(self) -> Iterator[Metric]:
        """See ``prometheus_client``."""
        yield from self._identities()
        yield from self._bundles()
        yield from self._credentials()
        yield from self._machine()
        yield from self._processes()
        yield from self._requests()

    def _identities(self) -> Iterator[Metric]:
        """Which identity does each cloud have, and until when?"""
        store, now = self._store, self._now
        answers = {cloud: told(store, cloud, now) for cloud in Cloud}
        origins = {cloud: standing.origin(store.state, cloud, now) for cloud in Cloud}
        yield _gauge("info", "The running version.", ("version",), [((agent.__version__,), 1.0)])
        python = platform.python_version()
        yield _gauge("build_info", "What runs.", ("version", "python"), [((agent.__version__, python), 1.0)])
        yield _gauge("written_timestamp_seconds", "When this was made.", (), [((), now.timestamp())])
        yield _gauge(
            "state",
            "1 for the state each cloud is in.",
            ("cloud", "state"),
            [((c, s), float(ANSWERS[type(answers[c])] == s)) for c in Cloud for s in ANSWERS.values()],
        )
        yield _gauge(
            "origin",
            "1 for whose identity each cloud has.",
            ("cloud", "origin"),
            [((c, o), float(origins[c] is o)) for c in Cloud for o in Origin],
        )
        yield _gauge(
            "expires_seconds",
            "Seconds until the credential being served expires; 0 once the cloud has ended.",
            ("cloud",),
            [
                ((c,), _left(a.credential.expires_at, now) if isinstance(a, Live) else 0.0)
                for c, a in answers.items()
                if isinstance(a, Live | Ended)
            ],
        )
        yield _gauge(
            "expiry_timestamp_seconds",
            "When the credential being served expires; 0 once the cloud has ended.",
            ("cloud",),
            [
                ((c,), a.credential.expires_at.timestamp() if isinstance(a, Live) else 0.0)
                for c, a in answers.items()
                if isinstance(a, Live | Ended)
            ],
        )
        yield _gauge(
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

        yield _gauge(
            "horizon_timestamp_seconds",
            "When a cloud can no longer be served if nothing new arrives; absent when nothing ends it, 0 once it has "
            "ended.",
            ("cloud",),
            [
                ((c,), 0.0 if isinstance(a, Ended) else (h or now).timestamp())
                for c, a in answers.items()
                if (h := until.valid_until(store.state, c, now)) is not None or isinstance(a, Ended)
            ],
        )

    def _bundles(self) -> Iterator[Metric]:
        """What came in?"""
        store, counters, vitals = self._store, self._counters, self._vitals
        yield _gauge("bundle_seq", "The seq in force.", (), [((), float(store.bundle.seq))] if store.bundle else [])
        yield _counter("bundles_accepted", "Bundles accepted.", (), [((), counters.accepted)])
        # Each code from the start: a series that appears with its first count never rose.
        refused = {**dict.fromkeys((*Code, UNREADABLE), 0), **counters.refused}
        yield _counter("bundles_refused", "Bundles refused.", ("code",), _rows(refused))
        yield _counter("source_failures", "Failed attempts of a source.", ("source",), _rows(counters.source_troubles))
        here = [(name, state) for name, state in _pairs(vitals) if not is_elsewhere(name, state, vitals.sources)]
        yield _gauge("source_up", "1 while a source is well.", ("source",), [((n,), float(s == "ok")) for n, s in here])

    def _credentials(self) -> Iterator[Metric]:
        """What was issued?"""
        store, counters, now = self._store, self._counters, self._now
        yield _counter("credentials_issued", "Credentials issued.", ("cloud", "grant"), _rows(counters.issued))
        yield _counter("issue_failures", "Failed issues.", ("cloud", "grant", "code"), _rows(counters.failures))
        yield _counter(
            "renewals",
            "Attempts to issue a credential, by what became of them.",
            ("cloud", "outcome"),
            # From the start, so that the first failure is a rise.
            [((c, o), float(counters.renewals.get(f"{c}:{o}", 0))) for c in Cloud for o in OUTCOMES],
        )
        yield _gauge(
            "last_issued_timestamp_seconds",
            "When a credential was last issued.",
            ("cloud", "grant"),
            [(tuple(k.split(":", 1)), at.timestamp()) for k, at in counters.last_issued.items()],
        )
        yield _gauge(
            "last_issued_age_seconds",
            "Seconds since a credential was last issued.",
            ("cloud", "grant"),
            [(tuple(k.split(":", 1)), (now - at) / timedelta(seconds=1)) for k, at in counters.last_issued.items()],
        )
        yield _gauge(
            "renewal_failing",
            "1 while the last attempt to issue a credential failed; 2 when it was refused.",
            ("cloud", "grant"),
            [
                ((s.cloud, s.id), 0.0 if s.failure is None else 2.0 if s.failure.denied else 1.0)
                for s in standing.statuses(store.state)
            ],
        )

    def _machine(self) -> Iterator[Metric]:
        """How is the machine, and what is around the agent?"""
        vitals = self._vitals
        yield _gauge(
            "clock_wall_error_seconds",
            "How far the wall clock is ahead of the time the agent goes by.",
            (),
            [((), vitals.wall_error_seconds)],
        )
        yield _counter(
            "clock_moves", "Corrections of the time the agent goes by.", (), [((), float(vitals.clock.moves))]
        )
        yield _gauge("memory_unwritten", "1 when a restart would forget.", (), [((), float(vitals.memory_unwritten))])
        redirect = vitals.redirect
        yield _gauge(
            "redirect_state",
            "1 for what becomes of a worker's request to the metadata addresses; absent where nothing redirects them.",
            ("state",),
            [] if redirect is None else [((state,), float(redirect.state == state)) for state in STATES],
        )
        yield _counter(
            "key_overwritten",
            "Times that something else stood where this worker's public key is published.",
            (),
            [((), float(vitals.overwritten))],
        )
        yield _gauge(
            "without",
            "1 for what the configuration names and the machine does not have just now.",
            ("key",),
            [((key,), 1.0) for key in sorted(vitals.without)],
        )
        yield _counter("log_dropped", "Lines of the log that nobody took.", (), [((), float(vitals.log_dropped))])

    def _processes(self) -> Iterator[Metric]:
        """What do our own processes use?"""
        used = self._vitals.processes.items()
        yield _gauge("start_timestamp_seconds", "When the agent started.", (), [((), self._vitals.started.timestamp())])
        yield _gauge(
            "resident_memory_bytes", "Memory in RAM.", ("process",), [((n,), float(u.resident_bytes)) for n, u in used]
        )
        yield _gauge(
            "open_descriptors",
            "Open files and sockets.",
            ("process",),
            [((n,), float(u.descriptors)) for n, u in used if u.descriptors],
        )
        yield _counter("cpu_seconds", "Time on a processor.", ("process",), [((n,), u.cpu_seconds) for n, u in used])
        newest = [one for one in self._vitals.servers if one.newest]
        current = [one.apart for one in newest if not one.stands_by]
        yield _gauge(
            "servers",
            "Processes that answer workers by what is served now, and that stand by.",
            ("process",),
            [
                (("server",), float(current.count(True))),
                (("agent",), float(current.count(False))),
                (("standby",), float(len(newest) - len(current))),
            ],
        )
        yield _counter(
            "server_replacements",
            "Times that a process that answers workers has ended before its time and has had a successor.",
            (),
            [((), float(self._vitals.replaced))],
        )

    def _requests(self) -> Iterator[Metric]:
        """What was answered?"""
        vitals = self._vitals
        yield _counter(
            "http_requests",
            "Requests answered.",
            ("door", "status"),
            [((listener, str(code)), number) for (listener, code), number in vitals.requests.items()],
        )
        # Each from the start, so that the first is a rise.
        kinds = [*(("aws", dialect) for dialect in ("ec2", "container")), ("gcp", "gce")]
        yield _counter(
            "credentials_served",
            "Credentials and tokens given to programs, by class of the caller.",
            ("cloud", "dialect", "caller"),
            [((*kind, c), float(vitals.served.get((*kind, c), 0))) for kind in kinds for c in CALLERS],
        )
        yield _counter(
            "requests_refused",
            "Requests refused and connections ended, by reason.",
            ("reason",),
            [((reason,), float(vitals.refused.get(reason, 0))) for reason in REASONS],
        )
        yield _counter(
            "audit_dropped", "Lines of the audit that its file has not taken.", (), [((), float(vitals.audit_dropped))]
        )


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    """A family of values that rise and fall."""
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - 3 MB that few workers need

    family = GaugeMetricFamily(f"credential_agent_{name}", text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    """A family of values that only rise."""
    from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415 - as above

    family = CounterMetricFamily(f"credential_agent_{name}", text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _pairs(vitals: Vitals) -> list[tuple[str, str]]:
    return sorted(vitals.sources.items())


def _rows(table: Mapping[str, int]) -> list[tuple[tuple[str, ...], float]]:
    return [(tuple(key.split(":", 2)), float(number)) for key, number in sorted(table.items())]


def _left(moment: datetime, now: datetime) -> float:
    return max((moment - now).total_seconds(), 0.0)
