"""One server as its master sees it: a process, what tells of its end, and what it writes.

What tells is the end of a connection: not every kernel and sandbox has pidfd_open(2). By the same one the server says
that it answers workers, gets a new link when another controller is there, and is told to take over, or asked whether it
is alive.

What a server writes to its standard streams goes to a pipe of its own, and its last lines to our standard error once it
has ended, marked as its own. It has not got ours: the service manager's is a socket that we all share, and one that was
taken over could write there as the agent, or shut it down, which would silence the agent.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final

MOST_COMPLAINT_BYTES: Final = 4000
"""So much fits into a pipe or a socket that takes anything at all (PIPE_BUF, pipe(7))."""
_MOST_LINES: Final = 30
_MOST_LINE_BYTES: Final = 120
_MOST_HEARD_BYTES: Final = 1 << 16
_SERVES: Final = b"+"
_ALIVE: Final = b"."
_WAITING: Final = b"?"
LINK: Final = b"link"
"""With a link to another controller than before. The master's word to a server, as those that follow."""
TAKE_OVER: Final = b"take over"
"""To one that stands by: answer workers from now on."""
ASKED: Final = b"alive"
"""Say that you are."""
_DOUBTS_SECONDS: Final = 0.5
"""An honest one says less often that connections wait."""

_MOST_EARLY: Final = 64
"""As often as one that is honest says it within two minutes: longer no master stands still."""

Work = Callable[[socket.socket, int], None]
"""What a server does until its end, given its end of the connection to the master, and the master's process id."""


class Said(Enum):
    """What a server says."""

    NOTHING = 0
    SERVES = 1
    """Workers are answered."""
    ALIVE = 2
    """It was asked, and answers."""
    WAITING = 3
    """It stands by, and connections wait that nobody takes."""
    ENDED = 4
    """It has ended, or says what no honest one does."""


def say_served(master: socket.socket) -> None:
    """Tell the master that workers are answered. For the server."""
    master.send(_SERVES)


def say_alive(master: socket.socket) -> None:
    """Tell the master that this server answers, because it asked. For the server."""
    master.send(_ALIVE)


def say_waiting(master: socket.socket) -> None:
    """Tell the master that connections wait which nobody takes. For the server that stands by."""
    with contextlib.suppress(BlockingIOError):  # it hangs, and has heard that already
        master.send(_WAITING, socket.MSG_DONTWAIT)


def hear(master: socket.socket) -> tuple[bytes, socket.socket | None]:
    """What the master says, and the link that came along. For the server, when there is something to hear."""
    said, fds, _, _ = socket.recv_fds(master, 16, 1)
    return said, socket.socket(fileno=fds[0]) if fds else None


class Forked:
    """A server that was begun.

    Attributes:
        pid: its process id.
        watched: becomes readable when it serves, or has ended.
        began: when, by the monotonic clock.
        serves: whether it has said so.
        killed_at: when it is to be killed, since it was told to end; ``None``: it was not, or is killed.

    *Resources*: the process, a connection and a pipe, until :meth:`reap`.
    """

    def __init__(self, pid: int, master: socket.socket, heard: int) -> None:
        self.pid = pid
        self.watched = master.fileno()
        self._master = master
        self.began = time.monotonic()
        self.serves = False
        self.killed_at: float | None = None
        self._ends = False
        self._is_asked = False
        self._doubted = float("-inf")
        self._early = 0
        self._heard = heard  # what it writes to its standard streams

    @property
    def descriptors(self) -> tuple[int, int]:
        """What another server must not have."""
        return self.watched, self._heard

    def hear(self) -> Said:
        """Hear, when :attr:`watched` is readable, what it says, or that it has ended."""
        try:
            said = self._master.recv(2, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return Said.NOTHING
        except OSError:
            return Said.ENDED
        now = time.monotonic()
        if said == _SERVES and not self.serves:
            self.serves = True
            return Said.SERVES
        if said == _ALIVE and self._is_asked:
            self._is_asked = False
            return Said.ALIVE
        if said == _WAITING and not self.serves:
            is_new = now - self._doubted >= _DOUBTS_SECONDS
            self._early = 0 if is_new else self._early + 1
            if is_new:
                self._doubted = now
                return Said.WAITING
            if self._early <= _MOST_EARLY:
                return Said.NOTHING  # it was said while the master stood still, and is heard now
        return Said.ENDED  # also of one that says more than there is to say: it is killed with that

    def link(self, given: socket.socket) -> None:
        """Give it a link to another controller than before."""
        with contextlib.suppress(OSError):  # it hangs, or has ended
            socket.send_fds(self._master, [LINK], [given.fileno()], socket.MSG_DONTWAIT)

    def take_over(self) -> bool:
        """Have it answer workers; false: it cannot be told."""
        return self._tell(TAKE_OVER)

    def ask(self) -> None:
        """Have it say that it is alive."""
        self._is_asked = True
        self._tell(ASKED)  # one that reads nothing does not answer either

    def _tell(self, word: bytes) -> bool:
        try:
            self._master.send(word, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def end(self, grace_seconds: float) -> None:
        """Tell it to accept nothing more, and to end when what is under way is answered; kill it after the grace."""
        if not self._ends:
            self._ends, self.killed_at = True, time.monotonic() + grace_seconds
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it now."""
        self._ends, self.killed_at = True, None
        os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Wait for its end, and pass on what it wrote last."""
        self.kill()  # if it has only closed what we watch: it is not waited for
        os.waitpid(self.pid, 0)
        self._master.close()
        with contextlib.suppress(BlockingIOError):  # it has written nothing, and what it wrote to is open yet
            lines = os.read(self._heard, _MOST_HEARD_BYTES).splitlines()[-_MOST_LINES:]
            write(b"".join(b"server: %s\n" % line[:_MOST_LINE_BYTES] for line in lines))
        os.close(self._heard)


def fork(work: Work, *, but: Iterable[int]) -> Forked:
    """Begin a server.

    Args:
        work: what it does.
        but: descriptors that it must not have.

    Raises:
        OSError: no process or descriptor is to be had just now.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        heard, said = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        ours.close()
        its.close()
        raise
    parent = os.getpid()  # asked here: in the child the answer may be whoever takes in orphans
    try:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                for standard in (1, 2):
                    os.dup2(said, standard)
                for one in (ours.fileno(), heard, said, *but):
                    os.close(one)
                work(its, parent)
                code = 0
            except BaseException:  # noqa: BLE001 - a fork's border: the master's work is not its business
                write(traceback.format_exc().encode(errors="replace"))
            finally:
                os._exit(code)
    except OSError:
        ours.close()
        os.close(heard)
        raise
    finally:
        its.close()
        os.close(said)
    return Forked(pid, ours, heard)


def write(data: bytes) -> None:
    """Write it to standard error, if that can be done at once: a log that hangs must not hold up a successor."""
    with contextlib.suppress(OSError, ValueError):
        if data and sys.stderr is not None and select.select([], [sys.stderr], [], 0)[1]:
            os.write(sys.stderr.fileno(), data[-MOST_COMPLAINT_BYTES:])
