"""Listening sockets that tell of a connection when its first bytes are there, and not before.

A client connects and then sends; told of both, a server is woken twice for each request, and on a machine whose
processors compute each time costs a wait. HTTP's client always speaks first, so nothing is lost (tcp(7),
``TCP_DEFER_ACCEPT``).

One that stays silent is told of after a second all the same, and has its deadlines then. Until then the kernel keeps
some 300 bytes of it among those whose handshake is not over, of whom there may be as many as wait at a listening
socket. Whoever opens more than that in a second drives others from there if the kernel sends no cookies in their place
(ip-sysctl, ``tcp_syncookies``): then this is not asked for.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SECONDS: Final = 1
"""The kernel rounds it up to when it would send a handshake's answer again: 1 s."""
_COOKIES: Final = Path("/proc/sys/net/ipv4/tcp_syncookies")  # of IPv6, too


def defer(sockets: Iterable[socket.socket], *, cookies: Path = _COOKIES) -> None:
    """Have these sockets do so, those of them that listen on TCP; where the kernel cannot, all is as it was.

    Args:
        sockets: bound ones, whoever made them.
        cookies: tells whether the kernel sends cookies; unreadable: it does, as every distribution has it.
    """
    with contextlib.suppress(OSError):
        if cookies.read_text(encoding="ascii").strip() == "0":
            return
    for one in sockets:
        if one.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, SECONDS)
