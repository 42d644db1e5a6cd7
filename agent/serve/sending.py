"""Answers that came to be in one round of the event loop leave together.

To send an answer wakes the client that waits for it. Where the processor of that client is asleep, waking it is most of
what sending costs, above all on a virtual machine: a fifth of all that a request cost whose answer was not remembered.
For a client that is awake it costs nothing, and the clients of a worker share a few processors. So of all that wait and
can be answered at once, some are answered first, and their answers are then sent in one go: a few at a time, so that
nobody waits for long for what is ready.

All is sent before the loop goes on. So nothing is served after a withdrawal because it lay here: the loop hears of that
in another round.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

AT_ONCE: Final = 16
"""So many leave together at most. With more nothing is gained, and who is killed in that moment cuts off more."""
SECONDS: Final = 0.0005
"""Nothing more is gathered when the first has waited for so long."""
LARGE: Final = 1 << 16
"""An answer of more bytes is sent at once: many of them would be much to keep."""


class Answer(NamedTuple):
    """What is to be sent, and to whom: the connection, its other end, its owner where that is known."""

    sock: socket.SocketType
    peer: Any
    owner: Any
    data: bytes


class Sender:
    """See the module. Used as a context, it gathers what is sent in it.

    Args:
        deliver: sends one, and ends its connection.
        now: seconds of a clock that does not jump.
    """

    def __init__(self, deliver: Callable[[Answer], None], *, now: Callable[[], float] = time.perf_counter) -> None:
        self._deliver = deliver
        self._now = now
        # All mutable state:
        self._gathers = False
        self._gathered: list[Answer] = []
        self._since = 0.0

    def __enter__(self) -> None:
        self._gathers = True

    def __exit__(self, *error: object) -> None:
        self._gathers = False
        self._leave()

    def send(self, answer: Answer) -> None:
        """Send it, at the latest when the context ends."""
        if not self._gathers or len(answer.data) > LARGE:
            self._deliver(answer)
            return
        now = self._now()
        if not self._gathered:
            self._since = now
        self._gathered.append(answer)
        if len(self._gathered) >= AT_ONCE or now - self._since >= SECONDS:
            self._leave()

    def _leave(self) -> None:
        gathered, self._gathered = self._gathered, []
        failed: Exception | None = None
        for answer in gathered:
            try:
                self._deliver(answer)
            except Exception as error:  # noqa: BLE001 - it costs this one its answer, and nobody else
                answer.sock.close()
                failed = error
        if failed is not None:
            raise failed
