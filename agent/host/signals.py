"""What a process inherits about signals, and must not: execve(2) hands on what is ignored and what is blocked."""

from __future__ import annotations

import signal
from collections.abc import Collection
from typing import Final

MEANINGLESS: Final = frozenset(
    {signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR}
) | frozenset(range(signal.SIGRTMIN, signal.SIGRTMAX + 1))
"""What other daemons take for a wish (to begin a new log, to show their state), or what somebody else's timer or power
supply sends. None of it means anything here, and each ends a process that does not heed it."""


def hear_of_children() -> None:
    """Have the ends of children told.

    Where whoever began us ignores ``SIGCHLD`` (a shell after ``trap '' CHLD``, some supervisors), so do we: the kernel
    then keeps no child for waitpid(2), its number may be another process's by the time that we end it, and a command
    that failed counts as one that did not.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def begin(*, blocked: Collection[signal.Signals] = ()) -> None:
    """Begin as if nobody had blocked or ignored anything, and ignore what means nothing: nobody is ended by it.

    Where what asks for the end is blocked, it is never heard of.

    Args:
        blocked: those that are to wait.
    """
    hear_of_children()
    for number in MEANINGLESS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
