"""Which files did the machine not have at the start? Each is used once it is there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog

from agent import config
from agent.core.errors import ConfigError, HostError
from agent.daemon import grace, listening
from agent.daemon.configured import Configured, Written
from agent.daemon.prepare import Prepared
from agent.daemon.publish import Publisher, group_id
from agent.daemon.reload import Reloader
from agent.daemon.restore import Restorer
from agent.daemon.who import ASK_AGAIN_SECONDS
from agent.host.clock import SystemClock
from agent.serve.control import ControlEndpoint
from agent.serve.handed import Guarding


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
        self._note = grace.Note(Path(settings.listen.control).parent)
        self._log = structlog.get_logger()

    def begin(
        self,
        operators: ControlEndpoint,
        servers: list[Server],
        *,
        controlled: bool,
        reloader: Reloader,
        publisher: Publisher,
        reload: Callable[[], None],
    ) -> list[asyncio.Task[None]]:
        """Begin to wait for all that is not there.

        Args:
            operators: the endpoint of the control socket.
            servers: gets the control socket's server when it is there.
            controlled: whether it is there already.
            reloader: applies the files that had not answered.
            publisher: is told of the workers' group.
            reload: what SIGHUP does.
        """
        self.note()
        later: list[Coroutine[Any, Any, None]] = []
        if not controlled:
            later.append(self._open_control_late(operators, servers))
        if "environment.group" in self._prepared.away.reasons:
            later.append(self._find_group(reloader, publisher))
        if self._prepared.late_files:
            later.append(self._hear_late(reloader))
        if self._file.late is not None:
            later.append(self._hear_file(asyncio.wrap_future(self._file.late), reload))
        return [asyncio.create_task(work) for work in later]

    def control_socket(self) -> socket.socket | None:
        """The control socket; ``None``: it cannot be opened just now, which is logged once.

        Raises:
            AnotherAgentError: another agent listens on it.
        """
        reasons = self._prepared.away.reasons
        try:
            return listening.control_socket(self._settings.listen, self._passed)
        except listening.AnotherAgentError:
            raise
        except HostError as error:
            # Workers are served without it.
            if reasons.get("listen.control") != error.message:
                self._log.error("start.without", key="listen.control", reason=error.message, hint=error.hint)
            reasons["listen.control"] = error.message
            return None

    @staticmethod
    def listen(operators: ControlEndpoint, control: socket.socket) -> Server:
        """Answer operators on the control socket, from now on."""
        return operators.listener.listen([Guarding(control)])

    async def _open_control_late(self, operators: ControlEndpoint, servers: list[Server]) -> None:
        while (control := self.control_socket()) is None:
            await self._clock.sleep(ASK_AGAIN_SECONDS)
        servers.append(self.listen(operators, control))
        self._prepared.away.reasons.pop("listen.control", None)

    async def _find_group(self, reloader: Reloader, publisher: Publisher) -> None:
        """The workers' group is not there yet (a directory service, cloud-init): until it is, the files are ours."""
        while True:
            await self._clock.sleep(ASK_AGAIN_SECONDS)
            name = reloader.settings.environment.group
            with contextlib.suppress(ConfigError):
                gid = await asyncio.to_thread(group_id, name)
                if reloader.settings.environment.group == name:  # else a reload came between
                    break
        settings = reloader.settings
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
        """Wait until that is written, for at most so long."""
        await self._note.last(seconds)
