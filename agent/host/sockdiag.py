"""The owner of the socket at the other end of a TCP connection on this machine, from the kernel (sock_diag(7)).

Ten microseconds for one socket, whatever else is open: cheap enough for each connection of a flood. The table of all
sockets (:mod:`agent.host.sockets`) takes as long as there are sockets, and a flood leaves tens of thousands.

The unit's sandbox has no netlink: systemd makes the socket and passes it along (``ListenNetlink=`` in the control
socket's unit). It answers questions about sockets, and allows nothing else without privileges.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from agent.host.sockets import METADATA_PORT, Endpoint
from agent.wire.names import METADATA_ADDRESSES

NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h
_BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY, linux/sock_diag.h
_REQUEST: Final = 1  # NLM_F_REQUEST
_LISTENING: Final = 10  # TCP_LISTEN
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_ASKED: Final = struct.Struct("=BBBBI2s2s16s16sIII")  # struct inet_diag_req_v2
_TOLD: Final = struct.Struct("=BBBB2s2s16s16sIII IIIII")  # struct inet_diag_msg
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr
_CGROUP_ID: Final = 21  # INET_DIAG_CGROUP_ID, linux/inet_diag.h
_ALL_STATES: Final = 0xFFF
_NO_COOKIE: Final = 0xFFFFFFFF
_MOST_BYTES: Final = 4096
_STALE: Final = 8
_MOST_LEFT: Final = 100_000
"""More answers than any receive buffer holds: some hundred bytes each, of a megabyte at most."""
_MAPPED: Final = bytes(10) + b"\xff\xff"

_Spelt = tuple[int, bytes, bytes]  # family, port, address


class Holder(NamedTuple):
    """Who has a socket.

    Attributes:
        user: its uid.
        cgroup: the id of its control group (the inode of its directory); 0: a kernel before 5.9 does not say.
    """

    user: int
    cgroup: int


class Gone(ConnectionError):
    """The socket at the other end was closed by whoever had it: nobody is left to read an answer."""


class SocketDiagnosis:
    """Asks about one socket after the other. Never waits.

    Args:
        passed: what the service manager passed; the first netlink socket among them is used, and one of our own made
            when there is none.

    Raises:
        OSError: there is no such socket, and none may be made.
    """

    def __init__(self, passed: Iterable[socket.socket] = ()) -> None:
        given = next((one for one in passed if one.family == socket.AF_NETLINK), None)
        self._socket = given or socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
        )
        self._socket.setblocking(False)
        # No number that whoever had it before us, and may have been taken over, could have asked by.
        self._number = int.from_bytes(os.urandom(4))
        self._is_given = given is not None
        self.begin()

    def begin(self) -> None:
        """Read what was answered to whoever had the socket before us: all of it, also after an overrun (ENOBUFS)."""
        if not self._is_given:
            return
        for _ in range(_MOST_LEFT):
            try:
                self._socket.recv(_MOST_BYTES, socket.MSG_DONTWAIT)  # whoever has it too can make it wait
            except BlockingIOError:
                return
            except OSError:
                continue

    def owner(self, peer: Endpoint, local: Endpoint) -> int | None:
        """The user whose socket is at ``peer`` in a connection that we have at ``local``; ``None``: not known.

        Raises:
            Gone: it is closed already.
            OSError: the kernel does not answer such questions.
        """
        found = self.holder(peer, local)
        return None if found is None else found.user

    def holder(self, peer: Endpoint, local: Endpoint) -> Holder | None:
        """The same, with the control group of that socket.

        Raises:
            Gone: it is closed already.
            OSError: the kernel does not answer such questions.
        """
        own, direct = _spelt(*peer), _spelt(*local)
        if own is None or direct is None:
            return None
        # Our socket has one other end. If that is not connected to our address, the rules led it here, and two users
        # may hold the same port towards two metadata addresses: then a request counts against neither.
        holder = self._ask(own, direct)
        if holder is None:
            found, gone = set[Holder | None](), None
            for there in _LED:
                if there[0] == own[0]:
                    try:
                        found.add(self._ask(own, there))
                    except Gone as error:
                        gone = error
            found.discard(None)
            if gone is not None and not found:
                raise gone
            holder = found.pop() if len(found) == 1 else None
        return holder

    def _ask(self, own: _Spelt, there: _Spelt) -> Holder | None:
        self._number = (self._number + 1) & 0xFFFFFFFF
        family, port, address = own
        body = _ASKED.pack(
            family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES, port, there[1], address, there[2], 0, _NO_COOKIE, _NO_COOKIE
        )
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST, self._number, 0) + body)
        # It answers within the call that asks; late answers to earlier questions are skipped.
        for _ in range(_STALE):
            try:
                answer = self._socket.recv(_MOST_BYTES, socket.MSG_DONTWAIT)
            except OSError:
                # Whoever has the socket too has taken it, or filled the queue (ENOBUFS): a server that was taken over
                # and ends. It must not be what this kernel answers for good.
                return None
            if len(answer) < _HEADER.size:
                return None
            _, kind, _, number, _ = _HEADER.unpack_from(answer)
            if number == self._number:
                return _holder(answer, own, there) if kind == _BY_FAMILY else None
        return None

    def close(self) -> None:
        """Ask no more."""
        with contextlib.suppress(OSError):
            self._socket.close()


def _holder(answer: bytes, own: _Spelt, there: _Spelt) -> Holder | None:
    if len(answer) < _HEADER.size + _TOLD.size:
        return None
    _, state, _, _, port, to_port, *rest = _TOLD.unpack_from(answer, _HEADER.size)
    user, inode = rest[-2:]
    # Where no connection is found the kernel names whoever listens there.
    if state == _LISTENING or port != own[1] or to_port != there[1]:
        return None
    if not inode:
        raise Gone
    return Holder(int(user), _control_group(answer))


def _control_group(answer: bytes) -> int:
    at = _HEADER.size + _TOLD.size
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _CGROUP_ID and length == _ATTRIBUTE.size + 8 and at + length <= len(answer):
            return int.from_bytes(answer[at + _ATTRIBUTE.size : at + length], sys.byteorder)
        at += max(length + 3 & ~3, _ATTRIBUTE.size)
    return 0


@lru_cache(maxsize=64)  # clients here have one of the machine's own addresses, of which there are few
def _address(host: str) -> tuple[int, bytes] | None:
    host = host.partition("%")[0]
    try:
        if ":" not in host:
            return socket.AF_INET, socket.inet_pton(socket.AF_INET, host).ljust(16, b"\0")
        packed = socket.inet_pton(socket.AF_INET6, host)
    except OSError:
        return None
    # An IPv6 socket that speaks IPv4 is found by its IPv4 addresses.
    return (socket.AF_INET, packed[12:].ljust(16, b"\0")) if packed[:12] == _MAPPED else (socket.AF_INET6, packed)


def _spelt(host: str, port: int) -> _Spelt | None:
    found = _address(host)
    return None if found is None else (found[0], port.to_bytes(2, "big"), found[1])


_LED: Final = tuple(one for host in METADATA_ADDRESSES if (one := _spelt(host, METADATA_PORT)) is not None)
