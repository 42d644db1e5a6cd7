"""The master as one of its servers has it: what it says is done, and what it is to know is said."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from agent.server.forked import ASKED, LINK, TAKE_OVER, hear, say_alive, say_served, say_waiting

Connect = Callable[[socket.socket], Coroutine[Any, Any, None]]
"""Connects by a link to another controller than before."""


class Supervisor:
    """See the module. To be made in the event loop.

    Args:
        master: the connection; ``None``: there is no master.
        connect: by each link that it gives.
        stands_by: whether this server answers nobody until the master says so.

    Attributes:
        answers: set once this server is to answer.
    """

    def __init__(self, master: socket.socket | None, connect: Connect, *, stands_by: bool) -> None:
        self.answers = asyncio.Event()
        if not stands_by:
            self.answers.set()
        self._master = master
        self._connect = connect
        self._connecting: set[asyncio.Task[None]] = set()

    def heed(self) -> None:
        """Do what it says from now on."""
        if self._master is not None:
            asyncio.get_running_loop().add_reader(self._master.fileno(), self._hear, self._master)

    def _hear(self, master: socket.socket) -> None:
        try:
            said, given = hear(master)
        except OSError:
            return  # no memory for it just now: it is there yet
        if said == LINK and given is None:
            return  # there is no descriptor for it: whoever has its other end hears that it has ended, and ends us
        if given is not None and said == LINK:
            task = asyncio.get_running_loop().create_task(self._connect(given), name="a controller")
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        elif said == TAKE_OVER:
            self.answers.set()
        elif said == ASKED:
            say_alive(master)
        else:  # it has ended, and this process with it
            asyncio.get_running_loop().remove_reader(master.fileno())

    def serves(self) -> None:
        """Tell it that workers are answered."""
        if self._master is not None:
            say_served(self._master)

    def waiting(self) -> None:
        """Tell it that connections wait which nobody takes."""
        if self._master is not None:
            say_waiting(self._master)
