"""Which bytes are looked at again, and when? For each part of an origin: the last that may still become right."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import msgspec

from agent.core import refresh
from agent.core.clock import Clock
from agent.core.model import SealedBundle

NEVER: Final = float("inf")


class _Retry(msgspec.Struct):
    """Bytes that were not taken, and when (boot-time seconds) to look at them again."""

    sealed: SealedBundle
    attempts: int
    at: float


class Retries:
    """Keeps bytes for another look.

    Args:
        keeps: whether bytes of an origin are kept; what anybody can bring must not pile up.
        clock: counts the seconds until they are looked at again.
        rng: for the jitter.
    """

    def __init__(self, keeps: Callable[[str], bool], clock: Clock, rng: random.Random) -> None:
        self._keeps = keeps
        self._clock = clock
        self._rng = rng
        self._kept: dict[tuple[str, str], _Retry] = {}  # by origin and its part
        self._newest: dict[tuple[str, str], SealedBundle | None] = {}  # the one evaluated last; `None`: forgotten since

    @property
    def origins(self) -> frozenset[str]:
        """The origin of the bytes that are kept for another look."""
        return frozenset(origin for origin, _part in self._kept)

    @property
    def due_at(self) -> float:
        """When the first of them is due, in boot-time seconds; infinity: none is."""
        return min((retry.at for retry in self._kept.values()), default=NEVER)

    def due(self, boottime: float) -> list[SealedBundle]:
        """The bytes that are due now. It is kept, and not due again, until :meth:`take` or :meth:`keep`."""
        found = [retry for retry in self._kept.values() if retry.at <= boottime]
        for retry in found:
            retry.at = NEVER
        return [retry.sealed for retry in found]

    def take(self, sealed: SealedBundle) -> int:
        """Keep nothing of its place any more, as ``sealed`` is evaluated; returns how often the same bytes were."""
        retry = self._kept.pop(_place(sealed), None)
        if self._keeps(sealed.origin):
            self._newest[_place(sealed)] = sealed
        return retry.attempts if retry is not None and retry.sealed is sealed else 0

    def forget(self, origin: str) -> None:
        """Keep nothing of ``origin``, which has no parts, and nothing of what is being evaluated just now."""
        self._kept.pop((origin, ""), None)
        self._newest[origin, ""] = None

    def newest(self, sealed: SealedBundle) -> bool:
        """Whether nothing of its place was evaluated or forgotten since its evaluation began."""
        return self._newest.get(_place(sealed), sealed) is sealed

    def keep(self, sealed: SealedBundle, attempts: int, seconds: float | None) -> None:
        """Look at it again after ``seconds``, or (``None``) when :meth:`retry_now` is called.

        Opening takes as long as a key service does. What came from the same place meanwhile is what counts, and what
        was forgotten meanwhile does not come back.

        Args:
            sealed: replaces what was kept of its place.
            attempts: how often it was evaluated before this time.
            seconds: from now.
        """
        if self._keeps(sealed.origin) and self.newest(sealed):
            at = NEVER if seconds is None else self._clock.boottime() + seconds
            self._kept[_place(sealed)] = _Retry(sealed, attempts + 1, at)

    def keep_soon(self, sealed: SealedBundle, attempts: int, pause_seconds: float) -> None:
        """Look at it again soon, and later each time: whoever had to help with it (a key service) was silent.

        Args:
            sealed: see :meth:`keep`.
            attempts: likewise.
            pause_seconds: for how long that asked not to be asked again; half a minute of it is heard.
        """
        seconds = refresh.retry_seconds(attempts + 1, None, denied=False, rng=self._rng)
        self.keep(sealed, attempts, seconds + max(1.0, refresh.pause_seconds(pause_seconds, None)))

    def retry_now(self) -> None:
        """Have all of it due now."""
        for retry in self._kept.values():
            retry.at = min(retry.at, self._clock.boottime())


def _place(sealed: SealedBundle) -> tuple[str, str]:
    return sealed.origin, sealed.part
