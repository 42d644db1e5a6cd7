"""A kernel that tells of files when a test says so: :class:`agent.host.watches.Watches` without one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


class Telling:
    """See the module.

    Attributes:
        begun: all of them, the oldest first.
        told: whether it has told.
        closed: whether it is watched no more.
    """

    begun: ClassVar[list[Telling]] = []

    def __init__(self) -> None:
        self.told = threading.Event()
        self.closed = threading.Event()

    @classmethod
    def on(cls, _: Sequence[Path]) -> Telling:
        """Begin."""
        cls.begun.append(cls())
        return cls.begun[-1]

    def wait(self, seconds: float) -> bool:
        """Wait until it tells."""
        return self.told.wait(seconds)

    def wake(self) -> None:
        """End a wait."""
        self.told.set()

    def close(self) -> None:
        """End."""
        self.closed.set()
