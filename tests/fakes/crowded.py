"""A unix socket whose queue others keep full, so that whoever only looks whether there is room finds none."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def crowded(path: Path) -> Iterator[socket.socket]:
    """Listen at ``path``, with a full queue of connections that have nothing to say; gives the listening socket."""
    with contextlib.ExitStack() as stack, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                flood = stack.enter_context(socket.socket(socket.AF_UNIX))
                flood.setblocking(False)
                flood.connect(str(path))
                flood.shutdown(socket.SHUT_WR)
        yield listening
