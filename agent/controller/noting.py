"""The history on the disk: written now and then, and before the end; nothing waits for it, and nobody misses a line."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import structlog

from agent.core.clock import Clock
from agent.core.errors import HostError
from agent.core.history import Entry, History

NOTE_AGAIN_SECONDS: Final = 5.0
"""Between two writings of the history: what happens again and again wears out no disk."""


class Notebook(Protocol):
    """Writes down what happened lately: of use to a person, and to nobody else. Raises :class:`HostError`."""

    async def note(self, history: tuple[Entry, ...]) -> None:
        """Write it down."""


class Noting:
    """See the module.

    Resources: one task while it is being written.
    """

    def __init__(self, history: History, notebook: Notebook, clock: Clock) -> None:
        self._history = history
        self._notebook = notebook
        self._clock = clock
        self._noted = history.version
        self._note_at = 0.0
        self._noter: asyncio.Task[None] | None = None
        self._log = structlog.get_logger()

    def clear(self) -> None:
        """Forget what happened: it was another machine's."""
        self._history.clear()

    def note(self) -> None:
        """Have the history written down, if it has changed. Returns at once; no memory waits for it."""
        now = self._clock.boottime()
        if self._noter is None and self._noted != self._history.version and now >= self._note_at:
            self._note_at = now + NOTE_AGAIN_SECONDS
            self._noter = asyncio.create_task(self._note(), name="history")

    async def last(self) -> None:
        """Write what was not written yet."""
        if self._noter is not None:
            await asyncio.shield(self._noter)
        if self._noted != self._history.version:
            await self._note()

    async def _note(self) -> None:
        self._noted = self._history.version
        try:
            await self._notebook.note(self._history.entries)
        except HostError:
            pass  # one that is lost costs nobody anything, and the disk's own trouble is told
        except Exception as error:  # noqa: BLE001 - the controller's border: nor does a defect, at the end neither
            self._log.error("work.crashed", work="history", error=type(error).__name__, exc_info=True)
        finally:
            self._noter = None
