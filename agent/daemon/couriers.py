"""The couriers' socket, from its opening to its end. No other part waits for it, or fails with it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from agent import config
from agent.core.clock import Clock
from agent.core.errors import HostError
from agent.core.text import os_reason
from agent.daemon import listening
from agent.daemon.socket_name import LOOK_SECONDS, LOST, LOST_HINT, SocketName
from agent.host import ticks
from agent.serve.courier import CourierEndpoint
from agent.serve.handed import Guarding
from agent.serve.intake import Intake

AGAIN_SECONDS: Final = 15.0
KEY: Final = "listen.courier"


class CourierSocket:
    """Listens for couriers.

    Args:
        endpoint: what is asked there.
        settings: of the listeners.
        passed: the sockets that the service manager passed.
        gid: the workers' group, for a socket that we make ourselves.
        reasons: takes note of why it is not there, under the key of the configuration.
        clock: time.
    """

    def __init__(
        self,
        endpoint: CourierEndpoint,
        settings: config.Listen,
        passed: Mapping[str, Sequence[socket.socket]],
        *,
        gid: Callable[[], int | None],
        reasons: Callable[[], dict[str, str]],
        clock: Clock,
    ) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._passed = passed
        self._gid = gid
        self._reasons = reasons
        self._clock = clock
        self._log = structlog.get_logger()
        self._opened: Guarding | None = None  # what is open, and cannot be listened on yet
        self._server: Intake | None = None
        self._name: SocketName | None = None
        self._is_made = False  # by us
        self._listens = False

    async def run(self) -> None:
        """Try to open it until that works, and again when its name was taken away."""
        while not self._listens:
            await self._clock.sleep(AGAIN_SECONDS)
            self.listen()
        while self._name is not None:
            await self._clock.sleep(ticks.left(self._clock.boottime(), LOOK_SECONDS))
            if not await self._name.lost():
                self._reasons().pop(KEY, None)
            elif self._is_made:
                former = self._server
                self.listen()
                if self._server is not former and former is not None:
                    former.close()
                    self._log.info("socket.made", key=KEY)
            else:
                self._without(LOST, LOST_HINT.format(unit="credential-agent-courier.socket"))

    def listen(self) -> None:
        """Open it, if that is possible now."""
        try:
            if self._opened is None and (sock := self._open()) is not None:
                self._opened = Guarding(sock)
            server = None if self._opened is None else self._endpoint.listener.listen([self._opened])
        except HostError as error:
            self._without(error.message, error.hint)
            return
        except OSError as error:  # no descriptor, or memory, for what watches it
            self._without(os_reason(error), None)
            return
        self._reasons().pop(KEY, None)
        self._listens = True
        if self._opened is not None:
            self._name, self._server, self._opened = SocketName(self._opened), server, None

    def _without(self, reason: str, hint: str | None) -> None:
        reasons = self._reasons()
        if reasons.get(KEY) != reason:
            self._log.error("start.without", key=KEY, reason=reason, hint=hint)
        reasons[KEY] = reason

    def _open(self) -> socket.socket | None:
        if self._settings.courier == "off":
            return None  # whatever systemd passes
        for sock in self._passed.get("courier", ()):
            return sock
        path = config.courier_path(self._settings)
        if path is None:
            return None
        sock = listening.unix_socket(path, 0o660, key=KEY)
        self._is_made = True
        gid = self._gid()
        try:
            if gid is not None:
                os.chown(path, -1, gid)
        except OSError as error:
            # Then it stays our own group's: a socket of systemd's (credential-agent-courier.socket) is the usual way.
            self._log.warning("courier.not_shared", reason=os_reason(error))
        return sock

    async def close(self, grace_seconds: float) -> None:
        """Stop listening, and let what is under way end."""
        if self._server is not None:
            self._server.close()
        if self._opened is not None:
            self._opened.close()
        if self._name is not None and self._is_made:
            self._name.remove()
        await self._endpoint.listener.close(grace_seconds)
