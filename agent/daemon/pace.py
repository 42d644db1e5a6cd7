"""Large answers to a server go out one after the other, each when it has taken what it was told before.

Long polls end together when what they wait for changes. Written at once, their answers were more than any server may
leave unread, and it was cut off; what it must be told in time, a withdrawal above all, stood behind them.
"""

from __future__ import annotations

import asyncio

from agent.serve.proxy import LARGE_BYTES
from agent.snapshot.messages import ControllerSays, Passed


class Paced(asyncio.Protocol):
    """A connection to a server, of which the transport says whether what was written is taken."""

    def __init__(self) -> None:
        self._taken = asyncio.Event()
        self._taken.set()
        self._turn = asyncio.Lock()

    def pause_writing(self) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        self._taken.clear()

    def resume_writing(self) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        self._taken.set()

    async def in_turn(self, message: ControllerSays) -> ControllerSays:
        """Return ``message`` when it may be written: before anything else is waited for. A small one may be at once."""
        if isinstance(message, Passed) and len(message.body) > LARGE_BYTES:
            async with self._turn:
                await self._taken.wait()
        return message
