"""The interface between a listener and its handlers: a request, who sent it, how it was answered."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Final

import msgspec

from agent.core.model import AwsCredential, Cloud
from agent.core.served import Dialect, Given, Reason
from agent.core.text import socket_address
from agent.core.view import Live
from agent.wire.container import ECS
from agent.wire.http import Request, Response
from agent.wire.names import ECS_PREFIX


class Drop(enum.Enum):
    """Close the connection without an answer: the one failure that awscrt survives on a credential document."""

    DROP = "drop"


DROP: Final = Drop.DROP
Outcome = Response | Drop
Later = Callable[[], Coroutine[Any, Any, Outcome]]
"""An answer that must be waited for: called once, by the task that waits. (A coroutine made before and not awaited,
because the client left in the same instant, would be a warning.)"""

Handler = Callable[[Request, "Peer"], Outcome | Later]


class Access(msgspec.Struct, frozen=True):
    """One request that was answered or dropped. Holds no secret: neither query nor headers but the user agent.

    Attributes:
        path: as :func:`shown` leaves it.
        status: 0 when the connection was closed without an answer.
        seconds: from the whole request to the answer.
        size_bytes: of the answer's body.
        peer: ``ADDRESS:PORT`` or ``uid=UID pid=PID``; only for refusals, to find who sends them.
        note: of the answer, if there is one.
    """

    method: str
    path: str
    status: int
    seconds: float
    size_bytes: int
    user_agent: str
    peer: str | None = None
    note: Given | Reason | None = None


def shown(path: str, segments: tuple[str, ...]) -> str:
    """A path as it may be written down: in ECS's form its last segment is the permission, which is nobody's to read."""
    return f"{ECS_PREFIX}..." if len(segments) > 1 and segments[0] == ECS[0] else path


def aws_given(dialect: Dialect, live: Live, credential: AwsCredential) -> Given:
    """What a document with that credential gives."""
    identity = credential.role_arn or live.name
    return Given(dialect, Cloud.AWS, "credential", identity[:256], credential.access_key_id[-4:])


def noted(method: str, outcome: Outcome) -> Given | Reason | None:
    """The note of an answer as it is sent: with HEAD nothing is given."""
    note = outcome.note if isinstance(outcome, Response) else None
    return None if method == "HEAD" and isinstance(note, Given) else note


class Peer:
    """The process at the other end; asked for lazily, since it costs a system call."""

    __slots__ = ("_owner", "_transport")

    def __init__(self, transport: asyncio.Transport, owner: Callable[[], Coroutine[Any, Any, Hashable]]) -> None:
        self._transport = transport
        self._owner = owner

    async def owner(self) -> Hashable:
        """To whose share this request counts: a user id, else an address. May take a moment: for slow work only."""
        return await self._owner()

    def address(self) -> str:
        """``ADDRESS:PORT`` of a TCP peer; empty for any other."""
        return address_of(self._transport)

    def socket(self) -> Any:
        """The socket, for its options only."""
        return self._transport.get_extra_info("socket")


def address_of(transport: asyncio.Transport) -> str:
    """``ADDRESS:PORT`` of the other end; empty where it has none."""
    return name_of(transport.get_extra_info("peername"))


def name_of(name: Any) -> str:
    """``ADDRESS:PORT`` of a TCP socket's name; empty for any other."""
    if isinstance(name, tuple) and len(name) >= 2:
        return socket_address(str(name[0]), name[1])
    return ""
