"""Signals at the two ends of a program: what it inherits and must not, and what comes before it can heed anything.

execve(2) hands on what is ignored and what is blocked, and sets all else to its default: a signal that comes in the
first moments ends the program, or is an error in the middle of an import. So :func:`first` is called before anything
else is loaded, and this module loads next to nothing itself; what is left is the interpreter's own start.
"""

from __future__ import annotations

import signal

TYPE_CHECKING = False  # the module typing takes longer to load than all of this
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Final

MEANINGLESS: Final = frozenset(
    {signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR}
) | frozenset(range(signal.SIGRTMIN, signal.SIGRTMAX + 1))
"""What other daemons take for a wish (to begin a new log, to show their state), or what somebody else's timer or power
supply sends. None of it means anything here, and each ends a process that does not heed it."""


def first(*, blocked: Collection[signal.Signals] | None) -> None:
    """The first thing that a program does: nothing that comes from now on is an error in the middle of an import.

    Args:
        blocked: for a daemon: those that are to wait until it heeds them; what means nothing is ignored. ``None``: a
            command, which hands nothing on to what it may execute.
    """
    if blocked is not None:
        _ignore_what_means_nothing()
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def interruptible() -> None:
    """From here on SIGINT is an exception, which somebody reports in words."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def last() -> None:
    """The loop has done its work, and heeds no more: what asks for less than the end does not end the end.

    What breaks off a close (:mod:`agent.serve.handed`) may not have come yet, and the interpreter, as it ends, sets
    what it heeds to the default, which would end us by that signal.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT})
    signal.signal(signal.SIGRTMIN, signal.SIG_IGN)


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
    _ignore_what_means_nothing()
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _ignore_what_means_nothing() -> None:
    for number in MEANINGLESS:
        signal.signal(number, signal.SIG_IGN)
