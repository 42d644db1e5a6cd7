"""Somebody between two ends of a Dask cluster's ``tcp://``: hears all, and may change or keep back each message.

Messages are framed as ``distributed.comm.tcp`` frames them: eight bytes of length, little-endian, and so many bytes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Self

LENGTH = struct.Struct("<Q")
Change = Callable[[bytes], bytes | None]


class Relay:
    """A man in the middle.

    Args:
        target: host and port of the scheduler.
        change: what becomes of a message that passes; as long as it was, or ``None``: it does not.
        host: where it listens.
        within: entered by whoever makes a socket: a network namespace, say.
    """

    def __init__(
        self,
        target: tuple[str, int],
        change: Change = lambda message: message,
        *,
        host: str = "127.0.0.1",
        within: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self._target = target
        self._change = change
        self._within = within
        self._heard: list[bytes] = []
        self._lock = threading.Lock()
        with within():
            self._listener = socket.create_server((host, 0))
        self._sockets: list[socket.socket] = []
        self.address = f"tcp://{host}:{self._listener.getsockname()[1]}"

    @property
    def heard(self) -> bytes:
        """All that was sent, in both directions, before it was changed."""
        return b"".join(self.messages)

    @property
    def messages(self) -> list[bytes]:
        """The same, each by itself."""
        with self._lock:
            return list(self._heard)

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _listen(self) -> None:
        with self._within():
            while True:
                try:
                    caller, _ = self._listener.accept()
                    callee = socket.create_connection(self._target)
                except OSError:
                    return
                self._sockets += [caller, callee]
                for ends in ((caller, callee), (callee, caller)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            with source.makefile("rb") as stream:
                while head := stream.read(LENGTH.size):
                    message = stream.read(*LENGTH.unpack(head))
                    with self._lock:
                        self._heard.append(message)
                    changed = self._change(message)
                    if changed is not None:
                        sink.sendall(LENGTH.pack(len(changed)) + changed)
            sink.shutdown(socket.SHUT_WR)
        except (OSError, struct.error, ValueError):
            return
