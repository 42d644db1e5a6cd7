"""The one way to the controller: snapshots come in by it, and what only the controller can do is asked by it.

What is served does not depend on it: while it is down, whatever the last snapshot says is served until its true end,
and what would have to be asked fails as if the real service, or the mint, did not answer.

Failure: a controller that says what it may not say is not one. The connection is closed, and made anew by the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, cast

from multidict import CIMultiDict

from agent.core.errors import Denied, SnapshotError, Transient, UpstreamError
from agent.core.model import Cloud, GoogleToken, IdToken
from agent.serve.waiting import Served
from agent.snapshot.frames import frame_from_server, from_controller
from agent.snapshot.messages import (
    MOST_BODY_BYTES,
    ControllerSays,
    Counts,
    Crashed,
    Left,
    Mint,
    Minted,
    MintScoped,
    Pass,
    Passed,
    ServerSays,
    Taken,
    Tell,
)

MINT_SECONDS: Final = 60.0
"""A mint that takes longer is given up here; the controller's own limit is below this."""
MOST_UNREAD_BYTES: Final = 4 << 20
"""Of what a controller was told and has not read: more than all that may be under way. Above, it is asked nothing."""
_WITHOUT_END: Final = (Mint, MintScoped, Pass, Counts, Crashed)
"""What would be said to a controller that hangs, again and again. What else there is follows from these, or from it."""


