"""Keeps one server alive, and the sockets on which it answers. Hears the controller alone, and parses nothing.

What the controller says on the control socket (``SOCK_SEQPACKET``, so that one message is one read): :data:`GIVEN` with
sockets (workers ask on them, or one asks the kernel who does), :data:`LISTEN` when those are all, :data:`END` to kill
the server that does not do what it is told, :data:`STOP` to let it finish. What the master says: :data:`LINK` and the
process id of the server that it begins, with the controller's end of the link to it.

What a server writes to its standard streams goes to a pipe of its own, and its last lines to our standard error once it
has ended, marked as its own. It has not got ours: the service manager's is a socket that we all share, and one that was
taken over could write there as the agent, or shut it down, which would silence the agent.

It ends with the controller, however that ends (``PR_SET_PDEATHSIG``), and its server with it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Final

from agent.host import confine, descriptors, seccomp, systemd
from agent.server import work

GIVEN: Final = b"given"
LISTEN: Final = b"listen"
LINK: Final = b"link"
END: Final = b"end"
STOP: Final = b"stop"
MOST_SOCKETS: Final = 64
"""In one message: the kernel takes 253 (SCM_MAX_FD)."""
MOST_COMPLAINT_BYTES: Final = 4000
"""So much fits into a pipe or a socket that takes anything at all (PIPE_BUF, pipe(7))."""
_MOST_LINES: Final = 30
_MOST_LINE_BYTES: Final = 120
_MOST_HEARD_BYTES: Final = 1 << 16
_PAUSE_SECONDS: Final = 0.2
_MOST_PAUSE_SECONDS: Final = 5.0
_LONG_ENOUGH_SECONDS: Final = 2.0
"""A server that ends sooner than this is not begun again at once: it would end again."""
_MANY: Final = 20
"""After so many that ended too soon, one after the other, the pauses become longer."""


def main(descriptor: int, parent: int) -> None:
    """Be the master until the controller ends.

    Args:
        descriptor: of the control socket.
        parent: the process id of the controller.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all of us; the controller decides
    # Not here, but in a server that was begun a moment ago and does not heed it yet: there it must wait, or is lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    confine.end_with_parent(parent)
    descriptors.raised()
    seccomp.give_up_execution(io_uring=False)
    systemd.harden()
    gc.freeze()  # what is here now is never looked at again, so that its pages stay shared
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream was closed: nothing else may be opened by its number
    os.close(spare)
    with socket.socket(fileno=descriptor) as control:
        Master(control).run()


class Master:
    """See the module."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._sockets: list[socket.socket] = []
        self._child = 0
        self._watched = -1
        self._heard = -1  # what it writes to its standard streams
        self._began = 0.0
        self._short = 0  # so many ended too soon, the last ones
        self._due: float | None = None  # when the next is begun
        self._stopping = False

    def run(self) -> None:
        """Until the controller is gone, or its last server after a stop."""
        self._control.setblocking(True)
        while not (self._stopping and not self._child):
            waiting = [self._control.fileno()] + ([self._watched] if self._child else [])
            pause = None if self._due is None else max(0.0, self._due - time.monotonic())
            ready, _, _ = select.select(waiting, [], [], pause)
            if self._child and self._watched in ready:
                self._reap()
                self._plan()
            elif not ready:
                self._begin()
            elif not self._hear():
                break
        if self._child:
            os.kill(self._child, signal.SIGKILL)

    def _hear(self) -> bool:
        try:
            said, fds, _, _ = socket.recv_fds(self._control, 64, MOST_SOCKETS)
        except ConnectionError:  # it has ended without hearing all that was said
            return False
        if said == GIVEN:
            self._sockets += [socket.socket(fileno=fd) for fd in fds]
        elif said == LISTEN:
            self._begin()
        elif said == END and self._child:
            os.kill(self._child, signal.SIGKILL)
        elif said == STOP:
            self._stopping, self._due = True, None
            for one in self._sockets:
                one.close()
            if self._child:
                os.kill(self._child, signal.SIGTERM)
        return bool(said)

    def _plan(self) -> None:
        """Have another begun, if there is still to be one."""
        if self._stopping:
            return
        now = time.monotonic()
        self._short = self._short + 1 if now - self._began < _LONG_ENOUGH_SECONDS else 0
        pause = min(_PAUSE_SECONDS * 2 ** min(10, max(0, self._short - _MANY)), _MOST_PAUSE_SECONDS)
        self._due = now + (pause if self._short else 0.0)

    def _begin(self) -> None:
        self._due, self._began = None, time.monotonic()
        try:
            theirs, its = socket.socketpair()
            with theirs, its:
                self._fork(theirs, its)
        except OSError:
            self._plan()  # no process or descriptor is to be had just now, because workers have them all, say

    def _fork(self, theirs: socket.socket, its: socket.socket) -> None:
        # Its end is the end of a pipe: not every kernel and sandbox has pidfd_open(2).
        watched, alive = os.pipe()
        try:
            heard, said = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            os.close(watched)
            os.close(alive)
            raise
        parent = os.getpid()  # asked here: in the child the answer may be whoever takes in orphans
        try:
            child = os.fork()
            if not child:
                code = 1
                try:
                    for standard in (1, 2):
                        os.dup2(said, standard)
                    self._control.close()
                    theirs.close()
                    for one in (watched, heard, said):
                        os.close(one)
                    work.run(its, self._sockets, parent=parent)
                    code = 0
                except BaseException:  # noqa: BLE001 - a fork's border: the master's work is not its business
                    _complain()
                finally:
                    os._exit(code)
        except OSError:
            os.close(watched)
            os.close(heard)
            raise
        finally:
            os.close(alive)
            os.close(said)
        self._child, self._watched, self._heard = child, watched, heard
        with contextlib.suppress(OSError):  # the controller has ended, which is heard; so does a server without a link
            socket.send_fds(self._control, [b"%s %d" % (LINK, child)], [theirs.fileno()])

    def _reap(self) -> None:
        os.kill(self._child, signal.SIGKILL)  # if it has only closed what we watch: it is not waited for
        os.waitpid(self._child, 0)
        os.close(self._watched)
        self._child = 0
        with contextlib.suppress(BlockingIOError):  # it has written nothing, and what it wrote to is open yet
            lines = os.read(self._heard, _MOST_HEARD_BYTES).splitlines()[-_MOST_LINES:]
            _write(b"".join(b"server: %s\n" % line[:_MOST_LINE_BYTES] for line in lines))
        os.close(self._heard)


def _complain() -> None:
    """Say what was raised."""
    _write(traceback.format_exc().encode(errors="replace"))


def _write(data: bytes) -> None:
    """Write it to standard error, if that can be done at once: a log that hangs must not hold up a successor."""
    with contextlib.suppress(OSError, ValueError):
        if data and sys.stderr is not None and select.select([], [sys.stderr], [], 0)[1]:
            os.write(sys.stderr.fileno(), data[-MOST_COMPLAINT_BYTES:])
