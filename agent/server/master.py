"""Keeps one server alive, and the sockets on which it answers. Hears the controller alone, and parses nothing.

What the controller says on the control socket (``SOCK_SEQPACKET``, so that one message is one read): :data:`LISTEN`
with the listening sockets, :data:`END` to kill the server that does not do what it is told, :data:`STOP` to let it
finish. What the master says: :data:`LINK`, with the controller's end of the link to the server that it begins.

It ends with the controller, however that ends (``PR_SET_PDEATHSIG``), and its server with it.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import time
import traceback
from typing import Final

from agent.host import confine, descriptors, seccomp, systemd
from agent.server import work

LISTEN: Final = b"listen"
LINK: Final = b"link"
END: Final = b"end"
STOP: Final = b"stop"
MOST_SOCKETS: Final = 64
_PAUSE_SECONDS: Final = 0.2
_LONG_ENOUGH_SECONDS: Final = 2.0
"""A server that ends sooner than this is not begun again at once: it would end again."""


def main(descriptor: int, parent: int) -> None:
    """Be the master until the controller ends.

    Args:
        descriptor: of the control socket.
        parent: the process id of the controller.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all of us; the controller decides
    confine.end_with_parent(parent)
    descriptors.raised()
    seccomp.give_up_execution(io_uring=False)
    systemd.harden()
    gc.freeze()  # what is here now is never looked at again, so that its pages stay shared
    with socket.socket(fileno=descriptor) as control:
        Master(control).run()


class Master:
    """See the module."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._sockets: list[socket.socket] = []
        self._child = 0
        self._watched = -1
        self._began = 0.0
        self._stopping = False

    def run(self) -> None:
        """Until the controller is gone, or its last server after a stop."""
        self._control.setblocking(True)
        while not (self._stopping and not self._child):
            waiting = [self._control.fileno()] + ([self._watched] if self._child else [])
            ready, _, _ = select.select(waiting, [], [])
            if self._child and self._watched in ready:
                self._reap()
                if not self._stopping:
                    self._begin_again()
            elif not self._hear():
                break
        if self._child:
            os.kill(self._child, signal.SIGKILL)

    def _hear(self) -> bool:
        said, fds, _, _ = socket.recv_fds(self._control, 64, MOST_SOCKETS)
        if said == LISTEN:
            self._sockets = [socket.socket(fileno=fd) for fd in fds]
            self._begin()
        elif said == END and self._child:
            os.kill(self._child, signal.SIGKILL)
        elif said == STOP:
            self._stopping = True
            for one in self._sockets:
                one.close()
            if self._child:
                os.kill(self._child, signal.SIGTERM)
        return bool(said)

    def _begin_again(self) -> None:
        if time.monotonic() - self._began < _LONG_ENOUGH_SECONDS:
            time.sleep(_PAUSE_SECONDS)
        self._begin()

    def _begin(self) -> None:
        theirs, its = socket.socketpair()
        self._began = time.monotonic()
        child = os.fork()
        if not child:
            code = 1
            try:
                self._control.close()
                theirs.close()
                work.run(its, self._sockets, parent=os.getppid())
                code = 0
            except BaseException:  # noqa: BLE001 - a fork's border: what the master would go on with is not its business
                traceback.print_exc()
            finally:
                os._exit(code)
        its.close()
        self._child, self._watched = child, os.pidfd_open(child)
        with theirs:
            socket.send_fds(self._control, [LINK], [theirs.fileno()])

    def _reap(self) -> None:
        os.waitpid(self._child, 0)
        os.close(self._watched)
        self._child = 0
