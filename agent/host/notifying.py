"""A datagram to the service manager (sd_notify(3)), whose queue anybody may fill.

Everybody on the machine may write to systemd's socket, and a worker that does so without end keeps its queue full:
whoever only looks whether there is room finds none, and one whose signs of life do not arrive is ended. Whoever waits
is given a place in turn by the kernel.
"""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Sequence
from typing import Final

WAIT_SECONDS: Final = 0.05
"""For a place in the queue. No longer: a manager that does not read must not stop a loop that does other things."""
TELL_AGAIN_SECONDS: Final = 0.5
"""Until something is told again that found none."""


def send(address: str, lines: Sequence[str], fds: Sequence[int] = ()) -> bool:
    """Send assignments in one datagram; whether it was taken.

    Args:
        address: the value of ``NOTIFY_SOCKET``; a leading ``@`` stands for the abstract namespace.
        lines: ``NAME=value``.
        fds: descriptors sent along.
    """
    to = f"\0{address[1:]}" if address.startswith("@") else address
    along = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # The kernel's limit: Python's own would wait for room, and then look whether it is there still.
            limit = struct.pack("ll", int(WAIT_SECONDS), int(WAIT_SECONDS % 1 * 1e6))
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            sender.sendmsg(["\n".join(lines).encode()], along, 0, to)
    except OSError:
        return False
    return True
