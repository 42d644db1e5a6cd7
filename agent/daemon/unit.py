"""The process that answers workers, as a unit of its own: it has the sockets, and goes on when this process ends.

Its master listens on a socket of the service manager's, which starts it when somebody connects. We connect at the
start, and again whenever the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import structlog

from agent.controller.seldom import Seldom
from agent.daemon.begins import Away, Nobody
from agent.daemon.child import FAILING_HINT, TOLD_AGAIN_SECONDS, Again, ServerChild
from agent.daemon.master_connection import MasterConnection
from agent.daemon.servers import Servers
from agent.daemon.unending import unending
from agent.host.emptiable import Emptiable
from agent.host.process import Usage
from agent.server import words

FIRST_SECONDS: Final = 5.0
"""How long a start waits for it. Workers are not refused meanwhile: it has their sockets, or systemd has."""
PAUSE_SECONDS: Final = 0.1
MOST_PAUSE_SECONDS: Final = 5.0
INTRODUCED_SECONDS: Final = 10.0
"""A master that says nothing for so long after we connected is stuck, or not begun: we connect anew."""
LASTED_SECONDS: Final = 5.0
FEW: Final = 3
"""So many connections that end sooner than that, one after the other, are made anew soon. Then there is a longer pause:
two controllers would end each other's without end, as fast as they can."""
TOGETHER_SECONDS: Final = 0.05
"""Until we connect anew. Where both units are stopped at once its end may be heard before our own stop: to connect
would have it begun again, and systemd gives up a stop that is in the way of that. Workers are answered meanwhile."""
QUICK_PAUSE_SECONDS: Final = 0.5
_MOST_FORMER: Final = 8
"""Files that are held for masters that have ended; more are emptied before their time."""
_HINT: Final = "systemctl status credential-agent-serve"


