"""The order of the start and of the end: this file wires the parts, and decides nothing.

The start, in steps, each of which may fail before the next:

1. everything that the configuration names is opened and checked (:mod:`agent.daemon.prepare`: a mistake is one line,
   exit 78, nothing started);
2. the sockets are bound: from here on a worker waits in a queue rather than being refused;
3. the machine is asked who it is (:mod:`agent.daemon.who`): what was remembered belongs to one machine;
4. what an earlier process of this instance had accepted is put back in force (:mod:`agent.daemon.remembered`,
   :mod:`agent.daemon.succession`);
5. the endpoints answer, the controller runs, and readiness is told when no answer is pending any more
   (:mod:`agent.daemon.ready`).

Resources: :meth:`Daemon.run` owns every task and socket and has closed them when it returns.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

import agent
from agent import config, report
from agent.core.timekeeping import Witness
from agent.daemon import listening
from agent.daemon.announce import Announcer
from agent.daemon.configured import Configured
from agent.daemon.late import Late, Server
from agent.daemon.leaving import handover_of
from agent.daemon.listeners import Listeners
from agent.daemon.prepare import NO_POINTER_HINT, Prepared
from agent.daemon.publish import Publisher
from agent.daemon.ready import READY_AFTER_SECONDS, Readiness
from agent.daemon.reload import Reloaded, Reloader
from agent.daemon.remembered import Remembered
from agent.daemon.restore import Restorer
from agent.daemon.servers import Servers
from agent.daemon.still import Still
from agent.daemon.succession import Succession
from agent.daemon.time_log import TimeLog
from agent.daemon.unending import unending
from agent.daemon.unit import ServerProcess
from agent.daemon.who import Who
from agent.daemon.workers import sockets_of
from agent.host import containerenv, machine, systemd
from agent.host.clock import SystemClock
from agent.providers.machine import Machine

CLOSE_SECONDS: Final = 2.0
SETTLE_SECONDS: Final = 5.0
"""How long readiness waits for the environment files. A disk that is full for longer has been logged."""


class Daemon:
    """One run of the agent.

    Long because it wires each part to those that it needs, once, and decides nothing.

    Args:
        settings: the configuration.
        environ: what the service manager passed.
        file: the configuration file, which SIGHUP has read anew.
        child: what begins the process that answers workers; ``None``: this one does.
        root: where ``/sys`` and ``/etc`` are; another place in tests.

    Raises:
        ConfigError: something the configuration names is missing or wrong. Nothing was started.
    """

    def __init__(
        self,
        settings: config.Config,
        *,
        environ: Mapping[str, str],
        file: Configured,
        child: ServerProcess | None = None,
        root: Path = Path("/"),
    ) -> None:
        self._settings = settings
        self._file = file
        self._child = child
        self._root = root
        self._log = structlog.get_logger()
        self._stop = asyncio.Event()
        self._serving = self._reload_wanted = False
        self._servers: Servers | None = None
        self.clock = SystemClock()
        self._time_log = TimeLog(self.clock)
        self._time_moved: Callable[[], None] = lambda: None  # the controller's, once there is one
        self._started = self.clock.now()
        self._rng = random.Random(secrets.randbits(64))  # noqa: S311 - jitter, not a secret

        self._passed = systemd.passed(environ, pid=os.getpid())
        self._notifier = systemd.Notifier(environ.get("NOTIFY_SOCKET"), stored=self._passed.stored)
        # The unit gives as long as the usual grace takes.
        self._notifier.starts_within(3 * (settings.identity.grace_seconds + READY_AFTER_SECONDS))
        self._watchdog = systemd.watchdog_seconds(environ, pid=os.getpid())
        self._succession = Succession(self._passed, self._notifier, self.clock)
        left = self._succession.left

        # 1.
        self._prepared = Prepared(
            settings, environ=environ, clock=self.clock, rng=self._rng, hear=self._hear, left=left, root=root
        )
        self._who = Who(self._prepared.metadata, self.clock, configured=settings.identity.instance_id, root=root)
        remembered = Remembered(
            self._prepared.state,
            Path(settings.state.directory),
            clock=self.clock,
            environ=environ,
            root=root,
            activated=bool(self._passed.sockets),
        )
        self._restorer = Restorer(
            settings,
            prepared=self._prepared,
            who=self._who,
            remembered=remembered,
            succession=self._succession,
            clock=self.clock,
            rng=self._rng,
        )
        self._late = Late(
            settings,
            file=self._file,
            prepared=self._prepared,
            passed=self._passed.sockets,
            restorer=self._restorer,
            clock=self.clock,
        )
        self._announcer = Announcer(
            self.clock,
            self._prepared.metadata.gce,
            needed=lambda: self.controller.intake.last_refusal,
            stood=left.announced if left is not None else {},
            noted=self._hand_over,
        )

    # -- the start --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Long because it is the order of the start and of the end, to be read as one.

        Raises:
            HostError: a socket cannot be bound.
        """
        settings = self._settings
        for key, reason in self._prepared.away.reasons.items():
            self._log.error("start.without", key=key, reason=reason, hint="it is used as soon as it is there")
        # 2.
        worker_sockets, addresses = await sockets_of(
            self._child, settings.listen, self._passed.sockets, apart=self._prepared.answered_apart
        )
        control = self._late.control_socket()
        self._heed_signals()

        # 3. The state handed over says who the machine is: it is of this very boot. The metadata services are asked all
        # the same, but not waited for.
        handed = self._succession.left is not None
        self._prepared.opening.unnamed = lambda: self._who.unnamed
        found = [] if handed else (await asyncio.gather(self._who.ask(), self._prepared.launched.look_first()))[0]
        # 4.
        sockets = [*worker_sockets, *([control] if control else [])]
        ready_seconds = settings.identity.grace_seconds + READY_AFTER_SECONDS
        if not await self._restorer.look_at_state(
            sockets, notifier=self._notifier, stop=self._stop, ready_seconds=ready_seconds
        ):
            return
        await self._restorer.restore(found, changed=self._changed, told=self._told, follow=self._follow)
        self.controller, self.store = self._restorer.controller, self._restorer.controller.store

        # 5.
        self._wire(addresses)
        servers = self._tell_servers(addresses)
        self._workers = workers = self._listeners.workers(servers, worker_sockets, self._child)
        operators = self._listeners.control(self._vitals, servers, reload=self._reload)
        couriers = self._listeners.couriers()
        await workers.begin()
        listening_on: list[Server] = []
        if control is not None:
            listening_on.append(self._late.listen(operators, control))
        couriers.listen()
        self._log.info(
            "agent.started",
            version=agent.__version__,
            http=addresses,
            control=settings.listen.control,
            owners=workers.owners,
            instance_id=self.store.memory.instance_id or None,
            keys=list(self._prepared.opening.keyring.kids),
        )
        self._reloader.announce()
        self._reloader.tell_absent_keys()
        self._hand_over()
        later = self._late.begin(
            operators,
            listening_on,
            reloader=self._reloader,
            publisher=self._publisher,
            reload=self._on_hangup,
        )
        later += (
            self._restorer.resuming,
            self._restorer.recalling,
            self._restorer.copying,
            asyncio.create_task(unending(couriers.run, work="couriers", sleep=self.clock.sleep), name="couriers"),
        )
        if self._child is not None:
            later.append(asyncio.create_task(unending(servers.watch, work="servers", sleep=self.clock.sleep)))
        try:
            await self._serve(found, at_once=handed)
        finally:
            for task in later:
                task.cancel()
            await asyncio.gather(*later, return_exceptions=True)
            self._notifier.stopping()
            self._log.info("agent.stopping")
            for server in listening_on:
                server.close()
            await workers.close(CLOSE_SECONDS)
            await self._listeners.told_last(servers)
            await operators.listener.close(CLOSE_SECONDS / 4)
            await couriers.close(CLOSE_SECONDS / 4)
            await self._prepared.close()
            self._late.remove_control()
        self._log.info("agent.stopped")

    def _heed_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # what came meanwhile is heeded now

    def _on_hangup(self) -> None:
        if self._serving:
            self._reloader.on_hangup()
        else:
            self._reload_wanted = True  # nothing is loaded yet that could be loaded anew: done after the start

    async def _reload(self) -> Reloaded:
        if self._serving:
            return await self._reloader.reload()
        self._reload_wanted = True
        return Reloaded("later")

    async def _serve(self, found: list[Machine], *, at_once: bool) -> None:
        self._publish_keys()
        self._serving = self._restorer.serving = True
        if self._reload_wanted:
            self._on_hangup()
        self._restorer.audience = lambda: self._reloader.settings.identity.audience
        act, gap = self._restorer.identify_anew, self._restorer.gap
        self._still = Still(self._who, self.clock, store=self.store, act=act, gap=gap, noted=self._hand_over)
        self.clock.watch(self._woke_up)
        textfile = self._listeners.textfile(lambda: self._reloader.settings.metrics, self._vitals)
        self._reloader.applied += [textfile.every.changed, self._listeners.audit.every.changed]
        pending_seconds = self._settings.identity.grace_seconds + READY_AFTER_SECONDS
        begun = partial(self._workers.begun, self._settled)
        background: list[asyncio.Task[Any]] = [
            asyncio.create_task(self.controller.run(), name="controller"),
            asyncio.create_task(
                self._readiness.tell(pending_seconds, begun, lambda: self._restorer.may_settle), name="ready"
            ),
            asyncio.create_task(self._reloader.follow_files(), name="files"),
            asyncio.create_task(self._reloader.follow_launched(), name="launch signers"),
            asyncio.create_task(self._restorer.reconcile(), name="reconcile"),
            asyncio.create_task(textfile.run(), name="metrics file"),
            asyncio.create_task(self._listeners.audit.run(), name="audit"),
        ]
        identified = self._restorer.identify_first(found, at_once=at_once)
        background.append(asyncio.create_task(self._still.watch(identified), name="identify"))
        if self._watchdog is not None:
            fed = self._readiness.feed_watchdog(self._watchdog, lambda: self.controller.last_step)
            background.append(asyncio.create_task(fed, name="watchdog"))
        stopped = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            while not stopped.done():
                done, _ = await asyncio.wait({stopped, *background}, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stopped}:
                    background.remove(task)
                    task.result()  # a task that must not end has ended: raise its error
            await self._publisher.settled(CLOSE_SECONDS / 4)
            await self.controller.durable.last(CLOSE_SECONDS / 2)
            await self._late.noted(CLOSE_SECONDS / 4)
        finally:
            ending: tuple[asyncio.Future[Any], ...] = (stopped, self._publishing, *self._reloader.tasks, *background)
            for one in ending:
                one.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            self.clock.close()

    # -- the listeners ----------------------------------------------------------------------------------------------

    def _wire(self, addresses: list[str]) -> None:
        """Make what needs the store, the controller and the addresses."""
        settings, pointer = self._settings, listening.pointer(addresses)
        if pointer is None:
            self._log.warning("environment.no_container_uri", http=addresses, hint=NO_POINTER_HINT)
        self._path_id = containerenv.path_id(self._restorer.token_key, machine.machine_id(self._root) or "")
        self._readiness = Readiness(self._notifier, self.clock, self.store, self._started)
        self._publisher = Publisher(
            settings.environment,
            path_id=self._path_id,
            store=self.store,
            clock=self.clock,
            address=pointer or addresses[0],
            container_uri=pointer is not None,
            token=self._prepared.tokens.present,
            gid=self._prepared.gid,
            expects_bundle=bool(settings.keys),
        )
        self._listeners = Listeners(
            settings,
            prepared=self._prepared,
            passed=self._passed.sockets,
            controller=self.controller,
            clock=self.clock,
            settled=self._settled,
            reloader=lambda: self._reloader,
        )
        self._reloader = Reloader(
            settings,
            file=self._file,
            prepared=self._prepared,
            who=self._who,
            controller=self.controller,
            publisher=self._publisher,
            readiness=self._readiness,
            clock=self.clock,
            hand_over=self._hand_over,
            keys_changed=self._keys_changed,
        )

    def _vitals(self) -> report.Vitals:
        return self._listeners.vitals(self._started, self._publisher, self._announcer)

    def _tell_servers(self, addresses: list[str]) -> Servers:
        """From here on whoever answers workers is told what is served."""
        decided = self._listeners.decided(
            hosts=(*self._settings.listen.hosts, *listening.hosts(addresses)),
            token_key=self._restorer.token_key,
            phase=self._rng.random(),
        )
        self._snapshots, self._servers = self._listeners.servers(
            decided, path_id=self._path_id, expects_bundle=lambda: bool(self._reloader.settings.keys)
        )
        self._readiness.answers = self._servers.answer
        return self._servers

    async def _told(self) -> bool:
        return self._servers is None or await self._servers.taken()

    async def _settled(self) -> None:
        await self._told()
        await self._publisher.settled(SETTLE_SECONDS)

    # -- while it runs ----------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Write files and tell systemd: the store may answer otherwise than before."""
        self._restorer.changed()
        self._publisher.changed()
        self._hand_over()
        self._readiness.tell_status()

    def _hand_over(self) -> None:
        """Tell the processes that answer workers, and leave the next process what it needs: either may have changed."""
        self._snapshots.publish()
        self._succession.keep(
            self.store,
            self._file.text,
            lambda: handover_of(self._prepared, self.controller, self._restorer, self._who, self._announcer),
            self._restorer.gap.known,
        )
        self._late.note()

    def _hear(self, witness: Witness, date: datetime, took: float) -> None:
        """Pass on a ``Date`` that has just come from a witness of the time."""
        if self.clock.hear(witness, date, took):
            self._time_moved()

    def _woke_up(self) -> None:
        """The machine woke, or its clock was stepped."""
        self._prepared.ways.reconnect()
        self.controller.time_moved()
        self._still.wake()

    def _follow(self) -> bool:
        doubtful = self._time_log.follow()
        if self._servers is not None and self._snapshots.outdated:
            # Soon: what was counted from a moment of ours is moved in between.
            asyncio.get_running_loop().call_soon(self._snapshots.publish)
        return doubtful

    def _publish_keys(self) -> None:
        """Bring the public half of an ephemeral key to where senders look for it."""
        ephemeral, entries = self._prepared.ephemeral, []
        if ephemeral is not None:
            entries = [key for key in self._reloader.settings.keys if isinstance(key, config.EphemeralKey)]
        public = msgspec.json.encode(ephemeral.public_jwk()) if ephemeral is not None else b""
        self._announcer.only(entries)
        self._publishing: asyncio.Future[Any] = asyncio.gather(*(self._announcer.run(one, public) for one in entries))

    def _keys_changed(self) -> None:
        self._publishing.cancel()
        self._publish_keys()
