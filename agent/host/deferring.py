"""Listening sockets that tell of a connection when its first bytes are there, and not before.

A client connects and then sends; told of both, a server is woken twice for each request, and on a machine whose
processors compute each time costs a wait. HTTP's client always speaks first, so nothing is lost (tcp(7),
``TCP_DEFER_ACCEPT``).

One that stays silent is told of after a second all the same, and has its deadlines then. Until then the kernel keeps
some 300 bytes of it among those whose handshake is not over, of whom there may be as many as wait at a listening
socket. Whoever opens more than that in a second drives others from there, for two seconds or more, if the kernel sends
no cookies in their place (ip-sysctl, ``tcp_syncookies``). So this is asked for only where it is known to send them.

The network is the sockets': within a unit that has another one, or does not see ``/proc/sys``, only the service manager
can tell (:data:`CREDENTIAL`).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

SECONDS: Final = 1
"""The kernel rounds it up to when it would send a handshake's answer again: 1 s."""
CREDENTIAL: Final = "syncookies"
"""The name under which the service manager passes what :data:`COOKIES` says (systemd.exec(5), ``LoadCredential=``)."""
COOKIES: Final = Path("/proc/sys/net/ipv4/tcp_syncookies")  # of IPv6, too
_SENT: Final = frozenset({"1", "2"})


def passed(environ: Mapping[str, str]) -> Path | None:
    """Where the service manager tells whether the kernel sends cookies; ``None``: it does not."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    return Path(directory, CREDENTIAL) if directory else None


def defer(sockets: Iterable[socket.socket], *, cookies: Path | None = COOKIES) -> None:
    """Have these sockets do so, those of them that listen on TCP; where the kernel cannot, all is as it was.

    Where it is not known that the kernel sends cookies they tell at once, also those that did not before: who made them
    keeps them for longer than we live.

    Args:
        sockets: bound ones, whoever made them.
        cookies: tells whether the kernel sends cookies in the network of these sockets; ``None``: nothing tells.
    """
    seconds = SECONDS if _sends(cookies) else 0
    for one in sockets:
        if one.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, seconds)


def _sends(cookies: Path | None) -> bool:
    if cookies is None:
        return False
    try:
        return cookies.read_text(encoding="ascii").strip() in _SENT
    except (OSError, ValueError):
        return False