class ServerUnit:
    """See the module.

    Args:
        path: of its socket.

    *Resources*: the connection, until :meth:`close`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._again = Again()
        self._master: MasterConnection | None = None
        self._servers: Servers | None = None
        self._begins: Callable[[MasterConnection], None] = lambda _master: None
        self._first = asyncio.Event()
        self._lost = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        self._addresses: tuple[str, ...] = ()
        self._former: list[Emptiable] = []  # what masters before were given
        self._told_failing = float("-inf")
        # Of all masters: one that was taken over begins anew as often as it likes.
        self._seldom = Seldom(time.monotonic)

    async def addresses(self, otherwise: Sequence[str]) -> list[str]:
        """Connect, and learn where it answers.

        Args:
            otherwise: what is taken for that, when it does not say so soon.
        """
        name = "the server's unit"
        staying = unending(self._stay_connected, work=name, sleep=asyncio.sleep, seconds=MOST_PAUSE_SECONDS)
        self._connecting = asyncio.get_running_loop().create_task(staying, name=name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SECONDS):
                await self._first.wait()
        if not self._addresses:
            structlog.get_logger().error("server.late", seconds=FIRST_SECONDS, hint=_HINT)
        return list(self._addresses or otherwise)

    def answer(self, sockets: Sequence[socket.socket], servers: Servers, gone: Callable[[], None]) -> None:  # noqa: ARG002 - a child's shape
        """Have it answer, now and whenever it is begun anew. It has its sockets, and we have none."""

        def begins(master: MasterConnection) -> None:
            self._again.anew()
            try:
                master.begin((), servers, self._again.told)
            except OSError:
                master.leave()  # it has ended, or the kernel has no memory for our word: we connect anew
                return
            while self._former:
                self._former.pop().empty()

        self._servers, self._begins = servers, begins
        if self._master is None:
            servers.begun_by(Away(self._former))
        else:
            begins(self._master)

    async def _stay_connected(self) -> None:
        self._leave()  # what broke off may have had one
        try:
            await self._keep_connecting()
        except Exception:
            self._leave()  # at once: until there is another nobody is to be told by it
            raise

    async def _keep_connecting(self) -> NoReturn:
        loop = asyncio.get_running_loop()
        failed = quick = 0
        while True:
            master = await self._connect()
            if master is None:
                await asyncio.sleep(min(PAUSE_SECONDS * 2 ** min(failed, 10), MOST_PAUSE_SECONDS))
                failed += 1
                continue
            failed, self._master, self._addresses = 0, master, master.addresses or ()
            if (unsaid := self._seldom.unsaid("server.connected")) is not None:
                structlog.get_logger().info("server.connected", http=list(self._addresses), unsaid=unsaid)
            self._first.set()
            since = loop.time()
            self._begins(master)
            await self._lost.wait()
            self._lose(master)
            quick = quick + 1 if loop.time() - since < LASTED_SECONDS else 0
            await asyncio.sleep(QUICK_PAUSE_SECONDS if quick > FEW else TOGETHER_SECONDS)

    def _leave(self) -> None:
        if (master := self._master) is not None:
            master.close()
            self._lose(master)

    def _lose(self, master: MasterConnection) -> None:
        self._master = None
        self._hold(master.given)
        if self._servers is not None:
            self._servers.begun_by(Away(self._former))
            self._servers.close()  # one that lives on gets a new link from whichever master it has
        if (unsaid := self._seldom.unsaid("server.disconnected")) is not None:
            structlog.get_logger().warning("server.disconnected", hint=_HINT, unsaid=unsaid)

    async def _connect(self) -> MasterConnection | None:
        """A connection to a master that has said who it has; ``None``: there is none just now."""
        self._lost.clear()
        master = self._reach()
        if master is None:
            return None
        waited, is_there = list[asyncio.Future[bool]](), False
        try:
            waited += [asyncio.ensure_future(one.wait()) for one in (master.introduced, self._lost)]
            await asyncio.wait(waited, timeout=INTRODUCED_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            is_there = master.introduced.is_set() and not self._lost.is_set()
        finally:
            for one in waited:
                one.cancel()
            if not is_there:
                master.close()
                self._hold(master.given)
        return master if is_there else None

    def _reach(self) -> MasterConnection | None:
        try:
            control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            return None  # we have no descriptor for it just now
        try:
            control.setblocking(False)
            with contextlib.suppress(OSError):  # without one we are told less
                control.bind(words.NAME + words.READS_SECONDS + secrets.token_hex(8).encode())
            control.connect(self._path)
            return MasterConnection(control, ended=self._lost.set, failing=self._is_failing, seldom=self._seldom)
        except OSError:
            control.close()
            return None
        except BaseException:
            control.close()
            raise

    def _hold(self, given: Sequence[Emptiable]) -> None:
        """Have what a master was given at hand: one that is begun anew may have it, and begin with it."""
        for one in given:
            if any(one.is_same(held) for held in self._former):
                one.close()
            else:
                self._former.append(one)
        while len(self._former) > _MOST_FORMER:
            self._former.pop(0).empty()

    def _is_failing(self, count: int) -> None:
        now = time.monotonic()
        if now - self._told_failing < TOLD_AGAIN_SECONDS:
            return
        self._told_failing = now
        structlog.get_logger().error("server.failing", times=count, hint=FAILING_HINT)

    @property
    def room(self) -> int | None:
        """How many descriptors a server may have; ``None``: it is not known."""
        return None if self._master is None else self._master.room

    @property
    def replaced(self) -> int:
        """How often a server has ended before its time and has had a successor."""
        return self._again.times

    def usage(self) -> Usage | None:
        """What the master uses: a process of another user's is shown to nobody."""
        return None

    async def close(self, grace_seconds: float) -> None:  # noqa: ARG002 - a child's shape
        """Hear no more of it. Its servers go on with what they were told last."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        if self._servers is not None:
            await self._servers.counted()
            self._servers.begun_by(Nobody())
            self._servers.close()
        if self._master is not None:
            self._master.close()


ServerProcess = ServerChild | ServerUnit
"""Whichever there is."""
