"""What begins the processes that answer workers, as those who tell them something see it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class Begins(Protocol):
    """What begins servers: told first, asked who is there."""

    @property
    def alive(self) -> Collection[int]:
        """The process ids of all that were begun and have not ended."""

    @property
    def settled(self) -> bool:
        """Whether those are all that may know an older snapshot than was given last."""

    def give(self, data: bytes) -> None:
        """Keep this snapshot for those that are begun from now on, and none before it."""

    def end(self, pid: int) -> None:
        """Kill one."""


class Nobody:
    """In its place where nothing begins any.

    Args:
        settled: false: there is one, and it cannot be asked just now.
    """

    alive: Collection[int] = ()

    def __init__(self, *, settled: bool = True) -> None:
        self.settled = settled

    def give(self, data: bytes) -> None:
        """See :class:`Begins`."""

    def end(self, pid: int) -> None:
        """See :class:`Begins`."""
