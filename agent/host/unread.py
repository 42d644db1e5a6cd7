"""What a peer said before its end, and nobody has read.

A transport that fails to write gives up its socket and what came by it, though that may have been said long before.
"""

from __future__ import annotations

import contextlib
import os
import socket
from asyncio import BaseTransport
from typing import Final

MOST_BYTES: Final = 1 << 20
"""The kernel holds less; a peer that has not ended may go on to write."""


class Unread:
    """See the module.

    *Resources*: a descriptor, from :meth:`begin` until :meth:`close` or :meth:`last`.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def begin(self, transport: BaseTransport) -> None:
        """The connection is made. If no descriptor is to be had, there will be nothing to read."""
        with contextlib.suppress(OSError):
            self._socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))

    def last(self) -> bytes:
        """What is left, when the transport has ended."""
        read = bytearray()
        with contextlib.suppress(OSError):
            while (
                self._socket is not None
                and len(read) < MOST_BYTES
                and (data := self._socket.recv(1 << 16, socket.MSG_DONTWAIT))
            ):
                read += data
        self.close()
        return bytes(read)

    def close(self) -> None:
        """Read nothing more."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
