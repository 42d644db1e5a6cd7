"""Who got which credential: one line for each asker and thing within a while, however often it asked.

What is counted comes from those who answer workers (:mod:`agent.serve.audit`), each second; what they say of clients is
a stranger's text, bounded and plain. Nothing here waits for a disk: a file that stalls costs lines of that file, which
are counted, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from agent import config
from agent.core.clock import Clock
from agent.core.errors import AgentError
from agent.core.served import Caller, Given, Reason, Serving, Who, plain
from agent.core.text import instant, reason_of
from agent.daemon.every import Every
from agent.daemon.publish import group_id
from agent.host import cgroups
from agent.host.rotated import append

MOST_ROWS: Final = 512
"""So many askers and things at once; what comes above is told without its asker. With programs twice as many: what an
asker calls itself is the first to go."""
MOST_AGENTS: Final = 4
"""So many programs of one asker are named in one line."""
MOST_NAME_CHARACTERS: Final = 256
MOST_LINES_WAITING: Final = 4096
LOOK_SECONDS: Final = 2.0
"""How long the names of control groups are waited for."""
END_SECONDS: Final = 0.5


class _Row:
    """One line to be."""

    __slots__ = ("agents", "count", "first", "last")

    def __init__(self, now: datetime) -> None:
        self.agents: dict[str, None] = {}
        self.count = 0
        self.first = self.last = now


class Audit:
    """See the module.

    Args:
        settings: what the configuration says of it now; a reload may change it, but for the mode.
        clock: time.
        each_agent: whether each program of an asker has a line of its own.

    Attributes:
        served: how often something was given, by cloud, dialect and class of the caller.
        refused: how often something was refused, by reason.
        dropped: lines that a file has not taken.
        every: its interval, to be told of a reload.
    """

    def __init__(self, settings: Callable[[], config.Audit], clock: Clock, *, each_agent: bool = False) -> None:
        self._settings = settings
        self._clock = clock
        self._each_agent = each_agent
        self.every = Every(clock, lambda: settings().seconds)
        self.served: dict[tuple[str, str, Caller], int] = {}
        self.refused: dict[Reason, int] = {}
        self.dropped = 0
        self.trouble: str | None = None
        self._rows: dict[tuple[Given, Who, str], _Row] = {}
        self._waiting: list[bytes] = []
        self._writing: asyncio.Task[None] | None = None
        self._log = structlog.get_logger()

    def hear(self, rows: Sequence[Serving], refused: Sequence[tuple[Reason, int]]) -> None:
        """Take what was counted since the last time."""
        for reason, count in refused:
            self.refused[reason] = self.refused.get(reason, 0) + count
        now = self._clock.now()
        for one in rows:
            kind = (str(one.given.cloud), one.given.dialect, one.who.caller)
            self.served[kind] = self.served.get(kind, 0) + one.count
            if self._settings().mode != "off":
                self._add(one, now)

    def _add(self, one: Serving, now: datetime) -> None:
        agent = plain(one.agent)
        key = (one.given, one.who, agent if self._each_agent else "")
        if self._each_agent and key not in self._rows and len(self._rows) >= MOST_ROWS:
            key = (one.given, one.who, "")
        if key not in self._rows and len(self._rows) >= MOST_ROWS * (2 if self._each_agent else 1):
            key = (Given(one.given.dialect, one.given.cloud, one.given.kind, "others"), Who(asked=False), "")
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = _Row(now)
        row.count += one.count
        row.last = now
        if agent and len(row.agents) < MOST_AGENTS:
            row.agents[agent] = None

    async def run(self) -> None:
        """Write lines every ``audit.seconds``, until cancelled."""
        while True:
            await self.every.pause()
            await self.tell()

    async def last(self) -> None:
        """Write what is left, without waiting for long: the process ends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self.tell()
        rows, self._rows = self._rows, {}
        self._put_down(rows, {})  # of whom no name came in time
        await self.written()
        self._put_down({}, {})  # what the file could not take while it took others
        await self.written()

    async def written(self) -> None:
        """Wait until the file has been tried, for a moment."""
        if self._writing is not None and not self._writing.done():
            await asyncio.wait({self._writing}, timeout=END_SECONDS)

    async def tell(self) -> None:
        """Write down what there is."""
        asked = {who.cgroup for _, who, _ in self._rows}
        groups = await self._groups(asked - {0})
        # Taken after the wait: who is ended in it has taken nothing. Whose name was not asked is told the next time.
        rows = {key: row for key, row in self._rows.items() if key[1].cgroup in asked}
        self._rows = {key: row for key, row in self._rows.items() if key not in rows}
        self._put_down(rows, groups)

    def _put_down(self, rows: Mapping[tuple[Given, Who, str], _Row], groups: Mapping[int, str | None]) -> None:
        settings = self._settings()
        for (given, who, _), row in rows.items():
            self._log.info("credential.served", **_told(given, who, row, groups))
            if settings.file is not None:
                told = {"event": "credential.served", **_told(given, who, row, groups)}
                self._waiting.append(msgspec.json.encode(told) + b"\n")
        surplus = len(self._waiting) - MOST_LINES_WAITING
        if surplus > 0:
            del self._waiting[:surplus]
            self.dropped += surplus
        # Also where nothing is new: what a file did not take is tried again, and not only when somebody asks again.
        if settings.file is None:
            self._waiting, self.trouble = [], None
        if self._waiting and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write(settings), name="audit file")

    @staticmethod
    async def _groups(ids: set[int]) -> Mapping[int, str | None]:
        """The names of control groups; ``None`` of those that are gone. What could not be learned is not there."""
        if not ids:
            return {}
        # RuntimeError: no thread is to be had. Whatever it is, it costs names and not the agent.
        with contextlib.suppress(TimeoutError, OSError, RuntimeError):
            return await asyncio.wait_for(asyncio.to_thread(cgroups.names, ids), LOOK_SECONDS)
        return {}

    async def _write(self, settings: config.Audit) -> None:
        lines, self._waiting = self._waiting, []
        try:
            await asyncio.to_thread(_append, settings, b"".join(lines))
        except Exception as error:  # noqa: BLE001 - no thread to be had, or a defect of ours: it costs this file, and no line
            self._waiting = lines + self._waiting
            reason = reason_of(error)
            if self.trouble != reason:
                known = isinstance(error, AgentError)
                hint = error.hint if isinstance(error, AgentError) else None
                self._log.error("audit.not_written", reason=reason, hint=hint, exc_info=not known)
            self.trouble = reason
        else:
            if self.trouble is not None:
                self._log.info("audit.written")
            self.trouble = None


def _append(settings: config.Audit, data: bytes) -> None:
    assert settings.file is not None
    gid = group_id(settings.group, key="audit.group")
    mode = 0o600 if gid is None else 0o640
    append(Path(settings.file), data, most_bytes=settings.file_bytes, mode=mode, gid=gid)


def _told(given: Given, who: Who, row: _Row, groups: Mapping[int, str | None]) -> dict[str, Any]:
    group = None
    if who.cgroup:
        name = groups.get(who.cgroup)
        known = f"id {who.cgroup}, gone" if who.cgroup in groups else f"id {who.cgroup}"
        group = known if name is None else plain(name, cgroups.MOST_CHARACTERS)
    return {
        "cloud": str(given.cloud),
        "dialect": given.dialect,
        "kind": given.kind,
        "identity": plain(given.identity, MOST_NAME_CHARACTERS),
        "access_key_id": f"...{plain(given.key)}" if given.key else None,
        "caller": who.caller,
        "uid": who.uid,
        "cgroup": group,
        "address": plain(who.address) or None,
        "user_agents": list(row.agents),
        "count": row.count,
        "first": instant(row.first),
        "last": instant(row.last),
    }
