"""The process that answers workers, as a child: in the unit of the service manager, in a container, in a demo.

It is begun before this process loads anything that takes long (:mod:`agent.server.spawn`), so before it gives up to
execute anything and before the configuration is read, and waits for the sockets; they stay open here, so that
connections wait in the kernel's queue whenever a server ends, and can be answered here if none can be begun any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from agent.daemon.begins import Nobody
from agent.daemon.master_connection import MasterConnection
from agent.daemon.servers import Servers
from agent.host.process import Usage, Watched
from agent.server.spawn import spawn

ENDS_SECONDS: Final = 1.0
"""How much longer than its grace it may take to end."""
TOLD_AGAIN_SECONDS: Final = 60.0
"""A server that ends again and again is told of so often."""


FAILING_HINT: Final = "see the lines that begin with 'server:'; the wall between them may refuse what libc needs"


class Again:
    """Counts the servers that have ended before their time and have a successor, and says so: nothing else shows it."""

    def __init__(self) -> None:
        self.times = 0
        self._begun = 0
        self._told = float("-inf")

    def anew(self) -> None:
        """The next one is no successor."""
        self._begun = 0

    def told(self) -> None:
        """Another one was begun."""
        self._begun += 1
        self.times += self._begun > 1
        now = time.monotonic()
        if self._begun > 1 and now - self._told >= TOLD_AGAIN_SECONDS:
            self._told = now
            structlog.get_logger().warning("server.again", times=self.times)


class ServerChild:
    """The master of :mod:`agent.server`.

    *Resources*: the process and the control socket, until :meth:`close`.
    """

    def __init__(self, process: subprocess.Popen[bytes] | None, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._master: MasterConnection | None = None
        self._servers: Servers | None = None
        self._again = Again()
        self._gone: Callable[[], None] = lambda: None
        self._ended = asyncio.Event()
        self._watched: Watched | None = None
        if process is not None:
            with contextlib.suppress(OSError):
                self._watched = Watched(process.pid)  # now: once it is undumpable, a sandbox shows it to nobody

    @classmethod
    def begin(cls, environ: Mapping[str, str]) -> ServerChild:
        """Start it (:func:`agent.server.spawn.spawn`). To be called before anything else may execute."""
        return cls(*spawn(environ))

    def answer(self, sockets: Sequence[socket.socket], servers: Servers, gone: Callable[[], None]) -> None:
        """Have it answer on these sockets. To be called in the event loop.

        Args:
            sockets: on which workers ask; one that asks the kernel who does may be among them.
            servers: what it is told and asks.
            gone: called when it has ended, which it does not by itself.
        """
        self._servers, self._gone = servers, gone
        self._master = MasterConnection(self._control, ended=self._has_ended, failing=self._is_failing)
        try:
            self._master.begin(sockets, servers, self._again.told)
        except OSError:
            # It is gone, which is heard; or it cannot be told (no memory, say): it and workers would wait for ever.
            self._kill()

    def _is_failing(self, count: int) -> None:
        # A libc that needs what is on no list of ours, say. Workers wait: better a thinner wall than no identity.
        structlog.get_logger().error("server.failing", times=count, hint=FAILING_HINT)
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _has_ended(self) -> None:
        """Leave no zombie of it. It may be about to end yet: that is waited for elsewhere."""
        self._ended.set()
        if self._master is not None:
            for one in self._master.given:
                one.empty()  # nobody else has it
        if self._servers is not None:
            self._servers.begun_by(Nobody())  # and what it had begun has ended with it
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(RuntimeError):  # there is no thread just now: its zombie stays until our end
                asyncio.get_running_loop().run_in_executor(None, self._process.wait)
        self._gone()

    @property
    def replaced(self) -> int:
        """How often a server has ended before its time and has had a successor."""
        return self._again.times

    def usage(self) -> Usage | None:
        """What the master uses, as the kernel says; ``None``: it does not."""
        return None if self._watched is None or self._ended.is_set() else self._watched.usage()

    async def close(self, grace_seconds: float) -> None:
        """Let it give what is under way so many seconds, and end it."""
        self._gone = lambda: None
        if not self._ended.is_set():
            with contextlib.suppress(OSError, TimeoutError):
                if self._master is not None:
                    self._master.stop()
                async with asyncio.timeout(grace_seconds + ENDS_SECONDS):
                    await self._ended.wait()
        if self._master is not None:
            self._master.close()
        self.kill()

    def kill(self) -> None:
        """End it now."""
        self._control.close()
        if self._watched is not None:
            self._watched.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
