"""A state directory that does not answer at the start: what is served meanwhile, and what happens when it does.

With a handover the memory is known without it: everything is served at once, and nothing is written before the disk is
read (:class:`Later`). Without one nothing is known, not even whether the machine's own identity may be served: then
every request is answered with 503 (:func:`answer_meanwhile`), after which callers try again, rather than not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final, NamedTuple

from agent.core.errors import HostError
from agent.core.history import Entry
from agent.core.verdict import Memory
from agent.host.state import Lived, StateDirectory
from agent.identity import streams

LOOK_SECONDS: Final = 0.1
"""How long the start waits for all files together: callers wait a second, and starting Python takes most of it."""
FIRST_LOOK_SECONDS: Final = 2.0
"""The same where there is no handover: without the disk we could only answer that we do not know."""
STALLED: Final = "the disk of the state directory does not answer"
HEAD_BYTES: Final = 16_384
HEAD_SECONDS: Final = 5.0
_BODY: Final = b"the agent does not know yet what was decided here: its state directory does not answer\n"
_ANSWER: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


class Read(NamedTuple):
    """The content of the state directory.

    Attributes:
        memory: what was remembered.
        sealed: the sealed bundle that it names.
        write: whether it may be written over.
        broken: whether it cannot be read.
        boot: see :func:`agent.host.machine.boot`.
        lived: when an agent was last at work here.
        unread: whether it is ``broken`` because the system refused: what is there may be as good as ever.
        refused: see :attr:`agent.host.state.StateDirectory.refused`.
    """

    memory: Memory
    sealed: bytes | None
    write: bool
    broken: bool
    boot: str
    lived: Lived | None = None
    unread: bool = False
    refused: str | None = None


def is_later(read: Memory, ours: Memory) -> bool:
    """Whether the disk is later than ``ours``: it has a stream, a higher number or a floor that this lacks."""
    return _may_be_of_one(read, ours) and not streams.covers(ours, read)


def _may_be_of_one(one: Memory, other: Memory) -> bool:
    """Whether they may be the same machine's."""
    return not one.instance_id or not other.instance_id or one.instance_id == other.instance_id


class Later:
    """A recorder that writes nothing before the disk was read: that may be later than what is to be written.

    Args:
        state: the directory.
        reading: reads it.
        recalled: is told the memory and the sealed bundle that the system refused to read at the start; false where
            that does not count yet, and is to be told again.

    Attributes:
        history_read: whether the history that an earlier process wrote was taken back, or never will be. Before that
            none is written: it would be written over.
    """

    def __init__(
        self,
        state: StateDirectory,
        reading: asyncio.Task[Read],
        recalled: Callable[[Memory, bytes | None], bool] = lambda _memory, _sealed: True,
    ) -> None:
        self._state = state
        self._reading = reading
        self._recalled = recalled
        self._ours = False  # what the disk holds is what we wrote
        self._beside: Memory | None = None  # what could not be read at the start: nothing of it is taken back
        self._known: Memory | None = None  # of that: what was told
        self.history_read = False

    async def save(self, memory: Memory, sealed: bytes | None) -> None:
        """See :class:`agent.controller.durable.Recorder`."""
        read = await asyncio.shield(self._reading)
        if read.unread and not self._ours:
            if not memory.marks:
                return  # a name was learned, say: what may lie there is worth more, and the next start may read it
            # It may be readable by now. What is not even now is written over: else nothing would be durable again.
            with contextlib.suppress(HostError):
                found, sealed_then = await asyncio.to_thread(self._state.load)
                if found != self._known:
                    # Before what is written comes into force: it is evaluated again.
                    self._known = found if self._recalled(found, sealed_then) else None
                self._beside = found
        if not self._ours and not read.broken and is_later(read.memory, memory):
            raise HostError("the state directory has a later memory than the one that was handed over")
        if self._beside is not None and _may_be_of_one(memory, self._beside):
            both = streams.united(memory, self._beside)
            memory, sealed = both, sealed if both.active == memory.active else None
        await self._state.save(memory, sealed)
        self._ours = True

    async def note(self, history: tuple[Entry, ...]) -> None:
        """See :class:`agent.controller.durable.Recorder`."""
        if not self.history_read:
            raise HostError("the history of before was not read yet")
        await self._state.note(history)


@contextlib.asynccontextmanager
async def answer_meanwhile(sockets: Iterable[socket.socket]) -> AsyncIterator[None]:
    """Answer every request at these sockets with 503; afterwards the sockets listen on, for others to answer."""
    servers = []
    try:
        for listener in sockets:
            # A copy: to close a server closes its socket.
            copy = listener.dup()
            start = asyncio.start_unix_server if copy.family == socket.AF_UNIX else asyncio.start_server
            servers.append(await start(_refuse, sock=copy, limit=HEAD_BYTES))
        yield
    finally:
        for server in servers:
            server.close()


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        async with asyncio.timeout(HEAD_SECONDS):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_ANSWER)
            await writer.drain()
    writer.close()
