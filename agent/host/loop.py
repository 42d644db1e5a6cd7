"""The event loop: uvloop's where it is packaged, else the standard one, which does the same, slower.

uvloop is given a connected socket by its number, and takes hold of the object only after the protocol has had its turn.
A connection that ends before that (its peer has left, and the first write fails, or its end is read) is closed by
number, and then once more when the object goes: by then the number may be another's, a listening socket's or a key's.
So here the object lets go of its number as soon as the loop has it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

try:
    from uvloop import Loop as _Base
except ImportError:
    from asyncio import SelectorEventLoop as _Base  # type: ignore[assignment]


class Loop(_Base):
    """See the module."""

    async def create_unix_connection(self, *arguments: Any, sock: socket.socket | None = None, **named: Any) -> Any:
        """As the loop's own. A ``sock`` is the connection's from then on, whatever comes of it."""
        try:
            return await super().create_unix_connection(*arguments, sock=sock, **named)
        finally:
            _let_go(sock)

    async def create_connection(self, *arguments: Any, sock: socket.socket | None = None, **named: Any) -> Any:
        """As the loop's own. A ``sock`` is the connection's from then on, whatever comes of it."""
        try:
            return await super().create_connection(*arguments, sock=sock, **named)
        finally:
            _let_go(sock)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait for nothing. The loop's own begins a thread to wait for ours, and there may be none to begin."""


def _let_go(sock: socket.socket | None) -> None:
    if sock is not None and not issubclass(Loop, asyncio.SelectorEventLoop):
        sock.detach()
