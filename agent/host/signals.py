"""What a process inherits about signals, and must not: execve(2) hands on what is ignored and what is blocked."""

from __future__ import annotations

import signal
from collections.abc import Collection


def hear_of_children() -> None:
    """Have the ends of children told.

    Where whoever began us ignores ``SIGCHLD`` (a shell after ``trap '' CHLD``, some supervisors), so do we: the kernel
    then keeps no child for waitpid(2), its number may be another process's by the time that we end it, and a command
    that failed counts as one that did not.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def begin(*, blocked: Collection[signal.Signals] = ()) -> None:
    """Begin as if nobody had blocked or ignored anything: else an end that is asked for is never heard of.

    Args:
        blocked: those that are to wait.
    """
    hear_of_children()
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
