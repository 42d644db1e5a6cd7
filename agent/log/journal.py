"""The journal, where the stream that it gave us has no other end any more.

The service manager gives a service the journal's stream at its start. A journal that is restarted keeps the streams;
one that was stopped and is back has lost them, and nobody gives a process another. So what finds no reader there is
sent to the journal as a datagram, as https://systemd.io/JOURNAL_NATIVE_PROTOCOL/ has it.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final

ADDRESS: Final = Path("/run/systemd/journal/socket")
GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})
"""What a write to a stream without another end fails with."""
WAIT_SECONDS: Final = 1.0
_NAME: Final = b"credential-agent"
_INFO: Final = b"6"


def is_its_stream(descriptor: int, named: str | None) -> bool:
    """Whether a descriptor is the stream of the journal's that ``JOURNAL_STREAM`` names (systemd.exec(5))."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return named == f"{found.st_dev}:{found.st_ino}"


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
