"""What begins the processes that answer workers, as those who tell them something see it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from agent.host.emptiable import Emptiable


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
    """In its place where nothing begins any."""

    alive: Collection[int] = ()
    settled = True

    def give(self, data: bytes) -> None:
        """See :class:`Begins`."""

    def end(self, pid: int) -> None:
        """See :class:`Begins`."""


class Away(Nobody):
    """In its place while it cannot be asked: whether it has ended, and what its servers serve, is not known.

    Args:
        given: what it was given. Whoever begins anew would begin with that, so it is emptied by what is newer.
    """

    settled = False

    def __init__(self, given: Sequence[Emptiable] = ()) -> None:
        self._given = given

    def give(self, data: bytes) -> None:  # noqa: ARG002 - there is nobody to give it to
        """See :class:`Begins`."""
        for one in self._given:
            one.empty()
