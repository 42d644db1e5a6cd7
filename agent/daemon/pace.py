"""What a server is told. Large answers go out one after the other, each when it has taken what it was told before.

Long polls end together when what they wait for changes. Written at once, their answers were more than any server may
leave unread, and it was cut off; what it must be told in time, a withdrawal above all, stood behind them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.serve.proxy import LARGE_BYTES
from agent.snapshot.frames import frame_of
from agent.snapshot.messages import ControllerSays, Passed


class Paced(asyncio.Protocol):
    """A connection to a server, of which the transport says whether what was written is taken.

    Args:
        more: told whenever more waits than before.

    Attributes:
        is_cut_off: whether it is to be ended, and is told and heard no more.
    """

    def __init__(self, more: Callable[[], None]) -> None:
        self._more = more
        self._transport: asyncio.Transport | None = None
        self.is_cut_off = False
        self._held = 0  # bytes of answers that wait for their turn
        self._taken = asyncio.Event()
        self._taken.set()
        self._turn = asyncio.Lock()

    def say(self, message: ControllerSays) -> None:
        """Send a message."""
        self.tell(frame_of(message))

    def tell(self, frame: bytes) -> None:
        """Send what is the frame of a message, or of a snapshot."""
        transport = self._transport
        if transport is None or transport.is_closing() or self.is_cut_off:
            return
        transport.write(frame)
        if transport.get_write_buffer_size():
            self._more()

    @property
    def unread_bytes(self) -> int:
        """Of what it was told and has not read."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def waiting_bytes(self) -> int:
        """All that we hold for it: that, and answers that wait for their turn."""
        return self._held + self.unread_bytes

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
                self._more()
                async with self._turn:
                    await self._taken.wait()
            finally:
                self._held -= len(answer.body)
        return answer
