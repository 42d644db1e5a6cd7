"""What a listener asks of its handlers, and what it tells: of a request, of who sent it, of what became of it."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Final

import msgspec

from agent.wire.http import Request, Response


class Drop(enum.Enum):
    """Close the connection without an answer: the one failure that awscrt survives on a credential document."""

    DROP = "drop"


DROP: Final = Drop.DROP
Outcome = Response | Drop
Later = Callable[[], Coroutine[Any, Any, Outcome]]
"""An answer that must be waited for: called once, by the task that waits. (A coroutine made before and not awaited,
because the client left in the same instant, would be a warning.)"""

Handler = Callable[[Request, "Peer"], Outcome | Later]


class Limits(msgspec.Struct, frozen=True):
    """What one client, or all of them, may take.

    Attributes:
        head_bytes: the request line and all fields. EKS tokens are JWTs of 2 kB; SDK user agents reach 1 kB.
        line_bytes: the request line, or one field.
        headers: their number.
        body_bytes: of a request that means a body; on the workers' endpoint only guest attributes (GCE) do.
        head_seconds: from the connection to the whole request. SDKs send it at once; their own patience is 1 s.
        connections: open at once; each holds a file descriptor, so ``LimitNOFILE`` must be well above.
        held: requests that wait for a change at once; a thousand programs that start before the first credential do.
        spared_seconds: a connection younger than this is closed to make room after all others of its owner.
        buffered_bytes: of all requests that are not whole or wait, and of all answers that are not read, together.
        unread_seconds: how long an answer may stay unread.
        half_closed_seconds: how long a request may be held whose client has ended its side. That it only wants to read
            (``nc -N``) and that it is gone look the same, and what is gone must not hold a long poll for an hour.
    """

    head_bytes: int = 16384
    line_bytes: int = 8190
    headers: int = 64
    body_bytes: int = 65536
    head_seconds: float = 5.0
    connections: int = 8192
    held: int = 4096
    spared_seconds: float = 0.5
    unread_seconds: float = 5.0
    half_closed_seconds: float = 3.0
    buffered_bytes: int = 1 << 24


class Access(msgspec.Struct, frozen=True):
    """One request that was answered or dropped. Holds no secret: neither query nor headers but the user agent.

    Attributes:
        status: 0 when the connection was closed without an answer.
        seconds: from the whole request to the answer.
        size_bytes: of the answer's body.
        peer: ``ADDRESS:PORT`` or ``uid=UID pid=PID``; only for refusals, to find who sends them.
    """

    method: str
    path: str
    status: int
    seconds: float
    size_bytes: int
    user_agent: str
    peer: str | None = None


class Peer:
    """Who is at the other end; asked for lazily, since it costs a system call."""

    __slots__ = ("_owner", "_transport")

    def __init__(self, transport: asyncio.Transport, owner: Callable[[], Coroutine[Any, Any, Hashable]]) -> None:
        self._transport = transport
        self._owner = owner

    async def owner(self) -> Hashable:
        """To whose share this request counts: a user id, else an address. Takes a moment: for what is slow anyway."""
        return await self._owner()

    def address(self) -> str:
        """``ADDRESS:PORT`` of a TCP peer; empty for any other."""
        return address_of(self._transport)

    def socket(self) -> Any:
        """The socket, for its options only."""
        return self._transport.get_extra_info("socket")


def address_of(transport: asyncio.Transport) -> str:
    """``ADDRESS:PORT`` of the other end; empty where it has none."""
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple) and len(name) >= 2:
        return f"[{name[0]}]:{name[1]}" if ":" in str(name[0]) else f"{name[0]}:{name[1]}"
    return ""
