"""Bundles pushed over the control socket: the endpoint is ``serve``'s, this is the source behind it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, NoReturn

from agent.core.clock import Clock
from agent.core.errors import SourceError, UnreadableError, WireError
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.core.model import SealedBundle
from agent.core.source import PUSH, Ack, OnError, OnSuccess, Submit
from agent.wire.wrapped import find

_FOREVER_SECONDS: Final = 86_400.0
START_SECONDS: Final = 10.0
"""So long a push waits that comes before anybody watches: systemd may have held it until there was an agent."""


class PushSource:
    """Holds nothing: pushed bytes are submitted at once, whether or not they changed, and the verdict is given back.

    Args:
        clock: sleeps; there is nothing to look at.
        name: for logs and acknowledgements.
    """

    def __init__(self, *, clock: Clock, name: str = PUSH) -> None:
        self.name = name
        self._clock = clock
        # Mutable state: where submissions go, once the controller watches, and whether it does. One at a time, in the
        # order of the pushes.
        self._submit: Submit | None = None
        self._watched = asyncio.Event()
        self._pushing = asyncio.Lock()

    async def watch(self, submit: Submit, *, on_error: OnError, on_success: OnSuccess) -> NoReturn:  # noqa: ARG002 - it cannot be broken
        """See :class:`agent.core.source.Source`."""
        self._submit = submit
        self._watched.set()
        on_success()
        while True:
            await self._clock.sleep(_FOREVER_SECONDS)

    async def fetch(self) -> SealedBundle | None:
        """See :class:`agent.core.source.Source`. There is never anything here by itself."""
        return None

    async def push(self, data: bytes) -> Ack:
        """Submit ``data`` and wait for the verdict.

        Raises:
            SourceError: it is empty or longer than any bundle, or nobody watches for :data:`START_SECONDS`.
        """
        if not data or len(data) > MAX_BUNDLE_BYTES:
            raise SourceError(f"expected a bundle of 1 to {MAX_BUNDLE_BYTES} bytes, got {len(data)}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self._watched.wait()
        if self._submit is None:
            raise SourceError("the agent is still starting", hint="try again in a moment")
        # Who leaves before its turn takes its bundle along: else whoever sends and leaves has us keep any number.
        await self._pushing.acquire()
        try:
            pushed = asyncio.create_task(self._push(data, self._submit), name="push")
            pushed.add_done_callback(lambda _: self._pushing.release())
        except MemoryError:
            self._pushing.release()
            raise
        # To its end whether or not the pusher waits.
        return await asyncio.shield(pushed)

    async def _push(self, data: bytes, submit: Submit) -> Ack:
        verdict = await submit(SealedBundle(data=await unwrapped(data), origin=self.name))
        assert verdict is not None
        return verdict

    async def acknowledge(self, ack: Ack) -> None:
        """See :class:`agent.core.source.Source`. The push has it already, also where it is not confirmed."""


async def unwrapped(data: bytes) -> bytes:
    """The bundle in what tools have wrapped around it; what holds none is left for the decoder to refuse."""
    with contextlib.suppress(UnreadableError, WireError):  # the decoder says what is wrong with it
        return await asyncio.to_thread(find, data) or data
    return data
