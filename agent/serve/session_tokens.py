"""Session tokens of EC2's dialect: made, and known again when they are shown."""

from __future__ import annotations

import math
import secrets
from typing import Final

from agent.core.clock import Clock
from agent.wire.ec2 import MAX_TTL_SECONDS, TokenKey

GRACE_SECONDS: Final = 120
"""How long a token is still good after its end: CRT and Rust use theirs to the last second by their own clock."""
_MOST_KNOWN: Final = 1024
"""So many, and as many before them, are remembered as ours, with their ends: each is checked once, not at each request.
Most are shown twice within a moment."""


class SessionTokens:
    """See the module.

    Args:
        key: with which they are made, the same in all processes that answer.
        clock: by its boot time they end. A corrected wall clock must not end one before its client's time (Rust never
            asks again on 401), and both start anew with the machine.

    Raises:
        ValueError: the key is too short.
    """

    def __init__(self, key: bytes, clock: Clock) -> None:
        self._key = TokenKey(key)
        self._clock = clock
        # All mutable state:
        self._known: dict[str, int] = {}
        self._known_before: dict[str, int] = {}

    def mint(self, ttl: int) -> bytes:
        """One that is good for ``ttl`` seconds."""
        ends = math.ceil(self._clock.boottime() + ttl)
        token = self._key.make(ends, secrets.token_bytes(6))
        self._know(token, ends)
        return token.encode("ascii")

    def left(self, token: str) -> int | None:
        """Seconds that one is still good for; ``None`` when it is not ours or has ended."""
        ends = self._known.get(token) or self._known_before.get(token)
        if ends is None:
            ends = self._key.ends(token)
            if ends is None:
                return None
            self._know(token, ends)
        left = int(ends - self._clock.boottime())
        # Above the maximum: made before a reboot, by a boot-time clock that had run for longer.
        return max(left, 0) if -GRACE_SECONDS <= left <= MAX_TTL_SECONDS else None

    def _know(self, token: str, ends: int) -> None:
        if len(self._known) >= _MOST_KNOWN:
            self._known, self._known_before = {}, self._known
        self._known[token] = ends
