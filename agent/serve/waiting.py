"""The present snapshot, and waiting for the next: all that this package knows of the rest of the agent.

It comes as the bytes of a snapshot (:mod:`agent.snapshot`), whole each time, and is looked at here only: no store, no
bundle and no key is within reach of what parses strangers' requests.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_right
from collections.abc import Callable
from datetime import datetime

import msgspec

from agent import snapshot
from agent.core.clock import Clock
from agent.core.model import Cloud, GoogleToken, IdToken
from agent.core.view import Answer, Pending


def _first_of(row: tuple[int, int, int]) -> int:
    return row[0]


class Served:
    """The newest snapshot. Every method is a lookup: no I/O, no lock, no waiting.

    Args:
        data: the first.
        wall: how far the machine's wall clock was ahead of boot time when that came, in seconds; ``None``: it came now.

    Attributes:
        now: the snapshot.
        wall: the same of the present one.
        settings: of the first: the dialects read them once.

    Raises:
        SnapshotError: ``data`` is none.
    """

    def __init__(self, data: bytes, *, wall: float | None = None) -> None:
        self.wall = wall
        self._event: asyncio.Event | None = None  # only where somebody waits
        self._forgets: list[Callable[[], None]] = []
        self._take(snapshot.decode(data))
        self.settings = self.now.settings

    def __repr__(self) -> str:
        return f"Served(version={self.version})"

    def take(self, data: bytes) -> None:
        """Serve this from now on. Called in the event loop's thread.

        Raises:
            SnapshotError: ``data`` is none. The former snapshot is served on.
        """
        self._take(snapshot.decode(data))
        self.wall = None
        for forget in self._forgets:
            forget()
        event, self._event = self._event, None
        if event is not None:
            event.set()

    def _take(self, new: snapshot.Snapshot) -> None:
        self.now = new
        self._stretches = {Cloud.AWS: new.aws, Cloud.GCP: new.gcp}
        self._ends = {
            cloud: tuple((math.inf if one.until is None else one.until.timestamp(), one.answer) for one in stretches)
            for cloud, stretches in self._stretches.items()
        }
        self._names = {Cloud.AWS: frozenset(new.aws_names), Cloud.GCP: frozenset(new.gcp_names)}
        self._id_tokens = {one.token.audience: one for one in new.id_tokens}
        self._scoped = {one.scopes: one for one in new.scoped}

    def bounded(self, connections: int) -> None:
        """Have no more connections than that, whatever the settings say: this process has no descriptors for more."""
        limits = self.settings.limits
        if connections < limits.connections:
            held = min(limits.held, max(1, connections // 2))
            fits = msgspec.structs.replace(limits, connections=connections, held=held)
            self.settings = msgspec.structs.replace(self.settings, limits=fits)

    def forgotten_by(self, *forgets: Callable[[], None]) -> None:
        """Have these called as soon as something else is served: whoever made something of what was served drops it."""
        self._forgets.extend(forgets)

    async def changed(self, seen: int) -> None:
        """Wait until the version is not ``seen``. Given the version that the waiter saw, it can miss no change."""
        while self.version == seen:
            if self._event is None:
                self._event = asyncio.Event()
            await self._event.wait()

    def whose(self, uid: int) -> int:
        """The uid that stands for the user of ``uid``, who may have others (subuid(5))."""
        rows = self.now.subordinate
        at = bisect_right(rows, uid, key=_first_of) - 1
        return rows[at][2] if at >= 0 and uid <= rows[at][1] else uid

    # -- what is looked up -------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Changes whenever any answer may have changed, apart from the passing of time."""
        return self.now.version

    def stretch(self, cloud: Cloud, now: datetime) -> snapshot.Stretch:
        """The answer for ``cloud`` at ``now``."""
        for stretch in self._stretches[cloud]:
            if stretch.until is None or now < stretch.until:
                return stretch
        raise AssertionError("internal error: the last stretch has an end")

    def answer(self, cloud: Cloud, timestamp: float) -> Answer:
        """The answer for ``cloud`` at a POSIX timestamp. Never an expired credential."""
        for until, answer in self._ends[cloud]:
            if timestamp < until:
                return answer
        raise AssertionError("internal error: the last stretch has an end")

    def id_token(self, audience: str, now: datetime) -> IdToken | None:
        """A minted identity token for ``audience`` with enough life left, or ``None``."""
        found = self._id_tokens.get(audience)
        return found.token if found is not None and now < found.until else None

    def scoped(self, scopes: tuple[str, ...], now: datetime) -> GoogleToken | None:
        """A minted access token for those scopes with enough life left, or ``None``."""
        found = self._scoped.get(scopes)
        return found.token if found is not None and now < found.until else None

    def names(self, cloud: Cloud) -> frozenset[str]:
        """Every name under which an identity of ``cloud`` was listed, the present one included."""
        return self._names[cloud]


class Watch:
    """The present snapshot, with a clock."""

    def __init__(self, served: Served, clock: Clock) -> None:
        self.served = served
        self.clock = clock

    def look(self, cloud: Cloud) -> Answer:
        """The answer now."""
        return self.served.answer(cloud, self.clock.timestamp())

    async def settled(self, cloud: Cloud, seconds: float) -> Answer:
        """The first answer that is not :class:`Pending`, or the pending one after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    seen = self.served.version
                    answer = self.look(cloud)
                    if not isinstance(answer, Pending):
                        return answer
                    await self.served.changed(seen)
        except TimeoutError:
            return self.look(cloud)
