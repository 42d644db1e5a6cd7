"""How long a fuzzer goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator


def rounds(seconds: float, least: int) -> Iterator[int]:
    """Counts from 0 for so long, and up to ``least`` however long that takes: a busy machine tries no less than a test counts on."""
    ends = time.monotonic() + seconds
    number = 0
    while number < least or time.monotonic() < ends:
        yield number
        number += 1
