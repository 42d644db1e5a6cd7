"""Somebody between the client and the scheduler of a Dask cluster: hears all, and may change what passes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self


class Relay:
    """A man in the middle of ``tcp://``.

    Args:
        target: host and port of the scheduler.
        change: what becomes of a piece that passes; as long as it was.
    """

    def __init__(self, target: tuple[str, int], change: Callable[[bytes], bytes] = lambda piece: piece) -> None:
        self._target = target
        self._change = change
        self._heard: list[bytes] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def heard(self) -> bytes:
        """All that passed, in both directions."""
        with self._lock:
            return b"".join(self._heard)

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _listen(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            callee = socket.create_connection(self._target)
            self._open += [caller, callee]
            for ends in ((caller, callee), (callee, caller)):
                threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(1 << 20):
                with self._lock:
                    self._heard.append(piece)
                sink.sendall(self._change(piece))
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return
