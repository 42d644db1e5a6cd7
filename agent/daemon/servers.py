"""The processes that answer workers: what they are told, what they ask, and how long a withdrawal waits for them.

Each connection is a stranger's: what parses workers' requests is at its other end, and may have been taken over by one.
Every word is bounded and read strictly (:mod:`agent.snapshot.frames`); what may not be said ends the connection.

Failure: a server that does not take what it is told within :data:`TAKEN_SECONDS` is cut off, and whoever started it
ends it (:attr:`Server.end`): nobody who was told "withdrawn" finds it still served.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, cast

import msgspec
import structlog

from agent.controller.seldom import Seldom
from agent.core.bucket import Bucket
from agent.core.errors import AgentError, Denied, SnapshotError
from agent.core.model import GoogleToken, IdToken
from agent.core.served import Reason, Serving
from agent.daemon import cut_off
from agent.daemon.begins import Begins, Nobody
from agent.daemon.link_transport import LinkTransport
from agent.daemon.pace import Paced
from agent.daemon.passing import Passing
from agent.daemon.requests import Requests
from agent.host import ticks
from agent.serve.handling import Access
from agent.serve.mints import AT_ONCE_ASKED, BURST_ASKED, PER_SECOND
from agent.snapshot.frames import frame_of_snapshot, from_server
from agent.snapshot.messages import (
    ControllerSays,
    Counts,
    Crashed,
    Left,
    Mint,
    Minted,
    MintScoped,
    Pass,
    Passed,
    Refused,
    Served,
    ServerSays,
    Taken,
    Tell,
    Uses,
    shortened,
)

TAKEN_SECONDS: Final = 2.0
TOLD_SECONDS: Final = 0.25
"""How long numbers are waited for."""
ASKED_EVERY_SECONDS: Final = 20.0
ANSWERED_SECONDS: Final = 5.0
"""A server that does not answer within so long, twice, one time after the other, is stuck."""
MOST_UNREAD_BYTES: Final = 64 << 20
"""Of what a server was told and has not read: above, it is cut off."""
MOST_WAITING_BYTES: Final = 256 << 20
"""Of that and of answers that wait for their turn, of all together: above, whoever has most is cut off. The unit may
have twice as much."""
MOST_UNDER_WAY: Final = 512
"""Questions of one server at once: all passes, polls and mints that an honest one has, and more."""
_LOGGED_PER_MINUTE: Final = 20
UNCONFIRMED_HINT: Final = "restart what answers workers: it may serve what was withdrawn"


class Servers:
    """All that are connected.

    Args:
        latest: the bytes of the newest snapshot.
        version: its version.
        passing: makes what asks the real services, for all of them.
        id_token, access_token: mint.
        requests: where requests are counted.
        heard: told what was given to whom, and why others were refused.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        latest: Callable[[], bytes],
        *,
        version: Callable[[], int],
        passing: Callable[[], Passing],
        id_token: Callable[[str], Awaitable[IdToken | None]],
        access_token: Callable[[tuple[str, ...]], Awaitable[GoogleToken | None]],
        requests: Requests,
        clock: Callable[[], float],
        heard: Callable[[Sequence[Serving], Sequence[tuple[Reason, int]]], None] = lambda _rows, _refused: None,
    ) -> None:
        self.latest = latest
        self.version = version
        # Of all together: a server that is taken over would else have everything anew by ending itself.
        self.passing = passing()
        self.mints = Bucket(PER_SECOND, BURST_ASKED)
        self.minting = 0
        self.seldom = Seldom(clock)
        self.logged = Bucket(_LOGGED_PER_MINUTE / 60, _LOGGED_PER_MINUTE)
        self.id_token = id_token
        self.access_token = access_token
        self.requests = requests
        self.heard = heard
        self.clock = clock
        self._connected: dict[Server, None] = {}
        self._begins: Begins = Nobody()
        self._changed = asyncio.Event()
        self._is_doubtful = False  # whether somebody may serve what was withdrawn: said once, not at each change

    def link(
        self,
        sock: socket.socket,
        end: Callable[[], None] = lambda: None,
        pid: int = 0,
        stands_by: Callable[[], bool] = lambda: False,
    ) -> None:
        """Have a server hear and be heard.

        Args:
            sock: our end of the link to it, from here on ours.
            end: ends the process at the other end, when it does not do what it is told.
            pid: of that process, as whoever began it says; 0: this one.
            stands_by: whether it answers nobody yet.

        Raises:
            OSError: the kernel has no room to watch it.
        """
        LinkTransport(sock, Server(self, end, pid, stands_by)).begin()

    def begun_by(self, begins: Begins) -> None:
        """Say what begins them."""
        self._begins = begins
        self.changed()

    @property
    def _unheard(self) -> set[int]:
        """Those that are there and do not hear us: of a controller before us, or taken over."""
        return set(self._begins.alive) - {server.pid for server in self._connected}

    @property
    def connected(self) -> Sequence[Server]:
        """All of them, the oldest first."""
        return tuple(self._connected)

    def publish(self, data: bytes) -> None:
        """Tell all of them what is served now."""
        self._begins.give(data)
        frame = frame_of_snapshot(data)
        for server in list(self._connected):
            server.tell(frame)

    def bound(self) -> None:
        """See to it that all of them together do not have us hold too much."""
        there = [one for one in self._connected if not one.is_cut_off]
        most = max(there, key=lambda one: one.waiting_bytes, default=None)
        if most is not None and (
            most.unread_bytes > MOST_UNREAD_BYTES or sum(one.waiting_bytes for one in there) > MOST_WAITING_BYTES
        ):
            most.refuse("it does not read what it is told")

    async def taken(self, seconds: float = TAKEN_SECONDS) -> bool:
        """Wait until every server serves what was told last, or has ended. One that does not in time is ended.

        Returns:
            Whether that is so; false: it could not be learned, since what begins servers does not answer.
        """
        version = self.version()

        def is_behind() -> bool:
            behind = any(server.taken < version for server in self._connected)
            return behind or bool(self._unheard) or not self._begins.settled

        try:
            async with asyncio.timeout(seconds):
                while is_behind():
                    await self._next_change()
        except TimeoutError:
            for server in [one for one in self._connected if one.taken < version]:
                server.refuse("it does not take what it is told")
            for pid in self._unheard:
                self._begins.end(pid)
            # Ending it is another process's work: until that is done it may go on, and serve what it was told before.
            try:
                async with asyncio.timeout(seconds):
                    while is_behind():
                        await self._next_change()
            except TimeoutError:
                if not self._is_doubtful:
                    structlog.get_logger().error("server.unconfirmed", hint=UNCONFIRMED_HINT)
                self._is_doubtful = True
                return False
        self._is_doubtful = False
        return True

    def answer(self) -> bool:
        """Whether there is one that answers by what was told last."""
        return any(server.taken >= self.version() for server in self._connected if not server.stands_by())

    async def gone(self, seconds: float = TOLD_SECONDS) -> None:
        """Wait until each has said its last words and ended, for a moment at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._connected:
                    await self._next_change()

    async def serving(self) -> None:
        """Wait until there is one that serves what was told last."""
        while not self.answer():
            await self._next_change()

    async def counted(self, seconds: float = TOLD_SECONDS) -> set[Server]:
        """Have all of them say their numbers, for so long at most. Returns those that have not."""
        waited = {server: server.counted for server in self._connected}
        for server in waited:  # one that is told too much is cut off here
            server.say(Tell())
        silent = set(waited)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while silent := {one for one in silent & self._connected.keys() if one.is_silent(waited[one])}:
                    await self._next_change()
        return silent

    async def watch(self) -> None:
        """End whichever answers no more: without a change nobody waits for it, and whoever started it sees it run."""
        while True:
            if silent := await self.counted(ANSWERED_SECONDS):
                # Once more: this process may have stood still itself, and not have read what was answered.
                silent &= await self.counted(ANSWERED_SECONDS)
            for server in silent:
                server.refuse("it does not answer")
            await asyncio.sleep(ticks.left(asyncio.get_running_loop().time(), ASKED_EVERY_SECONDS))

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def changed(self) -> None:
        """Something became so that somebody may wait for."""
        self._changed.set()

    def opened(self, server: Server) -> None:
        """A server is there: it is told what is served."""
        self._connected[server] = None
        server.tell(frame_of_snapshot(self.latest()))
        self.changed()

    def ended(self, server: Server) -> None:
        """The connection to a server has ended. It cannot be told anything any more: it must not live on."""
        if server not in self._connected:
            return  # it was closed by us, and this is known
        del self._connected[server]
        if server.pid in self._begins.alive:
            self._begins.end(server.pid)
        self.changed()

    def close(self) -> None:
        """End the connections to all servers."""
        for server in list(self._connected):
            server.close()


class Server(Paced):
    """One connected server.

    Attributes:
        pid: of the process at the other end.
        began: when it was connected, by the clock of all.
        taken: the version that it said it serves; -1: none yet.
        counted: how often it has said all its numbers.
        uses: what it said last that it uses; ``None``: nothing.
        stands_by: tells whether it answers nobody, until the one that does has ended.
    """

    def __init__(self, servers: Servers, end: Callable[[], None], pid: int, stands_by: Callable[[], bool]) -> None:
        super().__init__(servers.bound)
        self._servers = servers
        self._end = end
        self.pid = pid or os.getpid()
        self.stands_by = stands_by
        self.began = servers.clock()
        self._frames = from_server()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.taken = -1
        self.counted = 0
        self.uses: Uses | None = None

    # -- asyncio's calls ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._servers.opened(self)

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        if self.is_cut_off:
            return
        try:
            for said in self._frames.feed(data):
                assert not isinstance(said, bytes)
                self._hear(said)
        except SnapshotError as error:
            self.refuse(error.message)

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = None
        if isinstance(exc, SnapshotError):
            cut_off.tell(self._servers.seldom, exc.message)
        for task in self._tasks.values():
            task.cancel()
        self._servers.ended(self)

    def is_silent(self, counted: int) -> bool:
        """Whether it has said nothing since it had said all its numbers so often, and still may."""
        return self.counted == counted and not self.is_cut_off

    def refuse(self, why: str) -> None:
        """Say why, and end it."""
        if not self.is_cut_off:
            cut_off.tell(self._servers.seldom, why)
            self.cut_off()

    def cut_off(self) -> None:
        """End it: it may still serve what it was told before. Its end of the connection tells when it has ended."""
        if self.is_cut_off:
            return
        self.is_cut_off = True
        self._end()
        for task in self._tasks.values():
            task.cancel()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(TAKEN_SECONDS, self.close)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()
        self._servers.ended(self)

    # -- what it says ------------------------------------------------------------------------------------------------

    def _hear(self, said: ServerSays) -> None:
        servers = self._servers
        match said:
            case Taken():
                # It cannot have taken what it was not told.
                self.taken = min(said.version, servers.version())
                servers.changed()
            case Counts():
                self._count(said)
            case Uses():
                self.uses = said
            case Served():
                servers.heard(said.rows, said.refused)
            case Refused() | Crashed():
                self._complain(said)
            case Left():
                if (task := self._tasks.get(said.number)) is not None:
                    task.cancel()
            case Pass():
                self._begin(said.number, servers.passing.ask(said, self.in_turn), Passed(said.number, 0))
            case Mint() | MintScoped():
                self._begin(said.number, self._mint(said), Minted(said.number, why="it cannot be minted"))

    def _count(self, said: Counts) -> None:
        for status, count in said.requests:
            self._servers.requests.add("worker", status, count)
        if not said.requests:
            self.counted += 1
            self._servers.changed()

    def _complain(self, said: Refused | Crashed) -> None:
        if self._servers.logged.take(self._servers.clock()):
            return  # more for the log than a log is for
        if isinstance(said, Refused):
            self._servers.requests.complain("worker", Access(**msgspec.structs.asdict(said)))
        else:
            structlog.get_logger().error("request.crashed", path=said.path, error=said.error, where=said.where)

    def _begin(self, number: int, work: Coroutine[Any, Any, ControllerSays], failed: ControllerSays) -> None:
        # No honest server asks so much at once, and one that has ended waits for no answer.
        if number in self._tasks or len(self._tasks) >= MOST_UNDER_WAY or self._transport is None:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(self._answer(work, failed), name="asked by a server")
        self._tasks[number] = task
        task.add_done_callback(lambda _: (self._tasks.pop(number, None), work.close()))  # it may not have begun

    async def _answer(self, work: Coroutine[Any, Any, ControllerSays], failed: ControllerSays) -> None:
        try:
            self.say(await work)
        except Exception as error:  # noqa: BLE001 - the border: nothing that a server asks may end the controller
            structlog.get_logger().error("request.crashed", path="", error=type(error).__name__, exc_info=error)
            self.say(failed)

    async def _mint(self, wanted: Mint | MintScoped) -> Minted:
        """The bounds are those of all workers together. An honest server, which has the fair shares, is within them."""
        number, servers = wanted.number, self._servers
        if servers.minting >= AT_ONCE_ASKED or servers.mints.take(servers.clock()):
            return Minted(number, why="tokens are asked for too often")
        servers.minting += 1
        try:
            if isinstance(wanted, Mint):
                return Minted(number, id_token=await servers.id_token(wanted.audience))
            return Minted(number, access_token=await servers.access_token(wanted.scopes))
        except AgentError as error:
            return Minted(number, denied=isinstance(error, Denied), why=shortened(error.message, 4096))
        finally:
            servers.minting -= 1
