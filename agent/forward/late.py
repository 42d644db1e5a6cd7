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
        self._under_way: dict[str, object] = {}
        self._begun: dict[str, int] = {}  # whose turn it was when, of those that are late
        self._turn = 0

    def attend(self, names: Collection[str]) -> None:
        """Begin with those of them that nobody waits for yet. Returns at once."""
        with self._changed:
            self._begun = {name: turn for name, turn in self._begun.items() if name in names}
            # Whose turn is longest ago comes first: else as many that never answer would keep out all others.
            for name in sorted(names, key=lambda one: (self._begun.get(one, 0), one)):
                if len(self._under_way) >= AT_ONCE:
                    return
                if name not in self._under_way:
                    # A daemon thread: a program that ends does not wait for it either.
                    thread = threading.Thread(target=self._one, args=(name,), name="credential-agent-late", daemon=True)
                    try:
                        thread.start()
                    except (RuntimeError, MemoryError):  # this computer has no further thread just now
                        return
                    self._turn += 1
                    self._begun[name] = self._turn
                    self._under_way[name] = thread

    def wait(self) -> None:
        """Until those that were begun with have been dealt with; not for whoever is begun with meanwhile."""
        with self._changed:
            begun = set(self._under_way.values())
            self._changed.wait_for(lambda: begun.isdisjoint(self._under_way.values()))

    def _one(self, name: str) -> None:
        try:
            # What the courier raises is told by who asks for all the workers.
            with contextlib.suppress(Exception):
                self._serve(name)
                self._told()
        finally:
            with self._changed:
                self._under_way.pop(name, None)
                self._changed.notify_all()
