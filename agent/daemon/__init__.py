"""The composition root: the only room that knows every other. It starts, stops and reloads; it decides nothing else.

Order of the start, each step before the next may fail:

1. everything that the configuration names is opened and checked (a mistake: one line, exit 78, nothing started);
2. the sockets are bound: from here on a worker waits in a queue rather than being refused;
3. the machine is asked who it is (:data:`IDENTIFY_SECONDS` at most): what was remembered belongs to one machine;
4. what an earlier process of this instance had accepted is put back in force;
5. the doors answer, the keeper runs, and readiness is told when no answer is pending any more.

Resources: :meth:`Daemon.run` owns every task and socket and has closed them when it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import structlog

import agent
from agent import bundle, config, keys, log, report
from agent.core.early import STEP as EARLY_STEP
from agent.core.errors import AgentError, ConfigError, HostError
from agent.core.model import Cloud
from agent.core.secret import Secret
from agent.core.source import Ack
from agent.core.timekeeping import Witness
from agent.core.verdict import Memory
from agent.core.view import Facts, Live, Pending
from agent.core.whose import Whose, whose
from agent.daemon import compose, disk, doors, grace, handover, kept
from agent.daemon.announce import Announcer
from agent.daemon.control import routes
from agent.daemon.looking import look_now
from agent.daemon.publish import Publisher, absent_directories, check_paths, container_tokens, group_id, written_token
from agent.daemon.pulse import Pulse
from agent.daemon.reload import (
    LOADED_ONCE,
    LOOK_SECONDS,
    Loaded,
    Looks,
    Named,
    describe,
    looks,
    looks_patiently,
    named,
    needs_restart,
)
from agent.host import arrival, containerenv, descriptors, machine, memory, systemd
from agent.host.clock import SystemClock
from agent.host.files import read_plain, write_atomic
from agent.host.patience import FirstLook, Patience, StalledError
from agent.host.sockdiag import SocketDiagnosis
from agent.host.sockets import read_socket_table
from agent.host.state import MEMORY_FILE, StateDirectory, StateVersionError, closed_memory
from agent.identity import leftovers
from agent.identity.store import Store
from agent.keeper import Keeper
from agent.providers.machine import Machine, ec2_machine, gce_machine
from agent.serve.control import ControlDoor
from agent.serve.door import WorkerDoor
from agent.serve.fairness import Owners
from agent.serve.listener import Access, Limits
from agent.serve.proxy import CONNECTIONS as PASSED_CONNECTIONS
from agent.serve.settings import ServeSettings
from agent.serve.waiting import Changes
from agent.sources.file import FileSource
from agent.sources.push import PushSource
from agent.upstream import UpstreamError

PATIENCE_SECONDS: Final = 5.0
"""How long a file that the configuration names is waited for while we run."""
HELD: Final = timedelta(days=3650)
"""The boot grace while a file that the configuration names has not answered yet."""
IDENTIFY_SECONDS: Final = 2.0
IDENTIFY_AGAIN_SECONDS: Final = 15.0
READY_AFTER_SECONDS: Final = 10.0
"""Beyond the grace. A worker that depends on us starts late rather than never: an outage is the jobs' to see."""
TELL_AGAIN_SECONDS: Final = 0.5
TELL_AGAIN_ATTEMPTS: Final = 120
TELL_SLOWLY_SECONDS: Final = 5.0
RESUME_SECONDS: Final = 1.0
"""How long the doors wait for a key at the start."""
LOOK_AT_RUN_SECONDS: Final = 0.5
CLOSE_SECONDS: Final = 2.0
CLAIM_SECONDS: Final = 5.0
"""How long to wait for a process before us that is slow to end."""
NO_POINTER_HINT: Final = (
    "SDKs take no container endpoint at these addresses (only loopback, 169.254.170.2, 169.254.170.23 and "
    "fd00:ec2::23), so the environment file names none: add 127.0.0.1:16925, or lead containers by the redirect"
)
ABSENT_KEY_HINT: Final = (
    "no bundle can be opened without it: give it to the machine (SMBIOS, /etc/credstore/, LoadCredential=), "
    "then restart the agent"
)
SETTLE_SECONDS: Final = 5.0
"""How long readiness waits for the environment files. A disk that is full for longer has been logged as such."""
STALE_LOOP_SECONDS: Final = 90.0
"""The keeper's loop goes round at least once a minute; one that has not for this long is stuck."""

_REDIRECT_HINT: Final = "the rules are another unit's: systemctl reload credential-agent-redirect"


class _Files(NamedTuple):
    """What the configuration's files hold, read as a whole."""

    named: tuple[Named, ...]
    seen: Looks
    loaded: tuple[Loaded, ...]
    trust: bundle.Trust
    ring: keys.Keyring
    gid: int | None
    away: compose.Away


