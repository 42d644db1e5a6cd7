"""The one supervisor of what nobody waits for: it goes on whatever it raises. Nobody would see that it has ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog

AGAIN_SECONDS: Final = 60.0


async def unending(
    watch: Callable[[], Awaitable[object]],
    *,
    work: str,
    sleep: Callable[[float], Awaitable[None]],
    seconds: float | None = None,
) -> None:
    """Run the watch until it returns; what it raises is a defect of ours, or there was no memory or thread just then.

    What is lacking may be lacking for a while: neither the saying nor the pause ends it. Where the event loop itself
    cannot go on, the service manager's watchdog ends the process.

    Args:
        watch: begins it, as often as it is called.
        work: what it does, for the log.
        sleep: makes a pause.
        seconds: how long one is; :data:`AGAIN_SECONDS` by default.
    """
    crash, again = None, False
    while True:
        # What is done about an error may fail as well, so nothing is done where it is caught.
        try:
            if crash is not None:
                structlog.get_logger().error("work.crashed", work=work, error=type(crash).__name__, exc_info=crash)
        except Exception:  # noqa: BLE001, S110 - see there
            pass
        crash = None  # and with it what its frames hold, sockets say
        try:
            if again:
                await sleep(AGAIN_SECONDS if seconds is None else seconds)
            await watch()
        except Exception as error:  # noqa: BLE001 - see there
            crash, again = error, True
        else:
            return