class Answer:
    """What the real service answered (:class:`agent.serve.proxy.UpstreamAnswer`)."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, passed: Passed) -> None:
        self.status = passed.status
        self.headers: Mapping[str, str] = CIMultiDict(passed.headers)
        self.body = passed.body


class Link:
    """See the module.

    Args:
        lost: called when the connection has ended.

    Attributes:
        served: what came; ``None`` until the first snapshot.
        told: called when the controller asks how many requests were answered.
    """

    def __init__(self, lost: Callable[[], None] = lambda: None) -> None:
        self.served: Served | None = None
        self.told: Callable[[], None] = lambda: None
        self._lost = lost
        self._first = asyncio.Event()
        self._connection: Connection | None = None
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Minted | Passed]] = {}

    def protocol(self) -> Connection:
        """The factory for ``loop.create_unix_connection``. One connection at a time: the newest is used."""
        return Connection(self)

    def begin_with(self, served: Served | None) -> None:
        """Serve this until the controller says what is served, if it has not: it was found where that keeps it."""
        if served is not None and self.served is None:
            self.served = served
            self._first.set()

    async def first(self) -> Served:
        """Wait for the first snapshot."""
        await self._first.wait()
        assert self.served is not None
        return self.served

    def say(self, *messages: ServerSays) -> bool:
        """Send them, if there is somebody to send them to: at once, so that they wake whoever reads them once."""
        return self._connection is not None and self._connection.say(*messages)

    # -- what is asked -----------------------------------------------------------------------------------------------

    async def id_token(self, audience: str) -> IdToken | None:
        """Have an identity token minted (:data:`agent.serve.mints.Demand`).

        Raises:
            Denied: who could make it refused.
            Transient: it failed, or nobody can be asked just now.
        """
        return (await self._mint(Mint(self._next(), audience))).id_token

    async def scoped(self, scopes: tuple[str, ...]) -> GoogleToken | None:
        """Have an access token for fewer scopes minted (:data:`agent.serve.gce_accounts.DemandScoped`).

        Raises:
            Denied: who could make it refused.
            Transient: it failed, or nobody can be asked just now.
        """
        return (await self._mint(MintScoped(self._next(), scopes))).access_token

    async def _mint(self, message: Mint | MintScoped) -> Minted:
        try:
            async with asyncio.timeout(MINT_SECONDS):
                answer = await self._ask(message)
        except (TimeoutError, ConnectionError):
            raise Transient("the agent restarts, or its controller does not answer; try again") from None
        if not isinstance(answer, Minted):
            raise Transient("the agent's controller answers something else")
        if answer.why is not None:
            raise (Denied if answer.denied else Transient)(answer.why)
        return answer

    def service(self, cloud: Cloud) -> Service:
        """The real metadata service of a cloud, through the controller."""
        return Service(self, cloud)

    async def pass_on(self, message: Pass) -> Passed:
        """Have the real service asked.

        Raises:
            UpstreamError: no usable answer.
        """
        try:
            answer = await self._ask(message)
        except ConnectionError:
            raise UpstreamError("the agent's controller is not there") from None
        if not isinstance(answer, Passed) or not answer.status:
            raise UpstreamError("no usable answer of the real service")
        return answer

    def number(self) -> int:
        """One for the next question."""
        return self._next()

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _ask(self, message: Mint | MintScoped | Pass) -> Minted | Passed:
        if not self.say(message):
            raise ConnectionError
        answer: asyncio.Future[Minted | Passed] = asyncio.get_running_loop().create_future()
        self._waiting[message.number] = answer
        try:
            return await answer
        except asyncio.CancelledError:
            self.say(Left(message.number))
            raise
        finally:
            self._waiting.pop(message.number, None)

    # -- what is heard -----------------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """A connection to a controller is there; an earlier one ends."""
        before, self._connection = self._connection, connection
        if before is not None:
            before.close()
            self._fail()

    def ended(self, connection: Connection) -> None:
        """The connection to the controller has ended: whatever waits for an answer gets none."""
        if self._connection is connection:
            self._connection = None
            self._fail()
            self._lost()

    def hear(self, said: ControllerSays | bytes) -> None:
        """Take what the controller said.

        Raises:
            SnapshotError: a snapshot is none.
        """
        if isinstance(said, bytes):
            if self.served is None:
                self.served = Served(said)
                self._first.set()
            else:
                self.served.take(said)
            self.say(Taken(self.served.version))
            return
        if isinstance(said, Tell):
            self.told()
            return
        waiting = self._waiting.get(said.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(said)

    def _fail(self) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError())

    def break_off(self) -> None:
        """Hear nothing more by the present connection, also of what has come and was not read."""
        if self._connection is not None:
            self._connection.close()

    def close(self) -> None:
        """Say nothing more; what was said is sent yet."""
        if self._connection is not None:
            self._connection.finish()


class Connection(asyncio.Protocol):
    """One connection to the controller."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._frames = from_controller()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._link.opened(self)

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        try:
            for said in self._frames.feed(data):
                self._link.hear(said)
        except SnapshotError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """See :class:`asyncio.Protocol`."""
        self._transport = None
        self._link.ended(self)

    def say(self, *messages: ServerSays) -> bool:
        """Send them; ``False``: they cannot be, or it does not read what it was told."""
        if self._transport is None or self._transport.is_closing():
            return False
        if self._transport.get_write_buffer_size() > MOST_UNREAD_BYTES and any(
            isinstance(one, _WITHOUT_END) for one in messages
        ):
            return False
        try:
            frames = b"".join(map(frame_from_server, messages))
        except SnapshotError:
            return False  # what a worker asked is longer than any question may be
        self._transport.write(frames)
        return True

    def finish(self) -> None:
        """End the connection when what was said is sent."""
        if self._transport is not None:
            self._transport.close()

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()


class Service:
    """A real metadata service, through the controller (:class:`agent.serve.proxy.Passthrough`)."""

    def __init__(self, link: Link, cloud: Cloud) -> None:
        self._link = link
        self._cloud = cloud

    async def request(
        self,
        method: str,
        path_qs: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        timeout_seconds: float | None = None,
        max_bytes: int | None = None,
    ) -> Answer:
        """Ask.

        Raises:
            UpstreamError: no usable answer.
        """
        message = Pass(
            self._link.number(),
            self._cloud,
            method,
            path_qs,
            tuple((headers or {}).items()),
            body,
            float(timeout_seconds or 0),
        )
        passed = await self._link.pass_on(message)
        if max_bytes is not None and len(passed.body) > min(max_bytes, MOST_BODY_BYTES):
            raise UpstreamError("the real service's answer is too large", code="too-large")
        return Answer(passed)
