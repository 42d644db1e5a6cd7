"""Who was given what: counted here, told in pieces, and written down by whoever is told.

An answer costs no more than a count. Whose it is must be asked of the kernel, in some 15 microseconds and before the
answer is sent (afterwards the client may have closed its socket): ``summary`` asks as often as costs nothing, which is
each time but in a flood; ``full`` asks each time; ``off`` never.

Bounded: what comes above :data:`MOST_ROWS` different rows between two tellings is counted without its program, and
above twice as many without its asker.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final

from agent.core.bucket import Bucket
from agent.core.served import NOT_ASKED, AuditMode, Given, Reason, Serving, Who, plain
from agent.serve.fairness import Endpoint

Ends = Callable[[], tuple[Endpoint, Endpoint] | None]
"""Tells the other end and ours, if there are any."""
AskWho = Callable[[Endpoint, Endpoint], Who]
"""Asks the kernel about the socket at the first in a connection that we have at the second. Never waits or raises."""

MOST_ROWS: Final = 256
PER_SECOND: Final = 100.0
BURST: Final = 100.0
"""What ``summary`` asks: 1.5 ms of each second."""

_AGENT: Final = re.compile(rb"\r\n[Uu][Ss][Ee][Rr]-[Aa][Gg][Ee][Nn][Tt]:[ \t]*([^\r\n]{0,256})")


class Ledger:
    """See the module.

    Args:
        mode: how much is asked.
        ask: asks who it was; ``None``: that cannot be known here.
        clock: seconds that never go back.
    """

    def __init__(self, mode: AuditMode, ask: AskWho | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = None if mode == "off" else ask
        self._bucket = Bucket(PER_SECOND, BURST) if mode == "summary" else None
        self._clock = clock
        # All mutable state:
        self._not_before = float("-inf")  # until then nothing is asked
        self._rows: dict[tuple[Given, Who, str], int] = {}
        # Counts without an asker, by the identity of what was given, which is held with them: no hash of its words.
        self._unasked: dict[int, tuple[Given, list[int]]] = {}
        self._refused: dict[Reason, int] = {}

    def serve(self, given: Given, ends: Ends, agent: Callable[[], str]) -> None:
        """Count an answer, just before it is sent.

        Args:
            given: what it holds.
            ends: of its connection.
            agent: what the client calls itself; asked only if that is written down.
        """
        if self._ask is not None and self._may_ask():
            between = ends()
            if between is not None:
                row = (given, self._ask(*between), plain(agent()))
                if row not in self._rows and len(self._rows) >= MOST_ROWS:
                    row = (*row[:2], "")  # whoever invents names makes nobody's asker be forgotten
                if row in self._rows or len(self._rows) < 2 * MOST_ROWS:
                    self._rows[row] = self._rows.get(row, 0) + 1
                    return
        counted = self._unasked.get(id(given))
        if counted is None:
            if len(self._unasked) >= MOST_ROWS:
                self._fold()  # many that are equal and not the same: each identity token has a note of its own
            counted = self._unasked.setdefault(id(given), (given, [0]))
        counted[1][0] += 1

    def _fold(self) -> None:
        """Count by its words what was counted by its identity."""
        unasked, self._unasked = self._unasked, {}
        for given, (count,) in unasked.values():
            row = (given, NOT_ASKED, "")
            if row not in self._rows and len(self._rows) >= 2 * MOST_ROWS:
                row = next(reversed(self._rows))  # nobody has so many credentials in a second
            self._rows[row] = self._rows.get(row, 0) + count

    def _may_ask(self) -> bool:
        if self._bucket is None:
            return True
        now = self._clock()
        if now < self._not_before:
            return False
        wait = self._bucket.take(now)
        self._not_before = now + wait
        return not wait

    def refuse(self, reason: Reason) -> None:
        """Count a request that was refused, or a connection that was ended."""
        self._refused[reason] = self._refused.get(reason, 0) + 1

    def take(self) -> tuple[tuple[Serving, ...], tuple[tuple[Reason, int], ...]]:
        """What was counted since the last time; it is counted no more."""
        self._fold()
        rows, self._rows = self._rows, {}
        refused, self._refused = self._refused, {}
        return tuple(Serving(*key, count) for key, count in rows.items()), tuple(refused.items())


def agent_in(data: bytes) -> str:
    """The ``User-Agent`` in a request's head; empty where there is none."""
    found = _AGENT.search(data)
    return "" if found is None else found[1].decode("latin-1")
