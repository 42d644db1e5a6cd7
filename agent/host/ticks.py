"""Instants at which all who look from time to time are woken together: being woken costs more than most looks."""

from __future__ import annotations


def left(now: float, every: float) -> float:
    """Seconds until the next multiple of ``every``: more than none, and ``every`` at most.

    Args:
        now: on the clock by which is slept.
        every: seconds.
    """
    return every - now % every
