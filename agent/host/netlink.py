"""Did somebody change the packet filter or an address? The kernel tells whoever listens (netlink(7), rtnetlink(7))."""

from __future__ import annotations

import socket
from typing import Final

_NETLINK_ROUTE: Final = 0
_NETLINK_NETFILTER: Final = 12
_GROUP_NFTABLES: Final = 1 << 6  # NFNLGRP_NFTABLES
_GROUP_ADDRESSES: Final = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR


class Watch:
    """One kind of news of this network namespace.

    Args:
        family: of netlink.
        groups: the multicast groups, as bits.
        about: what a message must hold to count; empty: every message counts.
    """

    def __init__(self, family: int, groups: int, about: bytes = b"") -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, family)
        self._socket.bind((0, groups))
        self._about = about

    def fileno(self) -> int:
        """The descriptor that becomes readable with news."""
        return self._socket.fileno()

    def has_news(self) -> bool:
        """Read all that waits; returns whether any of it counts, or something was lost."""
        counts = False
        while True:
            try:
                counts |= self._about in self._socket.recv(65_536)
            except BlockingIOError:
                return counts
            except OSError:  # ENOBUFS: messages were lost
                counts = True

    def close(self) -> None:
        """Listen no longer."""
        self._socket.close()


def rules(about: bytes) -> Watch:
    """Changes of nftables that name ``about``."""
    return Watch(_NETLINK_NETFILTER, _GROUP_NFTABLES, about)


def addresses() -> Watch:
    """Changes of the addresses of interfaces."""
    return Watch(_NETLINK_ROUTE, _GROUP_ADDRESSES)
