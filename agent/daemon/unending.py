"""A watch that goes on whatever it raises: nobody waits for it, so nobody would see that it has ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from agent.core.clock import Clock

AGAIN_SECONDS: Final = 60.0


async def unending(watch: Callable[[], Awaitable[None]], *, work: str, clock: Clock) -> None:
    """Run the watch until it returns; what it raises is a defect of ours, or there was no memory or thread just then.

    Args:
        watch: begins it, as often as it is called.
        work: what it does, for the log.
        clock: time.
    """
    while True:
        try:
            await watch()
        except Exception as error:  # noqa: BLE001 - see the module
            structlog.get_logger().error("work.crashed", work=work, error=type(error).__name__, exc_info=True)
            await clock.sleep(AGAIN_SECONDS)
        else:
            return
