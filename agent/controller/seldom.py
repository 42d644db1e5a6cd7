"""How often is the same thing said of the same source? A source that flaps does not fill the journal.

Whoever can write a file, or answers for a URL, could otherwise have a line written with each look, for as long as the
machine lives: by bytes that differ each time, by coming and going. The first lines of each kind are said at once, the
rest now and then, with the number of those that were not. Counting, acknowledging and the status are not limited.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from agent.core.bucket import Bucket

BURST: Final = 20
"""Lines of one kind that are said at once: a person who tries something sees each attempt."""
PER_SECOND: Final = 1 / 60


class Seldom:
    """See the module.

    Args:
        boottime: seconds on a clock that never steps.
    """

    def __init__(self, boottime: Callable[[], float]) -> None:
        self._boottime = boottime
        self._buckets: dict[tuple[str, ...], Bucket] = {}
        self._left: Counter[tuple[str, ...]] = Counter()

    def unsaid(self, *kind: str) -> int | None:
        """How many of ``kind`` were left unsaid since the last that was said; ``None``: this one is to be, too.

        Args:
            kind: the event, of whom, and what else tells one kind from another. There must be few of each.
        """
        if self._buckets.setdefault(kind, Bucket(PER_SECOND, BURST)).take(self._boottime()):
            self._left[kind] += 1
            return None
        return self._left.pop(kind, 0)
