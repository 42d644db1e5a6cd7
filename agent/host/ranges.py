"""Which uids are workers'? Ranges, as the configuration writes them and as a rule needs them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from agent.core.errors import HostError

MAX_UID: Final = 0xFFFFFFFE  # the last number is "no user"


def parse_uids(texts: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Read ``1000`` and ``1000-60000``; sort, join what touches.

    Raises:
        HostError: it is neither, or includes root: the machine's own services run as root.
    """
    ranges = []
    for text in texts:
        first, dash, last = text.partition("-")
        numbers = (first, last if dash else first)
        if not all(number.isascii() and number.isdigit() and len(number) <= 10 for number in numbers):
            raise HostError(f"redirect.uids: expected a uid or a range such as 1000-60000, got {text!r}")
        low, high = (int(number) for number in numbers)
        if low > high or high > MAX_UID:
            raise HostError(f"redirect.uids: expected a rising range up to {MAX_UID}, got {text!r}")
        if low == 0:
            raise HostError(
                "redirect.uids: uid 0 cannot be a worker: the machine's own services run as root",
                hint="name the slice that root's jobs run in: units = [...]",
            )
        ranges.append((low, high))
    return merge(ranges)


def merge(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sort ranges and join those that overlap or touch."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Every uid that is not in ``ranges`` (ascending and apart)."""
    rest = []
    start = 0
    for low, high in ranges:
        if start < low:
            rest.append((start, low - 1))
        start = high + 1
    if start <= MAX_UID:
        rest.append((start, MAX_UID))
    return tuple(rest)


def without(ranges: Sequence[tuple[int, int]], taken: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The parts of ``ranges`` that are in none of ``taken`` (ascending and apart)."""
    free = complement(taken)
    parts = ((max(low, first), min(high, last)) for low, high in ranges for first, last in free)
    return merge((low, high) for low, high in parts if low <= high)
