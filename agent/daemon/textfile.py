"""The metrics as a file for node_exporter's textfile collector, where the configuration asks for one.

A scraper needs no way to ask us then: no socket that a worker might reach, no group that may hand in bundles, and
nothing of ours reads what it sends. Whoever may read the file sees metrics, and nothing else.

A file outlives its writer, and what it says looks alive. So the file is removed at an orderly end, and holds the time
at which it was made (``credential_agent_written_timestamp_seconds``): the alert rules watch both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from agent import config
from agent.core.clock import Clock
from agent.core.errors import AgentError
from agent.core.text import reason_of
from agent.daemon.every import Every
from agent.daemon.publish import group_id
from agent.host.files import sweep, write_atomic

MODE: Final = 0o640
END_SECONDS: Final = 0.5
NOTHING_SECONDS: Final = 86_400.0
"""A pause where no file is wanted and none is there: a reload ends it."""


class Textfile:
    """Keeps the file.

    Args:
        settings: what the configuration says of it now; a reload may change it.
        render: the metrics.
        clock: tells when to write again.

    Attributes:
        trouble: why the file is not as it should be, if it is not.
        every: its interval, to be told of a reload.
    """

    def __init__(self, settings: Callable[[], config.Metrics], render: Callable[[], bytes], clock: Clock) -> None:
        self._settings = settings
        self._render = render
        self.every = Every(clock, lambda: settings().seconds if self._is_wanted(settings()) else NOTHING_SECONDS)
        self._written: Path | None = None
        self._writing: asyncio.Future[None] | None = None
        self._log = structlog.get_logger()
        self.trouble: str | None = None

    async def run(self) -> None:
        """Write it at once and every ``metrics.seconds``, until cancelled; then take it away."""
        try:
            while True:
                settings = self._settings()
                await self._bring(settings)
                await self.every.pause(lambda settings=settings: self._settings() != settings)  # type: ignore[misc]
        finally:
            # A write that is under way would put it back; a disk that stalls is not waited for.
            if self._writing is not None:
                await asyncio.wait({self._writing}, timeout=END_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(self._remove), END_SECONDS)

    def _is_wanted(self, settings: config.Metrics) -> bool:
        """Whether there is something to do: a file is to be there, or one that was is to go."""
        return settings.textfile is not None or self._written is not None

    async def _bring(self, settings: config.Metrics) -> None:
        path = None if settings.textfile is None else Path(settings.textfile)
        if not self._is_wanted(settings):
            self.trouble = None
            return
        try:
            data = self._render() if path is not None else b""
            self._writing = asyncio.ensure_future(asyncio.to_thread(self._write, path, data, settings.group))
            await asyncio.shield(self._writing)
        except Exception as error:  # noqa: BLE001 - a defect of ours costs this file, and no more
            reason = reason_of(error)
            if self.trouble != reason:
                # Once a change: a disk that is full for a night must not fill the journal.
                self._log.error("metrics.not_written", reason=reason, exc_info=not isinstance(error, AgentError))
            self.trouble = reason
        else:
            if self.trouble is not None:
                self._log.info("metrics.written")
            self.trouble = None

    def _write(self, path: Path | None, data: bytes, group: str | None) -> None:
        if path != self._written:
            self._remove()
            if path is not None:
                sweep(path)  # a writer that was killed left it
        if path is not None:
            write_atomic(path, data, mode=MODE, gid=group_id(group, key="metrics.group"))
            self._written = path

    def _remove(self) -> None:
        path, self._written = self._written, None
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink()
