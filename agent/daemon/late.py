"""What did the machine not have at the start, or has lost since? Each is used as soon as it is there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from agent import config
from agent.core.announced import FILE
from agent.core.errors import ConfigError, HostError
from agent.daemon import grace, listening
from agent.daemon.configured import Configured, Written
from agent.daemon.prepare import Prepared
from agent.daemon.publish import Publisher, group_id
from agent.daemon.reload import Reloader
from agent.daemon.restore import Restorer
from agent.daemon.socket_name import LOOK_SECONDS, LOST, LOST_HINT, SocketName
from agent.daemon.unending import unending
from agent.daemon.who import ASK_AGAIN_SECONDS
from agent.host import ticks
from agent.host.clock import SystemClock
from agent.serve.control import ControlEndpoint
from agent.serve.handed import Guarding

_CONTROL: Final = "listen.control"


class Server(Protocol):
    """Something that listens."""

    def close(self) -> None:
        """Accept no more connections."""


class Late:
    """See the module.

    Args:
        settings: what the process was started with.
        file: the configuration, which may not have answered.
        prepared: the files that were opened, and those that were away.
        passed: the sockets that the service manager passed.
        restorer: knows when the boot grace began.
        clock: time.
    """

    def __init__(
        self,
        settings: config.Config,
        *,
        file: Configured,
        prepared: Prepared,
        passed: Mapping[str, Sequence[socket.socket]],
        restorer: Restorer,
        clock: SystemClock,
    ) -> None:
        self._settings = settings
        self._file = file
        self._prepared = prepared
        self._passed = passed
        self._restorer = restorer
        self._clock = clock
        self._control: SocketName | None = None
        self._note = grace.Note(Path(settings.listen.control).parent)
        self._log = structlog.get_logger()

    def begin(
        self,
        operators: ControlEndpoint,
        servers: list[Server],
        *,
        reloader: Reloader,
        publisher: Publisher,
        reload: Callable[[], None],
    ) -> list[asyncio.Task[None]]:
        """Begin to wait for all that is not there.

        Args:
            operators: the endpoint of the control socket.
            servers: has the control socket's server, or gets it when it is there.
            reloader: applies the files that had not answered.
            publisher: is told of the workers' group.
            reload: what SIGHUP does.
        """
        self.note()
        watches: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "control socket": partial(self._keep_control, operators, servers),
            "files for others": partial(self._keep_files, reloader, publisher),
            "state directory": self._keep_memory,
            "age": partial(self._prepared.age.run, lambda: self._restorer.controller.store.memory),
        }
        if "environment.group" in self._prepared.away.reasons:
            watches["group"] = partial(self._find_group, reloader, publisher)
        if self._prepared.late_files:
            watches["late files"] = partial(self._hear_late, reloader)
        if self._file.late is not None:
            watches["late configuration"] = partial(self._hear_file, asyncio.wrap_future(self._file.late), reload)
        return [
            asyncio.create_task(unending(watch, work=work, sleep=self._clock.sleep), name=work)
            for work, watch in watches.items()
        ]

    def control_socket(self) -> socket.socket | None:
        """The control socket; ``None``: it cannot be opened just now, which is logged once.

        Raises:
            AnotherAgentError: another agent listens on it.
        """
        try:
            return listening.control_socket(self._settings.listen, self._passed)
        except listening.AnotherAgentError:
            raise
        except HostError as error:
            self._without_control(error.message, error.hint)  # workers are served without it
            return None

    def _without_control(self, reason: str, hint: str | None) -> None:
        reasons = self._prepared.away.reasons
        if reasons.get(_CONTROL) != reason:
            self._log.error("start.without", key=_CONTROL, reason=reason, hint=hint)
        reasons[_CONTROL] = reason

    def _has_control(self) -> None:
        self._prepared.away.reasons.pop(_CONTROL, None)  # asked each time: a reload takes note anew, elsewhere

    def listen(self, operators: ControlEndpoint, control: socket.socket) -> Server:
        """Answer operators on the control socket, from now on."""
        name, self._control = SocketName(control), None  # what nobody listens on is not there, whatever its name
        server = operators.listener.listen([Guarding(control)])
        self._control = name
        return server

    def remove_control(self) -> None:
        """Remove the control socket, if we made it."""
        if self._control is not None and "control" not in self._passed:
            self._control.remove()

    async def _keep_control(self, operators: ControlEndpoint, servers: list[Server]) -> None:
        """Open the control socket as soon as that is possible, and again when its name was taken away."""
        while True:
            every = ASK_AGAIN_SECONDS if self._control is None else LOOK_SECONDS
            await self._clock.sleep(ticks.left(self._clock.boottime(), every))
            if self._control is not None:
                if not await self._control.lost():
                    self._has_control()
                    continue
                if "control" in self._passed:
                    self._without_control(LOST, LOST_HINT.format(unit="credential-agent-control.socket"))
                    continue
            try:
                control = self.control_socket()
            except listening.AnotherAgentError as error:  # it is the one that is found
                self._without_control(error.message, error.hint)
                continue
            if control is not None:
                for server in servers:
                    server.close()
                servers[:] = [self.listen(operators, control)]
                self._has_control()
                self._log.info("socket.made", key=_CONTROL)

    async def _keep_files(self, reloader: Reloader, publisher: Publisher) -> None:
        """Write again what was taken away from where programs, and the next process, look for it."""
        directory = Path(self._settings.listen.control).parent
        announced, note = directory / FILE, directory / grace.FILE

        def look(missing: Callable[[], bool]) -> tuple[bool, dict[Path, bool]]:
            return missing(), {path: os.path.lexists(path) for path in (announced, note)}

        there = {announced: True, note: True}  # where it could not be written, that was told
        while True:
            await self._clock.sleep(ticks.left(self._clock.boottime(), LOOK_SECONDS))
            before = there
            is_missing, there = await asyncio.to_thread(look, publisher.missing())
            if is_missing:
                publisher.changed()
            if before[announced] and not there[announced]:
                reloader.announce()
            if before[note] and not there[note]:
                self._note.again()

    async def _keep_memory(self) -> None:
        """Write again what somebody has removed from the state directory: the next boot would find nothing decided."""
        while True:
            await self._clock.sleep(ticks.left(self._clock.boottime(), LOOK_SECONDS))
            durable, lacks = self._restorer.controller.durable, self._prepared.state.lacks
            # Twice: it may be about to be written, and what is withdrawn is removed first.
            if await asyncio.to_thread(lacks) and durable.on_disk and await asyncio.to_thread(lacks):
                self._log.error("memory.lost", hint="find out who removes files from the state directory")
                durable.write()

    async def _find_group(self, reloader: Reloader, publisher: Publisher) -> None:
        """The workers' group is not there yet (a directory service, cloud-init): until it is, the files are ours."""
        while True:
            await self._clock.sleep(ASK_AGAIN_SECONDS)
            # Again once it was found: files that answered late may be applied after that, with what was there before.
            if "environment.group" not in self._prepared.away.reasons:
                continue
            name = reloader.settings.environment.group
            with contextlib.suppress(ConfigError):
                gid = await asyncio.to_thread(group_id, name)
                settings = reloader.settings
                if settings.environment.group == name:  # else a reload came between
                    self._prepared.gid = gid
                    self._prepared.away.reasons.pop("environment.group", None)
                    publisher.reconfigure(settings.environment, gid=gid, expects_bundle=bool(settings.keys))

    async def _hear_file(self, late: asyncio.Future[Written], reload: Callable[[], None]) -> None:
        """The configuration did not answer at the start: it is loaded as soon as it does."""
        await asyncio.wait({late})
        late.exception()  # marked as retrieved: the reload reports it
        self._log.info("config.answers")
        reload()

    async def _hear_late(self, reloader: Reloader) -> None:
        """Files that did not answer at the start are taken as soon as they do; only then does the boot grace count."""
        await reloader.apply_late()
        if self._prepared.holding:
            self._prepared.holding = False
            self._restorer.began = self._clock.uptime()
            self._restorer.controller.await_bundle(self._settings.identity.grace_seconds)
            self.note()

    def note(self) -> None:
        """Leave for the next process of this boot what the service manager forgets at a stop."""
        self._note.keep(self._restorer.known)

    async def noted(self, seconds: float) -> None:
        """Leave what an orderly end leaves, after everything else; waits for at most so long."""
        self._note.keep(self._restorer.known_at_the_end)
        await self._note.last(seconds / 2)
        await self._prepared.age.last(self._restorer.controller.store.memory, seconds / 2)
