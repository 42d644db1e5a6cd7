"""Large answers to a server go out one after the other, each when it has taken what it was told before.

Long polls end together when what they wait for changes. Written at once, their answers were more than any server may
leave unread, and it was cut off; what it must be told in time, a withdrawal above all, stood behind them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from agent.serve.proxy import LARGE_BYTES
from agent.snapshot.messages import Passed

MOST_HELD_BYTES: Final = 256 << 20
"""Of answers that wait for their turn. More than an honest server's long polls bring at once, less than we may have."""


class Paced(asyncio.Protocol):
    """A connection to a server, of which the transport says whether what was written is taken.

    Args:
        cut_off: ends the connection, when it asks on and takes nothing.
    """

    def __init__(self, cut_off: Callable[[], None]) -> None:
        self._too_much = cut_off
        self._held = 0  # bytes
        self._taken = asyncio.Event()
        self._taken.set()
        self._turn = asyncio.Lock()

    def pause_writing(self) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        self._taken.clear()

    def resume_writing(self) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        self._taken.set()

    async def in_turn(self, answer: Passed) -> Passed:
        """Return ``answer`` when it may be written: before anything else is waited for. A small one may be at once."""
        if len(answer.body) > LARGE_BYTES:
            self._held += len(answer.body)
            try:
                if self._held > MOST_HELD_BYTES:
                    structlog.get_logger().error("server.cut_off", why="it does not read what it is told")
                    self._too_much()
                async with self._turn:
                    await self._taken.wait()
            finally:
                self._held -= len(answer.body)
        return answer
