"""What comes at the very end of a program ends it no sooner, and no otherwise."""

from __future__ import annotations

import subprocess
import sys

LATE = """
import signal, threading
from agent.host import signals

def heard(number, frame):
    pass

signal.signal(signal.SIGRTMIN, heard)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
signals.last()
signal.pthread_kill(threading.get_ident(), signal.SIGRTMIN)
# As the interpreter does at its end with what has a handler in Python.
if signal.getsignal(signal.SIGRTMIN) is heard:
    signal.signal(signal.SIGRTMIN, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGRTMIN})
"""


def test_what_breaks_off_a_close_and_comes_late_ends_nobody() -> None:
    """The agent ends as it was told to, though a stranger's descriptor is being closed in that moment."""
    assert subprocess.run([sys.executable, "-c", LATE], check=False, timeout=60).returncode == 0