class Daemon:
    """One run of the agent.

    Args:
        settings: the configuration.
        environ: what the service manager passed.
        reload: reads the configuration anew (SIGHUP).
        root: where ``/sys`` and ``/etc`` are; another place in tests.
        faults: takes note of everything that is wrong or away: to check the configuration, rather than to serve.

    Raises:
        ConfigError: something the configuration names is missing or wrong. Nothing was started.
    """

    def __init__(
        self,
        settings: config.Config,
        *,
        environ: Mapping[str, str],
        reload: Callable[[], config.Config],
        root: Path = Path("/"),
        faults: compose.Faults | None = None,
    ) -> None:
        self._settings = self._loaded = settings
        self._environ = environ
        self._reload = reload
        self._root = root
        self._log = structlog.get_logger()
        self._requests: dict[tuple[str, int], int] = {}
        self._complained: dict[int, float] = {}
        self._own_audiences: frozenset[str] = frozenset()  # the names that the machine itself answers to
        self._named = settings.identity.instance_id
        self._stop = asyncio.Event()
        self._reloading: set[asyncio.Task[None]] = set()
        self._keep_again: asyncio.TimerHandle | None = None
        self._serving = self._told_ready = self._reload_wanted = False
        self.clock = SystemClock()
        self._lost_told = 0.0
        self._time_moved: Callable[[], None] = lambda: None  # the keeper's, once there is one
        self._started = self.clock.now()
        self._rng = random.Random(secrets.randbits(64))  # noqa: S311 - jitter, not a secret

        self._passed = systemd.passed(environ, pid=os.getpid())
        self._notifier = systemd.Notifier(environ.get("NOTIFY_SOCKET"), stored=self._passed.stored)
        self._watchdog = systemd.watchdog_seconds(environ, pid=os.getpid())
        left = self._left = handover.take(self._passed, self.clock)
        self._handed: handover.Handover | None = None  # what the next process would get now
        self._began = left.began if left is not None else self.clock.uptime()

        # 1. Everything that can be wrong in the configuration. What is only away just now is an alarm and no end; what
        # does not even answer is not waited for.
        self._first_look = FirstLook(disk.LOOK_SECONDS if left is not None else disk.FIRST_LOOK_SECONDS)
        self._patience = Patience(PATIENCE_SECONDS)
        self._reader = Patience(PATIENCE_SECONDS, again=True)
        self._applying = asyncio.Lock()
        self._silent: set[str] = set()  # of which files nobody knows whether they have changed
        self._out = compose.upstream(settings, hear=self._hear)
        self._shares = descriptors.shares(
            descriptors.raised(), connections=settings.listen.max_connections, passed=PASSED_CONNECTIONS
        )
        self._workers_out = compose.upstream(settings, connections=self._shares.passed)
        self._metadata = compose.Metadata(settings, self._out, self.clock, root=root)
        self._mint = compose.mint(settings, self._out, self._metadata, self.clock)
        self._open_files(left, faults)
        self._sources = compose.sources(settings, metadata=self._metadata, clock=self.clock, rng=self._rng, away=faults)
        self._push = PushSource(clock=self.clock)
        self._container_ids: tuple[Secret, ...] = ()
        self._announcer = Announcer(self.clock, self._metadata.gce, needed=lambda: self.keeper.intake.last_refusal)

    def _open_files(self, left: handover.Handover | None, faults: compose.Faults | None) -> None:
        settings, look = self._settings, self._first_look
        away = self._away = faults or compose.Away(left.files if left is not None else None, look)
        ask, tolerant = away.ask, self._tolerate
        self._state = StateDirectory(_directory(settings.state.directory, "state.directory", tolerant, ask))
        with tolerant("environment"):
            paths = settings.environment
            for key, error in ask(Path(paths.file), lambda: list(absent_directories(paths))):
                away.takes(key, error)
        self._gid = None
        with tolerant("environment.group"):
            self._gid = ask(Path("the group of the files"), partial(group_id, settings.environment.group))
        # The present one first, and the one before.
        tokens = left.tokens if left is not None else ()
        self._tokens = container_tokens(None, tokens)
        with tolerant("environment.token_file"):
            path = Path(settings.environment.token_file)
            self._tokens = ask(path, partial(container_tokens, path, tokens))
        self._files = named(settings, credentials_directory=self._environ.get("CREDENTIALS_DIRECTORY"))
        self._seen = looks(self._files, ask)
        self._loaded_files = describe(self._files, away.takes, ask)
        for file in self._files:
            if file.at_use:
                with tolerant(file.key):
                    ask(file.path, partial(os.path.lexists, file.path))
        ring = self._keyring(settings, left.key() if left is not None else None, away)
        self._opening = compose.Opening(ring, compose.trust(settings, away), frozenset())
        # Where nobody knows yet what would be believed, nobody is the machine for want of a bundle.
        self._late_files = {file.path for file in self._files} & look.stalled
        self._holding = bool(self._late_files and settings.keys) and (left is None or left.holding)

    @contextlib.contextmanager
    def _tolerate(self, key: str) -> Iterator[None]:
        """What is not there just now is noted, and said once the log is there."""
        try:
            yield
        except AgentError as error:
            if not self._away.takes(key, error):
                raise

    @property
    def absent_keys(self) -> tuple[str, ...]:
        """The names of keys that the configuration expects and this machine was not given."""
        return self._opening.ring.absent

    @property
    def keys_not_given(self) -> tuple[str, ...]:
        """Those of them that systemd did not pass. The others are files, which are taken when they are there."""
        return tuple(name for name in self.absent_keys if name not in self._away.reasons)

    # -- the start --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            HostError: a socket cannot be bound.
        """
        settings = self._settings
        left = self._left
        for key, reason in self._away.reasons.items():
            self._log.error("start.without", key=key, reason=reason, hint="it is used as soon as it is there")
        # 2. The sockets.
        worker_sockets, absent = doors.worker_sockets(settings.listen, self._passed.sockets)
        for error in absent:
            self._log.error("listen.absent", reason=error.message, hint=error.hint)
        control = self._control_socket()
        loop = asyncio.get_running_loop()
        self._heed_signals(loop)

        # 3. Who the machine is, and 4. what was accepted here before.
        # What was handed over says it too: it is of this boot of this kernel. The machine is asked all the same, but
        # nobody waits for it.
        self._asked_late = left is not None
        found = [] if self._asked_late else await self._identify(IDENTIFY_SECONDS)
        if not await self._look_at_state([*worker_sockets, *([control] if control else [])]):
            return
        await self._restore(found)

        # 5. The doors, the keeper.
        addresses = doors.names(worker_sockets)
        if doors.pointer(addresses) is None:
            self._log.warning("environment.no_container_uri", http=addresses, hint=NO_POINTER_HINT)
        path_id = containerenv.path_id(self._token_key, machine.machine_id(self._root) or "")
        self._container_ids = (path_id,)
        self._publisher = Publisher(
            settings.environment,
            path_id=path_id,
            store=self.store,
            clock=self.clock,
            address=doors.pointer(addresses) or addresses[0],
            container_uri=doors.pointer(addresses) is not None,
            token=self._tokens[0],
            gid=self._gid,
            expects_bundle=bool(settings.keys),
        )
        changes = Changes(self.store)
        self._ring = changes.ring
        worker_door = self._worker_door(changes, (*settings.listen.hosts, *doors.hosts(addresses)))
        control_door = self._control_door()
        servers = await worker_door.listen(worker_sockets)
        if control is not None:
            servers.append(await loop.create_unix_server(control_door.listener.protocol, sock=control))
        self._log.info(
            "agent.started",
            version=agent.__version__,
            http=doors.names(worker_sockets),
            control=settings.listen.control,
            instance_id=self.store.memory.instance_id or None,
            keys=list(self._opening.ring.kids),
        )
        self._announcing = asyncio.create_task(self._announce(settings), name="announce doors")
        self._tell_absent_keys()
        if self._notifier.active:
            self._keep()
        later = self._do_later(control_door, servers, controlled=control is not None)
        try:
            await self._serve(found)
        finally:
            for task in later:
                task.cancel()
            await asyncio.gather(*later, return_exceptions=True)
            self._notifier.stopping()
            self._log.info("agent.stopping")
            for server in servers:
                server.close()
            await worker_door.listener.close(CLOSE_SECONDS)
            await control_door.listener.close(CLOSE_SECONDS / 4)
            await self._mint.close()
            await self._out.close()
            await self._workers_out.close()
            if "control" not in self._passed.sockets:
                doors.remove(settings.listen)
        self._log.info("agent.stopped")

    def _heed_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

    def _do_later(
        self, door: ControlDoor, servers: list[asyncio.Server], *, controlled: bool
    ) -> list[asyncio.Task[None]]:
        """What nobody waits for, and what the machine did not have yet."""
        later = [self._note_grace()]
        if not controlled:
            later.append(self._open_control_late(door, servers))
        if "environment.group" in self._away.reasons:
            later.append(self._find_group())
        if self._late_files:
            later.append(self._hear_late())
        return [self._resuming, *(asyncio.create_task(work) for work in later)]

    def _control_socket(self) -> socket.socket | None:
        try:
            return doors.control_socket(self._settings.listen, self._passed.sockets)
        except doors.AnotherAgentError:
            raise
        except HostError as error:
            # Workers are served without it.
            if self._away.reasons.get("listen.control") != error.message:
                self._log.error("start.without", key="listen.control", reason=error.message, hint=error.hint)
            self._away.reasons["listen.control"] = error.message
            return None

    async def _open_control_late(self, door: ControlDoor, servers: list[asyncio.Server]) -> None:
        while (control := self._control_socket()) is None:
            await self.clock.sleep(IDENTIFY_AGAIN_SECONDS)
        loop = asyncio.get_running_loop()
        servers.append(await loop.create_unix_server(door.listener.protocol, sock=control))
        self._away.reasons.pop("listen.control", None)

    async def _find_group(self) -> None:
        """The workers' group is not there yet (a directory service, cloud-init): until it is, the files are ours."""
        while True:
            await self.clock.sleep(IDENTIFY_AGAIN_SECONDS)
            with contextlib.suppress(ConfigError):
                self._gid = await asyncio.to_thread(group_id, self._settings.environment.group)
                break
        self._away.reasons.pop("environment.group", None)
        self._publisher.reconfigure(self._settings.environment, gid=self._gid, expects_bundle=bool(self._settings.keys))

    async def _hear_late(self) -> None:
        """Files that did not answer at the start are taken as soon as they do; only then does the boot grace count."""
        await self._first_look.answered(self._late_files)
        self._log.info("files.answer", paths=sorted(map(str, self._late_files)))
        told = ""
        while True:
            try:
                # As at a start: what is away is no reason to go without the rest.
                await self._apply(self._settings, [file.key for file in self._files], tolerant=True)
            except AgentError as error:
                if told != error.message:
                    self._log.error("reload.refused", reason=error.message, hint=error.hint)
                told = error.message
                await self.clock.sleep(LOOK_SECONDS)
            else:
                break
        if self._holding:
            self._holding = False
            self._began = self.clock.uptime()
            self.keeper.await_bundle(self._settings.identity.grace_seconds)
            await self._note_grace()

    async def _note_grace(self) -> None:
        began = grace.Began(self.store.memory.instance_id, self._began)
        await asyncio.to_thread(grace.write, Path(self._settings.listen.control).parent, began)

    async def _serve(self, found: list[Machine]) -> None:
        self._publishing = asyncio.create_task(self._publish_keys(), name="publish keys")
        self._serving = True
        if self._reload_wanted:
            self._on_hangup()
        self.clock.watch(self._resumed)
        background: list[asyncio.Task[Any]] = [
            asyncio.create_task(self.keeper.run(), name="keeper"),
            asyncio.create_task(self._tell_ready(), name="ready"),
            asyncio.create_task(self._follow_files(), name="files"),
            asyncio.create_task(self._reconcile(), name="reconcile"),
        ]
        if not found and (self._metadata.ec2 is not None or self._metadata.gce is not None):
            background.append(asyncio.create_task(self._identify_late(), name="identify"))
        if self._watchdog is not None:
            background.append(asyncio.create_task(self._feed_watchdog(self._watchdog), name="watchdog"))
        stopped = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            while not stopped.done():
                done, _ = await asyncio.wait({stopped, *background}, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stopped}:
                    background.remove(task)
                    task.result()  # a part that must not end has: its error is ours
            await self._publisher.settled(CLOSE_SECONDS / 4)
        finally:
            ending = (
                stopped,
                self._publishing,
                self._announcing,
                *background,
                *self._reloading,
            )
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            self.clock.close()

    async def _identify(self, seconds: float) -> list[Machine]:
        """Ask the metadata services who this machine is; what does not answer in time is not known yet."""
        asked = []
        if self._metadata.ec2 is not None:
            asked.append(ec2_machine(self._metadata.ec2))
        if self._metadata.gce is not None:
            asked.append(gce_machine(self._metadata.gce))
        answers = await asyncio.gather(*(_in_time(question, seconds) for question in asked))
        return [answer for answer in answers if answer is not None]

    async def _look_at_state(self, sockets: list[socket.socket]) -> bool:
        """Have the state directory read, and wait for it as long as must be; false when told to stop meanwhile."""
        left = self._left
        self._reading = asyncio.create_task(self._read_state(), name="read state")
        await asyncio.wait({self._reading}, timeout=self._first_look.left)
        if not self._reading.done():
            self._log.error(
                "state.stalled",
                reason=disk.STALLED,
                http=doors.names([one for one in sockets if one.family != socket.AF_UNIX]),
                hint="look at the disk of state.directory",
            )
            if left is None and not await self._meanwhile(sockets):
                self._reading.cancel()
                return False
        handed = left.token_key if left is not None else None
        self._token_key = await asyncio.to_thread(_token_key, Path(self._settings.state.directory), handed)
        return True

    async def _read_state(self) -> disk.Read:
        """Everything that is asked of the state directory, in threads: it may not answer."""
        await self._claim()
        read = await asyncio.to_thread(self._load)
        boot = await asyncio.to_thread(machine.boot, Path(self._settings.state.directory), self._environ, self._root)
        return disk.Read(*read, boot)

    async def _meanwhile(self, sockets: list[socket.socket]) -> bool:
        """Refuse everybody while nobody knows what was decided here; false when told to stop meanwhile."""
        ready_at = self.clock.boottime() + self._settings.identity.grace_seconds + READY_AFTER_SECONDS
        reading, stopped = self._reading, asyncio.create_task(self._stop.wait(), name="stop")
        async with disk.answer_meanwhile(sockets):
            while not reading.done() and not stopped.done():
                self._notifier.status(f"nothing is served: {disk.STALLED}")
                self._notifier.alive()
                if self.clock.boottime() >= ready_at:
                    self._notifier.ready(f"nothing is served: {disk.STALLED}")
                await asyncio.wait({reading, stopped}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        return reading.done()

    async def _reconcile(self) -> None:
        """The state directory answers late, and what it says may be later than what was handed over.

        Raises:
            HostError: it is: the next start has both to choose from.
        """
        if self._reading.done():
            return
        read = await asyncio.shield(self._reading)
        self._log.info("state.answers")
        if not read.broken and disk.is_later(read.memory, self.store.memory):
            raise HostError("state.directory: it has a later memory than the one that was handed over: start again")
        if read.write:
            self.keeper.durable.write()

    async def _restore(self, found: list[Machine]) -> None:
        """Bring back the memory of this instance, and the bundle that was in force."""
        left, self._kept = self._left, self._left_to_us()
        if self._kept is not None:
            self._kept.teach(self.clock)
        late = not self._reading.done()
        boot = left.memory.boot_id if late and left is not None else ""
        unknown = disk.Read(closed_memory(""), None, write=False, broken=True, boot=boot)
        answer = unknown if late else self._reading.result()
        read, sealed, write, broken, boot_id = answer
        instance_id = self._instance_id(found)
        if left is not None and instance_id and left.memory.instance_id not in ("", instance_id):
            left = self._left = None  # what was left is another machine's
        remembered, sealed = handover.reconcile(left, Memory() if broken else read, sealed)
        if broken and left is None:
            remembered = read
        firmware = machine.firmware_names(self._root)
        self._machine = (boot_id, firmware)
        waited = await self._waited(instance_id or remembered.instance_id)
        now = self.clock.now()
        self.store = Store(compose.policy(self._settings), remembered, now, self._rng, waited=waited)
        self.keeper = Keeper(
            store=self.store,
            issuer=self._mint,
            opener=self._opening,
            recorder=disk.Later(self._state, self._reading),
            sources=[*self._sources, self._push],
            clock=self.clock,
            rng=self._rng,
            changed=self._changed,
            follow=self._follow,
        )
        self._time_moved = self.keeper.time_moved
        if left is not None:
            self._own_audiences = frozenset(left.audiences)
            self.keeper.observe(left.facts)
            signed = handover.decoded(left.signed)
            if sealed is not None and signed is not None and sealed == handover.decoded(left.sealed):
                self._opening.remember(sealed, compose.Opened(signed, left.recipient))
        self._take_facts(found)
        self._copy = sealed
        # A key service may be slow, down or silent: the doors open all the same, and what it decides is pending.
        self._resuming = asyncio.create_task(self._resume(instance_id, write=write), name="resume")
        await asyncio.wait({self._resuming}, timeout=RESUME_SECONDS)
        if write and (remembered != read or broken or "state.directory" in self._away.reasons):
            # Over the broken one at once: the start after this one must not find an empty memory, and open. And where
            # nothing can be written, this says so, and tries again.
            self.keeper.durable.write()

    async def _resume(self, instance_id: str, *, write: bool) -> None:
        await self._identified(instance_id, write=write)
        self._give_back()

    def _give_back(self) -> None:
        """Give the store what the process before us held, as soon as the bundle that it came of is in force."""
        left, kept_ = self._left, self._kept
        if kept_ is not None:
            holdings = kept_.holdings(self.store.memory.instance_id, self.clock)
            self._log.info("credentials.restored", count=self.keeper.restore(holdings))
            if kept_.instance_id == self.store.memory.instance_id:
                self.keeper.restore_id_tokens(kept_.id_tokens)
        if left is not None:
            self.keeper.go_on(*left.rest(self.clock, self._opening.trust))
            if not self._serving and self.store.bundle is not None:
                handover.go_on(self._sources, left.positions, self.keeper.durable.sealed)
        if self.store.bundle is not None or self.store.memory.active is None:
            self._left = self._kept = None

    async def _claim(self) -> None:
        """Become the one owner of the state directory.

        Whom the service manager gave the sockets is the one agent here. The process before it has ended, but for one
        that hangs in the kernel on a disk that does not answer: that one is not waited for, and until it is gone
        nothing is written.

        Raises:
            HostError: another agent has it, and keeps it.
        """
        deadline = self.clock.boottime() + CLAIM_SECONDS
        while not await asyncio.to_thread(self._claimed):
            if self._passed.sockets:
                self._log.error("state.busy", reason="the process before this one hangs, and still owns the directory")
                return
            if self.clock.boottime() >= deadline:
                raise HostError(
                    f"state.directory: another agent uses {self._settings.state.directory}",
                    hint="two agents would take back each other's sequence numbers: stop the other (systemctl stop "
                    "credential-agent), or give this one a directory of its own",
                )
            await asyncio.sleep(0.05)

    def _claimed(self) -> bool:
        try:
            return self._state.claim()
        except HostError as error:
            # A file system without locks (some of the network's) is no reason to leave a worker without identity.
            self._log.error("state.not_locked", reason=error.message)
            return True

    def _load(self) -> tuple[Memory, bytes | None, bool, bool]:
        """What was remembered, the sealed bundle, whether it may be written over, and whether it cannot be read."""
        try:
            remembered, sealed = self._state.load()
        except HostError as error:
            self._log.error("memory.unreadable", reason=error.message)
            self._state.keep_broken()
            return closed_memory(""), None, not isinstance(error, StateVersionError), True
        return remembered, sealed, True, False

    async def _identified(self, instance_id: str, *, write: bool = True) -> None:
        boot_id, firmware = self._machine
        verdict = whose(self.store.memory, instance_id, boot_id=boot_id, firmware=firmware)
        if verdict is not Whose.OURS and self._left is not None and not instance_id:
            verdict = Whose.OURS  # it was handed over, in this very boot of this kernel
        if verdict is Whose.ANOTHERS:
            self._own_audiences = frozenset()
            self._left = self._kept = None
            self._opening.forget(but=None)
            self.keeper.observe(Facts())
        if verdict is Whose.UNKNOWN:
            self._log.warning("memory.doubtful", hint="nothing it decided is served until this machine's name is known")
        await self.keeper.intake.identified(
            verdict, instance_id, boot_id=boot_id, firmware=firmware, sealed=self._copy, write=write
        )
        if verdict is not Whose.UNKNOWN:
            self._copy = None

    async def _waited(self, instance_id: str) -> timedelta:
        """How much of the boot grace was had already."""
        if self._left is None:
            directory, uptime = Path(self._settings.listen.control).parent, self.clock.uptime()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AT_RUN_SECONDS):
                    noted = await asyncio.to_thread(grace.read, directory, uptime=uptime)
                    if noted is not None and (not noted.instance_id or noted.instance_id == instance_id):
                        self._began = noted.began
        if self._holding:
            return -HELD
        return timedelta(seconds=self.clock.uptime() - self._began)

    def _left_to_us(self) -> kept.Kept | None:
        """What the process before us gave systemd to hold."""
        try:
            data = self._passed.take_each(kept.NAME)
        except HostError as error:
            # They are minted anew; to fail would be to fail at every start, since systemd hands it over each time.
            self._log.error("credentials.not_restored", reason=error.message)
            return None
        found = [left for left in (kept.decode(one, self.clock) for one in data) if left is not None]
        return max(found, key=lambda left: left.uptime, default=None)

    async def _identify_late(self) -> None:
        """The metadata service did not answer at the start: keep asking, and act on what it says then."""
        wait = 0.0 if self._asked_late else IDENTIFY_AGAIN_SECONDS
        while True:
            await self.clock.sleep(wait)
            wait = IDENTIFY_AGAIN_SECONDS
            found = await self._identify(IDENTIFY_SECONDS)
            instance_id = self._instance_id(found)
            if not instance_id:
                continue
            await self._identified(instance_id)
            self._take_facts(found)
            self.keeper.intake.reconsider()
            return

    def _instance_id(self, found: list[Machine]) -> str:
        """The name of this machine; empty while it is not known."""
        if self._named != "auto":
            return f"config:{self._named}"
        if found:
            return found[0].instance_id
        if self._metadata.ec2 is not None or self._metadata.gce is not None:
            return ""
        own = machine.machine_id(self._root)
        return f"machine:{own}" if own else ""

    def _take_facts(self, found: list[Machine]) -> None:
        facts = self.store.facts()
        for one in found:
            self._own_audiences |= one.audiences
            seen = {name: value for name, value in msgspec.structs.asdict(one.facts).items() if value is not None}
            facts = msgspec.structs.replace(facts, **seen)
        self._opening.audiences = self._own_audiences.union(self._settings.identity.audience)
        self.keeper.observe(facts)

    # -- the doors --------------------------------------------------------------------------------------------------

    def _worker_door(self, changes: Changes, hosts: tuple[str, ...]) -> WorkerDoor:
        settings = self._settings
        through = settings.pass_through.enabled
        ec2, gce = self._metadata.passed(self._workers_out)
        if self._shares.connections < settings.listen.max_connections:
            self._log.warning(
                "connections.lowered",
                max_connections=self._shares.connections,
                configured=settings.listen.max_connections,
                descriptors=self._shares.limit,
                hint="raise LimitNOFILE of the service",
            )
        hide, show = compose.hidden(settings)
        return WorkerDoor(
            ServeSettings(
                token_key=self._token_key,
                container_tokens=lambda: self._tokens,
                imdsv1=settings.aws.imdsv1,
                extra_hosts=hosts,
                container_ids=lambda: self._container_ids,
                hide=hide,
                show=show,
                expects_bundle=lambda: bool(self._settings.keys),
                wall_ahead=lambda: timedelta(seconds=self.clock.wall_error_seconds),
                refused=self._refused_why,
                early_phase=EARLY_STEP * self._rng.random(),
                own_namespaces=compose.own_namespaces(settings),
                passed_connections=self._shares.passed,
                limits=Limits(
                    connections=self._shares.connections, held=min(4096, max(1, self._shares.connections // 2))
                ),
            ),
            self.store,
            self.clock,
            changed=changes,
            demand=self.keeper.issuing.id_token,
            scoped=self.keeper.issuing.scoped,
            ec2=ec2 if through else None,
            gce=gce if through else None,
            access=self._access("worker"),
            broken=self._broken,
            owners=self._owners(),
        )

    def _owners(self) -> Owners:
        try:
            diagnosis = SocketDiagnosis(chain.from_iterable(self._passed.sockets.values()))
        except OSError:
            # A sandbox without netlink, and nothing was passed: the table tells it too, later.
            return Owners(read_socket_table)
        return Owners(read_socket_table, diagnosis.owner, close=diagnosis.close)

    def _refused_why(self) -> str | None:
        """Why the last bundle that came was not taken; nothing while one is in force."""
        refusal = self.keeper.intake.last_refusal
        return None if refusal is None or self.store.bundle is not None else f"{refusal.code}: {refusal.reason}"

    def _control_door(self) -> ControlDoor:
        return ControlDoor(
            routes(
                status=lambda: report.status(self.store, self.keeper.counters, self._vitals(), self.clock.now()),
                metrics=lambda: report.metrics(self.store, self.keeper.counters, self._vitals(), self.clock.now()),
                keys=self._public_keys,
                push=self._pushed,
                refresh=self._look_now,
            ),
            clock=self.clock,
            access=self._access("control"),
            broken=self._broken,
        )

    async def _pushed(self, data: bytes) -> Ack:
        ack = await self._push.push(data)
        # Who hears "accepted" may start a program at once, or believe that what was withdrawn is gone.
        await self._publisher.settled(SETTLE_SECONDS)
        return ack

    def _public_keys(self) -> list[dict[str, str]]:
        found = []
        for key in self._opening.ring.keys:
            public = key.public_jwk()
            if public is not None:
                found.append(public)
        return found

    def _access(self, door: str) -> Callable[[Access], None]:
        """Count every request; say which were refused, but not more than once a minute for each status."""

        def access(one: Access) -> None:
            key = (door, one.status)
            self._requests[key] = self._requests.get(key, 0) + 1
            if one.status == int(arrival.FINGERPRINT) and one.user_agent == arrival.USER_AGENT:
                return  # every half minute, for as long as the machine runs
            if one.status in (0, 403, 429) or one.status >= 500:
                now = time.monotonic()
                if now - self._complained.get(one.status, -60.0) >= 60.0:
                    self._complained[one.status] = now
                    self._log.info("request.refused", door=door, **msgspec.structs.asdict(one))

        return access

    def _broken(self, request: Any, error: Exception) -> None:
        self._log.error("request.crashed", path=request.path, error=type(error).__name__, exc_info=error)

    def _vitals(self) -> report.Vitals:
        return report.Vitals(
            started=self._started,
            wall_error_seconds=self.clock.wall_error_seconds,
            clock=_clock_vitals(self.clock),
            sources=self.keeper.source_state,
            refusal=self.keeper.intake.last_refusal,
            memory_unwritten=self.keeper.durable.unwritten,
            refused_variables=self._publisher.refused(self.clock.now()),
            keys=self._opening.ring.kids,
            absent_keys=self.keys_not_given,
            audiences=tuple(sorted(self._opening.audiences | self._opening.ring.audiences)),
            requests=self._requests,
            files=self._loaded_files,
            log_dropped=log.dropped(),
            redirect=arrival.read(),
            published=self._announcer.state,
            overwritten=self._announcer.overwritten,
            without={**self._away.reasons, **self._publisher.troubles},
        )

    # -- while it runs ----------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """The store may answer otherwise than before: wake who waits, write files, tell systemd."""
        if self.store.bundle is not None and (self._left is not None or self._kept is not None):
            self._give_back()
        self._ring()
        self._publisher.changed()
        if self._notifier.active:
            self._keep()
            self._notifier.status(self._status_line())

    def _handover(self) -> handover.Handover:
        """What the next process is to be told, beside the credentials."""
        sealed = self.keeper.durable.sealed
        opened = self._opening.opened(sealed) if sealed is not None else None
        if sealed is None or opened is not None:
            self._opening.forget(but=sealed)
        return handover.Handover(
            uptime=self.clock.uptime(),
            now=self.clock.now(),
            began=self._began,
            memory=self.store.memory,
            sealed=handover.encoded(sealed),
            signed=handover.encoded(opened.signed if opened is not None else None),
            recipient=opened.recipient if opened is not None else "",
            signers=handover.fingerprints(self._opening.trust),
            audiences=sorted(self._own_audiences),
            facts=self.store.state.observed,
            files=dict(self._away.files),
            holding=self._holding,
            positions=handover.positions(self._sources, sealed),
            ephemeral=handover.jwk(self._opening.ring.keys),
            token_key=handover.encoded(self._token_key),
            tokens=list(self._tokens),
            waiting=leftovers.waiting(self.store.state),
            remnants=handover.remnants(self.store),
        )

    def _keep(self, attempts: int = TELL_AGAIN_ATTEMPTS) -> None:
        """Have systemd hold what we hold, and nothing else: what was withdrawn must not outlast a full queue."""
        if self._keep_again is not None:
            self._keep_again.cancel()
            self._keep_again = None
        if self._left is not None or self._kept is not None:
            return  # not yet given back: what systemd holds is more than what we do
        told = self._notifier.keep(kept.NAME, kept.encode(self.store, self.clock))
        latest = self._handover()
        if not latest.same_as(self._handed):
            if self._notifier.keep(handover.NAME, handover.encode(latest)):
                self._handed = latest
            else:
                told = False
        if not told:
            again = asyncio.get_running_loop().call_later
            wait = TELL_AGAIN_SECONDS if attempts > 1 else TELL_SLOWLY_SECONDS
            self._keep_again = again(wait, self._keep, max(attempts - 1, 1))

    def _status_line(self) -> str:
        now = self.clock.now()
        said = []
        for cloud in Cloud:
            answer = self.store.view(cloud, now)
            said.append(f"{cloud}: {answer.name} ({answer.origin})" if isinstance(answer, Live) else f"{cloud}: none")
        return ", ".join(said)

    def _hear(self, witness: Witness, date: datetime, took: float) -> None:
        """A ``Date`` from somebody who may say what time it is has just come."""
        if self.clock.hear(witness, date, took):
            self._time_moved()

    def _resumed(self) -> None:
        """The machine woke up, or its clock was set."""
        self._out.reconnect()
        self.keeper.time_moved()

    def _follow(self) -> bool:
        doubtful = self.clock.follow()
        keeper = self.clock.keeper
        if keeper.lost > self._lost_told:
            self._log.warning(
                "clock.time_lost", seconds=round(keeper.lost - self._lost_told, 1), believed=str(keeper.believed)
            )
            self._lost_told = keeper.lost
        if doubtful:
            ahead = {str(witness): round(seconds, 1) for witness, seconds in keeper.differences.items()}
            self._log.info("clock.doubtful", believed=str(keeper.believed), ahead_seconds=ahead)
        return doubtful

    async def _tell_ready(self) -> None:
        """Say that we are ready once no answer is pending, or when waiting longer would help nobody."""
        deadline = self.clock.boottime() + self._settings.identity.grace_seconds + READY_AFTER_SECONDS
        while self.clock.boottime() < deadline:
            now = self.clock.now()
            if not any(isinstance(self.store.view(cloud, now), Pending) for cloud in Cloud):
                break
            await asyncio.sleep(0.05)
        await self._publisher.settled(SETTLE_SECONDS)
        self._told_ready = True
        told = self._notifier.ready(self._status_line())
        memory.settle()
        self._log.info("agent.ready", seconds=round((self.clock.now() - self._started).total_seconds(), 3))
        while self._notifier.active and not told:
            # Its queue is full (systemd reloads itself, say). A start that is never told is one that it ends.
            await asyncio.sleep(TELL_AGAIN_SECONDS)
            told = self._notifier.ready(self._status_line())

    async def _feed_watchdog(self, seconds: float) -> None:
        """Feed it only while the loop that renews goes round; that this runs shows that the doors' loop does."""
        pulse = Pulse(STALE_LOOP_SECONDS)
        while True:
            if pulse.beats(self.keeper.last_step, time.monotonic()):
                self._notifier.alive()
            await asyncio.sleep(seconds / 3)

    async def _publish_keys(self) -> None:
        """Bring the public half of an ephemeral key to where senders look for it."""
        ephemeral = self._ephemeral
        if ephemeral is None:
            return
        public = msgspec.json.encode(ephemeral.public_jwk())
        entries = [entry for entry in self._settings.keys if isinstance(entry, config.EphemeralKey)]
        await asyncio.gather(*(self._announcer.run(entry, public) for entry in entries))

    def _on_hangup(self) -> None:
        if not self._serving:
            self._reload_wanted = True  # there is nothing yet that could be told otherwise: after the start
            return
        if self._told_ready:
            self._notifier.reloading(monotonic_seconds=time.monotonic())
        self._reloading.add(task := asyncio.create_task(self._reload_all(), name="reload"))
        task.add_done_callback(self._reloading.discard)

    async def _reload_all(self) -> None:
        try:
            # The file of the configuration may lie where the others do.
            settings = await self._reader.ask(Path("the configuration"), self._reload)
            await self._apply(settings)
        except AgentError as error:
            # The running configuration stays: a typing error must not cost a worker its identity.
            self._log.error("reload.refused", reason=error.message, hint=error.hint)
        finally:
            if self._told_ready:
                # The end of a reload is told with the same word as the end of a start, which it must not anticipate.
                self._notifier.ready(self._status_line())
        # What is looked at twice a second by itself is let be: it may be half written just now.
        slow = [source for source in self._sources if not isinstance(source, FileSource)]
        await look_now(slow, self.keeper.intake.submit)

    async def _look_now(self) -> list[dict[str, str | int | None]]:
        """Have every source looked at now: ``credential-agent refresh``, and each reload."""
        outcomes = await look_now(self._sources, self.keeper.intake.submit)
        await self._publisher.settled(SETTLE_SECONDS)
        return outcomes

    async def _follow_files(self) -> None:
        """Apply the running configuration once more when a file that it names has changed and then stayed as it is."""
        before = self._seen
        told: object = None
        while True:
            await self.clock.sleep(LOOK_SECONDS)
            await self._rotate_token()
            seen, silent = await looks_patiently(self._files, self._patience, self._seen)
            self._tell_silent(silent)
            settled, before = seen == before, seen
            if not settled or seen == self._seen:
                continue
            changed = [file.key for file in self._files if seen.get(file.path) != self._seen.get(file.path)]
            try:
                await self._apply(self._settings, changed)
            except StalledError as error:
                # Another file keeps this change from being applied. It is tried again, and said once.
                if told != (told := (error.message, changed)):
                    self._log.error("reload.refused", reason=error.message, hint=error.hint, changed=changed)
            except AgentError as error:
                # What was loaded stays in force, and this is said once for each change, not at each look.
                self._log.error("reload.refused", reason=error.message, hint=error.hint, changed=changed)
                self._seen = seen

    def _tell_silent(self, silent: list[str]) -> None:
        """Say of which files nobody knows whether they have changed."""
        now = set(silent)
        for key in sorted(now - self._silent):
            self._log.error("file.stalled", key=key, hint="what was loaded from it stays in force; look at its mount")
        for key in sorted(self._silent - now):
            self._log.info("file.answers", key=key)
        self._silent = now

    async def _apply(self, settings: config.Config, changed: Sequence[str] = (), *, tolerant: bool = False) -> None:
        """Have ``settings`` in force, with what their files hold now: all of it, or none.

        Raises:
            ConfigError: a file is not what it should be.
            StalledError: a file does not answer.
        """
        async with self._applying:
            ephemeral, files = self._ephemeral, dict(self._away.files)
            load = partial(self._load_files, settings, ephemeral, compose.Away(files) if tolerant else None)
            loaded = await self._reader.ask(Path("a file that the configuration names"), load)
            await self._rotate_token()  # before the files are written: it may be the operator's
            self._take(settings, loaded, changed)

    def _load_files(
        self, settings: config.Config, ephemeral: keys.LocalKey | None, away: compose.Away | None
    ) -> _Files:
        """Read everything that ``settings`` name. In a thread: no file may hold up the loop."""
        tolerant = contextlib.nullcontext() if away is None else contextlib.suppress(ConfigError)
        files = named(settings, credentials_directory=self._environ.get("CREDENTIALS_DIRECTORY"))
        seen = looks(files)
        gid = self._gid
        loaded = describe(files) if away is None else describe(files, away.takes)
        pinned = compose.trust(settings, away)
        ring = self._keyring(settings, ephemeral, away)
        with tolerant:
            gid = group_id(settings.environment.group)
            check_paths(settings.environment)
        if away is None:
            away = compose.Away()
            compose.trust(settings, away)
        return _Files(files, seen, loaded, pinned, ring, gid, away)

    def _take(self, settings: config.Config, files: _Files, changed: Sequence[str]) -> None:
        old, pinned, ring, gid = self._settings, files.trust, files.ring, files.gid
        self._files, self._seen, self._loaded_files = files.named, files.seen, files.loaded
        audiences = self._own_audiences.union(settings.identity.audience)
        opening = self._opening
        narrower = not compose.trusts_at_least(pinned, opening.trust) or not audiences >= opening.audiences
        self._settings = settings
        opening.trust, opening.ring, opening.audiences = pinned, ring, audiences
        self.keeper.reconfigure(compose.policy(settings))
        self._away = files.away
        self._publisher.reconfigure(settings.environment, gid=gid, expects_bundle=bool(settings.keys))
        # As the doors and the token stay where they were, so does what is told of them.
        told = msgspec.structs.replace(settings, listen=self._loaded.listen, environment=self._publisher.settings)
        self._announcing = asyncio.create_task(self._announce(told), name="announce doors")
        log.set_up(level=settings.log.level, style=settings.log.format)
        if narrower:
            self.keeper.intake.review()
        self.keeper.intake.reconsider()
        self._log.info(
            "reload.applied",
            needs_restart=needs_restart(settings, self._loaded),
            changed=list(changed),
            signers=len(pinned.signers),
            keys=list(ring.kids),
            files=[msgspec.to_builtins(file) for file in self._loaded_files],
        )
        if settings.redirect != old.redirect:
            self._log.warning("reload.elsewhere", section="redirect", hint=_REDIRECT_HINT)
        self._tell_absent_keys()
        if self._notifier.active:
            self._keep()
        if settings.keys != old.keys:
            self._publishing.cancel()
            self._publishing = asyncio.create_task(self._publish_keys(), name="publish keys")

    async def _announce(self, settings: config.Config) -> None:
        try:
            await asyncio.to_thread(doors.announce, settings, self._publisher.address)
        except HostError as error:
            self._log.warning("doors.not_announced", reason=error.message)

    async def _rotate_token(self) -> None:
        """Take the token that an operator has put into the file. Programs that read the one before may use it on."""
        path = Path(self._publisher.settings.token_file)
        written = None
        with contextlib.suppress(StalledError):
            written = await self._patience.ask(path, partial(written_token, path))
        if written is not None and written not in self._tokens:
            self._tokens = (written, self._tokens[0])
            self._publisher.token = written
            self._publisher.changed()
            if self._notifier.active:
                self._keep()
            self._log.info("token.rotated")

    def _keyring(
        self, settings: config.Config, ephemeral: keys.LocalKey | None, away: compose.Away | None = None
    ) -> keys.Keyring:
        return compose.keyring(
            settings,
            out=self._out,
            mint_=self._mint,
            credentials_directory=self._environ.get("CREDENTIALS_DIRECTORY"),
            ephemeral=ephemeral,
            away=away,
        )

    def _tell_absent_keys(self) -> None:
        # No error: the image of a worker is made, and checked, before the worker has a key. A file is `start.without`.
        for name in self.keys_not_given:
            self._log.warning("key.absent", credential=name, hint=ABSENT_KEY_HINT)

    @property
    def _ephemeral(self) -> keys.LocalKey | None:
        """The key that was made at the start, if the configuration asks for one."""
        return next(
            (k for k in self._opening.ring.keys if isinstance(k, keys.LocalKey) and k.kind == "ephemeral"), None
        )


class Checked(NamedTuple):
    """What a check found.

    Attributes:
        faults: what is missing or wrong, with the key of each.
        told: what the agent would start without, and a person should know of: a line each.
    """

    faults: Sequence[tuple[str, AgentError]]
    told: Sequence[str]


def check(settings: config.Config, *, environ: Mapping[str, str], root: Path = Path("/")) -> Checked:
    """Open everything that the configuration names, start nothing, and tell of everything that is wrong."""
    faults = compose.Faults()
    daemon = Daemon(settings, environ=environ, reload=lambda: settings, root=root, faults=faults)
    told = [f"key {name}: not given to this machine; {ABSENT_KEY_HINT}" for name in daemon.keys_not_given]
    told += [
        f"{file.key}: {file.path}: cannot be read; the source brings nothing until it can"
        for file in named(settings, credentials_directory=environ.get("CREDENTIALS_DIRECTORY"))
        if file.at_use and not os.access(file.path, os.R_OK)
    ]
    if doors.pointer(settings.listen.http) is None:
        told.append(f"listen.http: {NO_POINTER_HINT}")
    return Checked(faults.errors, told)


def _clock_vitals(clock: SystemClock) -> report.ClockVitals:
    keeper = clock.keeper
    return report.ClockVitals(
        believed=str(keeper.believed),
        vouched=keeper.vouched,
        heard=keeper.heard,
        moves=keeper.moves,
        lost_seconds=keeper.lost,
        differences={str(witness): seconds for witness, seconds in keeper.differences.items()},
    )


async def _in_time(question: Coroutine[Any, Any, Machine | None], seconds: float) -> Machine | None:
    try:
        async with asyncio.timeout(seconds):
            return await question
    except (UpstreamError, TimeoutError):
        return None


def _directory(
    name: str, key: str, tolerate: Callable[[str], contextlib.AbstractContextManager[None]], ask: compose.Ask
) -> Path:
    path = Path(name)

    def look() -> None:
        if not path.is_dir():
            raise ConfigError(f"{key}: expected an existing directory, got {name!r}")
        if not os.access(path, os.W_OK | os.X_OK):
            raise ConfigError(f"{key}: {name!r} is not writable by the agent")

    with tolerate(key):
        ask(path / MEMORY_FILE, look)
    return path


def _token_key(directory: Path, handed: Secret | None) -> bytes:
    """The key of the EC2 session tokens, kept over restarts: some clients never drop a token that turned invalid."""
    before = handover.decoded(handed)
    if before is not None and len(before) == 32:
        return before  # the disk is not asked: it may be away
    path = directory / "imds.key"
    try:
        data = read_plain(path, 64)
        if len(data) == 32:
            return data
    except OSError:
        pass
    data = secrets.token_bytes(32)
    try:
        write_atomic(path, data, mode=0o600)
    except HostError as error:
        # A full disk costs clients their tokens at the next restart, not a worker its identity now.
        structlog.get_logger().error("imds_key.not_written", reason=error.message)
    return data


__all__ = ["LOADED_ONCE", "Daemon", "check", "needs_restart"]
