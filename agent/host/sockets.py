"""The owner of the socket at the other end of a TCP connection on this machine, from the kernel's table.

Inside the sandbox there is only the kernel's table (proc_pid_net(5), ``/proc/self/net/tcp``): ``ProcSubset=pid``
leaves a process's own directory, and it closes netlink, which could be asked for one socket.
Reading it takes time in proportion to all sockets of the machine: a thread's work, and never once for each request.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import struct
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

from agent.wire import names

Endpoint = tuple[str, int]

METADATA_PORT: Final = 80
_PIECE_BYTES: Final = 32768
_ROW: Final = re.compile(
    rb"^ *\d+: ([0-9A-F]{8,32}:[0-9A-F]{4}) ([0-9A-F]{8,32}:[0-9A-F]{4}) 0[1-9AB] \S+ \S+ \S+ +(\d+) +\d+ (\d+)",
    re.MULTILINE,
)


class SocketTable:
    """The table at one moment.

    A client's socket is found by its own address and by where it believes itself connected: to our socket, or to a
    metadata address whose packets the rules lead to us. Where two users match, the owner is unknown.
    """

    def __init__(self, *texts: bytes) -> None:
        self._users: dict[tuple[bytes, bytes], int] = {}
        for text in texts:
            for local, remote, user, inode in chain.from_iterable(_rows(text)):
                # Without an inode the socket has no owner any more (time-wait, orphaned): the 0 there is not root.
                if inode != b"0":
                    self._users[local, remote] = int(user)

    def owner(self, peer: Endpoint, local: Endpoint) -> int | None:
        """The user whose socket is at ``peer`` in a connection that we have at ``local``; ``None``: not known."""
        for own in _spelt(*peer):
            for there in _spelt(*local):
                user = self._users.get((own, there))
                if user is not None:
                    return user
            led = {self._users[own, there] for there in _LED if (own, there) in self._users}
            if led:
                return led.pop() if len(led) == 1 else None
        return None


def _rows(text: bytes) -> Iterator[list[tuple[bytes, bytes, bytes, bytes]]]:
    """The rows, some at a time: a flood leaves thousands, and matching all at once holds up every other thread."""
    at = 0
    while at < len(text):
        end = text.find(b"\n", at + _PIECE_BYTES) + 1 or len(text)
        yield _ROW.findall(text[at:end])
        at = end
        time.sleep(0)


def read_socket_table(directory: Path = Path("/proc/self/net")) -> SocketTable:
    """Read it now. Blocks.

    Raises:
        OSError: there is none.
    """
    texts = [(directory / "tcp").read_bytes()]
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        texts.append((directory / "tcp6").read_bytes())
    return SocketTable(*texts)


def _spelt(host: str, port: int) -> tuple[bytes, ...]:
    """As the kernel writes an endpoint; an IPv4 one in both tables, since a client's socket may be an IPv6 one."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ()
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, ipaddress.IPv4Address):
        mapped = socket.inet_pton(socket.AF_INET6, f"::ffff:{address}")
        return _words(address.packed, port), _words(mapped, port)
    return (_words(address.packed, port),)


def _words(packed: bytes, port: int) -> bytes:
    # In words of the machine's own byte order, as the kernel prints them.
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return ("".join(f"{word:08X}" for word in words) + f":{port:04X}").encode()


_LED: Final = tuple(spelling for host in names.METADATA_ADDRESSES for spelling in _spelt(host, METADATA_PORT))
