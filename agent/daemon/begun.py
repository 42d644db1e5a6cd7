"""The servers that a master says it has begun: how many, how fast, which of them are linked, which stand by."""

from __future__ import annotations

import time
from typing import Final

from agent.core.bucket import Bucket
from agent.server import words

MOST_LINKS_PER_SECOND: Final = 20.0
"""An honest master begins five servers a second at most, and as many that stand by."""


class Begun:
    """See the module. It does not believe more of a master than an honest one says.

    Attributes:
        alive: the process ids of those that have not ended.
        has_linked: whether any was linked: then there is none of before that was not named.
    """

    def __init__(self) -> None:
        self.alive: set[int] = set()
        self._linked: set[int] = set()
        self._seconds: set[int] = set()
        self.has_linked = False
        self._rate = Bucket(MOST_LINKS_PER_SECOND, 2 * words.MOST_SERVERS)

    def may_link(self, pid: int) -> bool:
        """Whether the master may give a link to that one now: a new one, or one that is alive and has none."""
        fits = pid in self.alive or len(self.alive) < words.MOST_SERVERS
        return fits and pid not in self._linked and not self._rate.take(time.monotonic())

    def link(self, word: bytes, pid: int) -> bool:
        """It is linked; whether it is a new one that answers."""
        is_new = pid not in self.alive and word != words.SECOND
        if word == words.SECOND:
            self._seconds.add(pid)
        self.alive.add(pid)
        self._linked.add(pid)
        self.has_linked = True
        return is_new

    def stands_by(self, pid: int) -> bool:
        """Whether it answers nobody yet."""
        return pid in self._seconds

    def takes_over(self, pid: int) -> None:
        """It answers now."""
        self._seconds.discard(pid)

    def unlinked(self, word: bytes, pid: int) -> None:
        """It is there, and no descriptor for its link: it hears nothing, and an acknowledgement waits for its end."""
        if word == words.SECOND:
            self._seconds.add(pid)  # it may take over before that
        self.alive.add(pid)
        self.has_linked = True

    def ended(self, pid: int) -> None:
        """It has ended."""
        for pids in (self.alive, self._linked, self._seconds):
            pids.discard(pid)
