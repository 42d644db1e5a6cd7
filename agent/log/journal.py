"""The journal, where the stream that it gave us has no other end any more, or where it gave us none.

The service manager gives a service the journal's stream at its start. A journal that is restarted keeps the streams;
one that was stopped and is back has lost them, and nobody gives a process another. A service that is started while the
journal is away gets ``/dev/null``. So what finds no reader there is sent to the journal as a datagram, as
https://systemd.io/JOURNAL_NATIVE_PROTOCOL/ has it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ADDRESS: Final = Path("/run/systemd/journal/socket")
GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})
"""What a write to a stream without another end fails with."""
WAIT_SECONDS: Final = 1.0
_NAME: Final = b"credential-agent"
_INFO: Final = b"6"


def is_its_stream(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether a descriptor is the stream of the journal's that ``JOURNAL_STREAM`` names (systemd.exec(5))."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def was_away(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether the service manager, which began this very process (``SYSTEMD_EXEC_PID``), had no stream for it."""
    if "JOURNAL_STREAM" in environ or environ.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        return False
    try:
        found, null = os.fstat(descriptor), Path(os.devnull).stat()
    except OSError:
        return False
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == null.st_rdev


def end(descriptor: int) -> None:
    """Put a stream in a descriptor's place that has no other end, as one of a journal that was stopped."""
    with contextlib.suppress(OSError):  # no descriptor is to be had: nothing is lost by it that was not
        ours, its = socket.socketpair()
        with ours, its:
            os.dup2(ours.fileno(), descriptor)


def send(line: bytes, address: Path = ADDRESS) -> bool:
    """Send a line, without its end; whether it was taken. Waits for a journal that hangs, but not long."""
    if b"\n" in line:
        return False  # it would be read as fields of its own
    datagram = b"SYSLOG_IDENTIFIER=%b\nPRIORITY=%b\nMESSAGE=%b\n" % (_NAME, _INFO, line)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(WAIT_SECONDS)
            sender.sendto(datagram, str(address))
    except OSError:
        return False
    return True
