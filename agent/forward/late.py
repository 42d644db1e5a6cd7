"""Workers that do not answer in time, each waited for by itself: nobody else's renewal or first task waits for them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection
from typing import Final

AT_ONCE: Final = 32
"""So many are waited for at the same time; the others' turn comes."""


class Stragglers:
    """Deals with those that are late.

    Args:
        serve: deals with one, and waits for it as long as makes sense.
        told: called when one has been dealt with.
    """

    def __init__(self, serve: Callable[[str], None], told: Callable[[], None]) -> None:
        self._serve = serve
        self._told = told
        self._changed = threading.Condition()
        self._under_way: set[str] = set()

    def attend(self, names: Collection[str]) -> None:
        """Begin with those of them that nobody waits for yet. Returns at once."""
        with self._changed:
            for name in sorted(names):
                if len(self._under_way) >= AT_ONCE:
                    return
                if name not in self._under_way:
                    self._under_way.add(name)
                    # A daemon thread: a program that ends does not wait for it either.
                    threading.Thread(target=self._one, args=(name,), name="credential-agent-late", daemon=True).start()

    def wait(self) -> None:
        """Until those that were begun with have been dealt with."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way)

    def _one(self, name: str) -> None:
        try:
            # What the courier raises is told by who asks for all the workers.
            with contextlib.suppress(Exception):
                self._serve(name)
                self._told()
        finally:
            with self._changed:
                self._under_way.discard(name)
                self._changed.notify_all()
