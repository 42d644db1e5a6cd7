"""Token buckets: how often something may be done, with time as a parameter.

It bounds what a worker's request can cause elsewhere (an identity token minted with the user's quota, a packet
to the metadata service). One bucket says how often in all; one for each asker, smaller, says that no asker can empty
the one for all. Several can: what is within the asker's own waits for a token of the one for all
(:class:`agent.serve.fairness.Pace`), and is not refused.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Bucket:
    """Holds up to ``burst`` tokens and gains ``per_second`` of them a second.

    Args:
        per_second: tokens a second; above 0.
        burst: the most that it holds, and what it begins with; at least 1.
    """

    __slots__ = ("_at", "_burst", "_left", "_per_second")

    def __init__(self, per_second: float, burst: float) -> None:
        if per_second <= 0 or burst < 1:
            raise RuntimeError("internal error: expected a bucket that holds and gains something")
        self._per_second = per_second
        self._burst = burst
        self._left = burst
        self._at: float | None = None

    def wait_seconds(self, now: float) -> float:
        """Seconds until a token is there; 0 when one is.

        Args:
            now: seconds on a clock that never steps (monotonic or boot time).
        """
        self._fill(now)
        return 0.0 if self._left >= 1 else (1 - self._left) / self._per_second

    def is_scarce(self, now: float) -> bool:
        """Whether it is more than half empty."""
        self._fill(now)
        return 2 * self._left < self._burst

    def take(self, now: float) -> float:
        """Take a token if there is one: 0; else the seconds until there is, and nothing is taken."""
        wait = self.wait_seconds(now)
        if not wait:
            self._left -= 1
        return wait

    def _fill(self, now: float) -> None:
        if self._at is not None and now > self._at:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        if self._at is None or now > self._at:
            self._at = now


class Buckets(Generic[K]):
    """One bucket for all and one for each key.

    A key's own bucket is asked first: a key that asks without end is refused there, and takes nothing from the common.

    Args:
        common: the bucket for all.
        per_second: of each key's.
        burst: of each key's; smaller than the common one's, or one key could empty that.
        most: how many keys are known at once. Above it the one that has been silent for longest is forgotten:
            whoever can invent keys (addresses) without end is then bounded by the common bucket alone.
    """

    def __init__(self, common: Bucket, *, per_second: float, burst: float, most: int = 1024) -> None:
        self._common = common
        self._per_second = per_second
        self._burst = burst
        self._most = most
        self._of: dict[K, Bucket] = {}  # the one that asked last is last

    def __len__(self) -> int:
        return len(self._of)

    def is_scarce(self, now: float) -> bool:
        """Whether more than half of the common bucket is gone, so that it matters who asks."""
        return self._common.is_scarce(now)

    def take_common(self, now: float) -> float:
        """Take a token from the common bucket: 0; else the seconds until it has one, and nothing is taken."""
        return self._common.take(now)

    def take_own(self, key: K, now: float) -> float:
        """Take a token from the key's own bucket, in the same way."""
        own = self._of.pop(key, None) or Bucket(self._per_second, self._burst)
        self._of[key] = own
        if len(self._of) > self._most:
            del self._of[next(iter(self._of))]
        return own.take(now)
