"""What do the endpoints get? The workers' only looks; those of operators and couriers also take bundles."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from itertools import chain

import structlog

from agent import config, log, report
from agent.controller import Controller
from agent.core.early import STEP as EARLY_STEP
from agent.core.model import Cloud
from agent.core.secret import Secret
from agent.core.source import Ack
from agent.daemon import compose, processes
from agent.daemon.announce import Announcer
from agent.daemon.audit import Audit
from agent.daemon.control import routes
from agent.daemon.courier import Couriers
from agent.daemon.couriers import CourierSocket
from agent.daemon.launched import told
from agent.daemon.looking import Outcome, look_now
from agent.daemon.passing import Passing
from agent.daemon.prepare import Prepared
from agent.daemon.publish import Publisher
from agent.daemon.reload import Reloaded, Reloader
from agent.daemon.requests import Requests
from agent.daemon.servers import Servers
from agent.daemon.snapshots import Snapshots, told_of
from agent.daemon.textfile import Textfile
from agent.daemon.unit import ServerProcess
from agent.daemon.workers import Workers
from agent.host import arrival
from agent.host.clock import SystemClock
from agent.host.subuid import Whose
from agent.serve.control import ControlEndpoint
from agent.serve.courier import CourierEndpoint
from agent.serve.proxy import Passthrough
from agent.snapshot import Limits, ServeSettings


class Listeners:
    """Makes the three.

    Args:
        settings: what the process was started with.
        prepared: what was opened.
        passed: the sockets that the service manager passed.
        controller: the controller, and its store.
        clock: time.
        settled: waits until the environment files say what the store says.
        reloader: who knows what the configuration says now, and since when.

    Attributes:
        audit: of what is given to whom.
    """

    def __init__(
        self,
        settings: config.Config,
        *,
        prepared: Prepared,
        passed: Mapping[str, Sequence[socket.socket]],
        controller: Controller,
        clock: SystemClock,
        settled: Callable[[], Awaitable[None]],
        reloader: Callable[[], Reloader],
    ) -> None:
        self.requests = Requests()
        self._settings = settings
        self._prepared = prepared
        self._passed = passed
        self._controller = controller
        self._store = controller.store
        self._clock = clock
        self._settled = settled
        self._textfile: Textfile | None = None
        self._servers: Servers  # from when workers can be answered, so before anything is reported
        self._child: ServerProcess | None = None
        self._reloader = reloader
        self.audit = Audit(lambda: reloader().settings.audit, clock, each_agent=settings.audit.mode == "full")

    def decided(self, *, hosts: tuple[str, ...], token_key: bytes, phase: float) -> ServeSettings:
        """The settings that do not change while workers are answered.

        Args:
            hosts: further names by which we may be asked.
            token_key: of the EC2 session tokens.
            phase: between 0 and 1: where in a step early ends fall, so that a fleet's do not fall together.
        """
        settings, shares = self._settings, self._prepared.shares
        if shares.connections < settings.listen.max_connections:
            structlog.get_logger().warning(
                "connections.lowered",
                max_connections=shares.connections,
                configured=settings.listen.max_connections,
                descriptors=shares.limit,
                hint="raise LimitNOFILE of the service",
            )
        hide, show = compose.hidden(settings)
        through = settings.pass_through.enabled
        return ServeSettings(
            token_key=token_key,
            imdsv1=settings.aws.imdsv1,
            extra_hosts=hosts,
            hide=hide,
            show=show,
            early_phase=EARLY_STEP * phase,
            own_namespaces=compose.own_namespaces(settings),
            audit=settings.audit.mode,
            real_ec2=through and Cloud.AWS in self._prepared.metadata.passes,
            real_gce=through and Cloud.GCP in self._prepared.metadata.passes,
            passed_connections=shares.passed,
            limits=Limits(connections=shares.connections, held=min(4096, max(1, shares.connections // 2))),
        )

    def servers(
        self, decided: ServeSettings, *, path_id: Secret, expects_bundle: Callable[[], bool]
    ) -> tuple[Snapshots, Servers]:
        """What those are told and asked who answer workers.

        Args:
            decided: what stays the same.
            path_id: the id in a path that stands for a container's token.
            expects_bundle: whether the configuration has a key for one at present.
        """
        snapshots = Snapshots(
            self._controller,
            self._clock,
            decided,
            time=lambda: told_of(self._clock),
            subordinate=Whose().rows,
            first=int(self._clock.uptime() * 1000),
            tokens=lambda: self._prepared.tokens.good,
            path_id=path_id,
            expects_bundle=expects_bundle,
        )
        issuing = self._controller.issuing
        services = _services(self._settings, self._prepared)
        servers = Servers(
            lambda: snapshots.latest,
            version=lambda: snapshots.version,
            passing=lambda: Passing(
                services,
                decided,
                answer=lambda cloud: self._store.answer(cloud, self._clock.now()),
                expects_bundle=lambda: snapshots.expects_bundle,
            ),
            id_token=issuing.id_token,
            access_token=issuing.scoped.mint,
            requests=self.requests,
            heard=self.audit.hear,
            clock=self._clock.boottime,
        )
        snapshots.send_to(servers.publish)
        self._servers = servers
        return snapshots, servers

    def workers(self, servers: Servers, sockets: Sequence[socket.socket], child: ServerProcess | None) -> Workers:
        """What workers ask on these sockets."""
        self._child = child
        return Workers(servers, sockets, passed=chain.from_iterable(self._passed.values()), child=child)

    async def told_last(self, servers: Servers) -> None:
        """Hear the last words of those who answered workers, which have ended, and write down what they gave."""
        await servers.gone()
        servers.close()
        await self.audit.last()

    def _unwritten(self) -> dict[str, str]:
        """Why a file for operators is not as it should be."""
        troubles = {
            "metrics.textfile": None if self._textfile is None else self._textfile.trouble,
            "audit.file": self.audit.trouble,
        }
        return {key: trouble for key, trouble in troubles.items() if trouble is not None}

    def control(
        self, vitals: Callable[[], report.Vitals], servers: Servers, *, reload: Callable[[], Awaitable[Reloaded]]
    ) -> ControlEndpoint:
        """The one that operators ask."""
        counters = self._controller.counters
        return ControlEndpoint(
            routes(
                status=lambda: report.status(self._store, counters, vitals(), self._clock.now()),
                metrics=lambda: self._metrics(vitals()),
                counted=servers.counted,
                keys=self._public_keys,
                push=self._pushed,
                refresh=self._look_now,
                reload=reload,
            ),
            clock=self._clock,
            access=self.requests.of("control"),
            broken=self.requests.broken,
        )

    def _metrics(self, vitals: report.Vitals) -> bytes:
        return report.metrics(self._store, self._controller.counters, vitals, self._clock.now())

    def textfile(self, settings: Callable[[], config.Metrics], vitals: Callable[[], report.Vitals]) -> Textfile:
        """Make what writes the same to a file, for those who may not ask the control socket."""
        self._textfile = Textfile(settings, lambda: self._metrics(vitals()), self._clock)
        return self._textfile

    def couriers(self) -> CourierSocket:
        """The one for couriers, who bring bundles and ask for our key."""
        prepared = self._prepared
        attestor = compose.attestor(self._settings, prepared.metadata, prepared.workers_out, self._clock)
        couriers = Couriers(
            self._store,
            prepared.opening,
            attestor,
            submit=self._controller.intake.submit,
            settled=self._settled,
            clock=self._clock,
        )
        endpoint = CourierEndpoint(
            couriers.routes(),
            clock=self._clock,
            access=self.requests.of("courier"),
            broken=self.requests.broken,
            whose=Whose(),
        )
        return CourierSocket(
            endpoint,
            self._settings.listen,
            self._passed,
            gid=lambda: prepared.gid,
            reasons=lambda: prepared.away.reasons,
            clock=self._clock,
        )

    def _public_keys(self) -> list[dict[str, str]]:
        return [public for key in self._prepared.opening.keyring.keys if (public := key.public_jwk()) is not None]

    async def _pushed(self, data: bytes) -> Ack:
        ack = await self._prepared.push.push(data)
        # Whoever is told "accepted" may start a program at once, or rely on a withdrawal.
        if ack.confirmed:
            await self._settled()
        return ack

    async def _look_now(self) -> list[Outcome]:
        """Have every source looked at now: ``credential-agent refresh``."""
        outcomes = await look_now(self._prepared.sources, self._controller.intake.submit)
        await self._settled()
        return outcomes

    def vitals(self, started: datetime, publisher: Publisher, announcer: Announcer) -> report.Vitals:
        """Gather what status and metrics report beside the store.

        Args:
            started: when this process did.
            publisher: of the environment files.
            announcer: of our key.
        """
        prepared, opening = self._prepared, self._prepared.opening
        return report.Vitals(
            started=started,
            wall_error_seconds=self._clock.wall_error_seconds,
            clock=_clock_vitals(self._clock),
            sources=self._controller.source_state,
            source_read=self._controller.source_read,
            source_every={
                source.name: every
                for source in prepared.sources
                if (every := getattr(source, "every_seconds", None)) is not None
            },
            history=self._controller.history.entries,
            refusal=self._controller.intake.last_refusal,
            memory_unwritten=self._controller.durable.unwritten,
            refused_variables=publisher.refused(self._clock.now()),
            keys=opening.keyring.kids,
            signers=told(opening.trust),
            absent_keys=prepared.absent_keys,
            audiences=tuple(sorted(opening.audiences | opening.keyring.audiences)),
            requests=self.requests.counts,
            files=prepared.files.loaded,
            configuration_changed=self._reloader().file.changed,
            log_dropped=log.dropped(),
            redirect=arrival.read(),
            published=announcer.state,
            overwritten=announcer.overwritten,
            without={
                **prepared.away.reasons,
                **publisher.troubles,
                **_lowered(self._settings, prepared),
                **self._unwritten(),
                **prepared.age.troubles(self._store.memory),
            },
            processes=processes.used(self._servers, self._child),
            servers=processes.answering(self._servers, self._clock),
            replaced=0 if self._child is None else self._child.replaced,
            served=self.audit.served,
            refused=self.audit.refused,
            audit_dropped=self.audit.dropped,
        )


def _services(settings: config.Config, prepared: Prepared) -> dict[Cloud, Passthrough]:
    """The real services, for what workers ask of them."""
    ec2, gce = prepared.metadata.passed(prepared.workers_out)
    found: dict[Cloud, Passthrough] = {}
    if ec2 is not None:
        found[Cloud.AWS] = ec2
    if gce is not None:
        found[Cloud.GCP] = gce
    return found if settings.pass_through.enabled else {}


def _lowered(settings: config.Config, prepared: Prepared) -> dict[str, str]:
    """The limits that are lower than configured, because there are too few descriptors."""
    shares = prepared.shares
    if shares.connections >= settings.listen.max_connections:
        return {}
    why = f"{shares.connections}: more do not fit under the limit of {shares.limit} file descriptors (LimitNOFILE)"
    return {"listen.max_connections": why}


def _clock_vitals(clock: SystemClock) -> report.ClockVitals:
    timekeeper = clock.timekeeper
    return report.ClockVitals(
        believed=str(timekeeper.believed),
        vouched=timekeeper.vouched,
        heard=timekeeper.heard,
        moves=timekeeper.moves,
        lost_seconds=timekeeper.lost,
        differences={str(witness): seconds for witness, seconds in timekeeper.differences.items()},
    )
