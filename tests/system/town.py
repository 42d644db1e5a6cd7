"""A local network of namespaces: hosts on one bridge, each with an address of 10.88.0.0/24, and an ear at the bridge.

Nothing of it touches the host's own network. Machines that boot (:mod:`tests.system.machine`) are plugged in by a second
interface of theirs.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from tests.system.leftovers import Claim
from tests.system.machine import call

_numbers = itertools.count()
_CLONE_NEWNET = 0x40000000

# Each frame once: as it comes in from whoever sent it. ETH_P_ALL, SO_RCVBUFFORCE, PACKET_OUTGOING, PACKET_STATISTICS.
_LISTEN = """
import signal, socket, struct, sys
ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
ear.setsockopt(socket.SOL_SOCKET, 33, 1 << 27)
def end(*_):
    raise SystemExit
signal.signal(signal.SIGTERM, end)
with open(sys.argv[1], "wb") as out:
    print("up", flush=True)
    try:
        while True:
            frame, where = ear.recvfrom(1 << 17)
            if where[2] != 4:
                out.write(struct.pack("<I", len(frame)) + frame)
    finally:
        ear.setblocking(False)
        try:
            while True:
                frame, where = ear.recvfrom(1 << 17)
                if where[2] != 4:
                    out.write(struct.pack("<I", len(frame)) + frame)
        except BlockingIOError:
            pass
        print(struct.unpack("II", ear.getsockopt(263, 6, 8))[1], flush=True)
"""


@contextlib.contextmanager
def within(space: str) -> Iterator[None]:
    """Sockets that this thread makes meanwhile are of that namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as here, Path("/run/netns", space).open("rb") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns: {space}")
        try:
            yield
        finally:
            if libc.setns(here.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns: back")


class Town:
    """The network."""

    def __init__(self) -> None:
        self.name = f"tn{os.getpid() % 100000}x{next(_numbers)}x{secrets.token_hex(2)}"
        self.bridge = f"{self.name}-bridge"
        self._claims: list[Claim] = []
        self._ports = itertools.count()

    def __enter__(self) -> Self:
        self._space(self.bridge)
        call("ip", "-n", self.bridge, "link", "add", "br0", "type", "bridge")
        call("ip", "-n", self.bridge, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for claim in reversed(self._claims):
            claim.release()

    def _space(self, name: str) -> str:
        self._claims.append(Claim("netns", name))
        call("ip", "netns", "add", name)
        call("ip", "-n", name, "link", "set", "lo", "up")
        return name

    def host(self, letter: str, *addresses: str) -> str:
        """A host that does not boot: a namespace with these addresses; returns its name."""
        space = self._space(f"{self.name}-{letter}")
        self.plug(space, *addresses)
        return space

    def plug(self, space: str, *addresses: str) -> None:
        """Give a namespace an interface ``lan`` on the bridge, with these addresses."""
        port = f"port{next(self._ports)}"
        call("ip", "-n", self.bridge, "link", "add", port, "type", "veth", "peer", "name", "lan", "netns", space)
        call("ip", "-n", self.bridge, "link", "set", port, "master", "br0", "up")
        for address in addresses:
            call("ip", "-n", space, "address", "add", f"{address}/24", "dev", "lan")
        call("ip", "-n", space, "link", "set", "lan", "up")


def at(space: str, user: int, hosts: Path | None = None) -> list[str]:
    """The beginning of a command line that runs the rest in a namespace, as a user without name, group or capability.

    Args:
        space: the namespace.
        user: its number; 0: root.
        hosts: the file of names there; ``None``: this machine's.
    """
    names = 'mount --bind "$0" /etc/hosts; ' if hosts else ""
    become = [f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all"] if user else []
    become = ["setpriv", *become, "--pdeathsig=TERM"]
    return ["ip", "netns", "exec", space, "sh", "-ec", f'{names}exec "$@"', str(hosts or "sh"), *become]


class Ear:
    """Hears everything that crosses the bridge of a town, from its making until :meth:`stop`."""

    def __init__(self, town: Town, file: Path) -> None:
        self._file = file
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", town.bridge, sys.executable, "-I", "-S", "-c", _LISTEN, str(file)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "up\n", "nobody listens"

    def stop(self) -> None:
        """Hear no more. Everything was heard, or this is an error."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            said, _ = self._process.communicate(timeout=60)
            assert said.strip() == "0", f"missed frames: {said}"

    def said(self, apart_from: Sequence[str]) -> bytes:
        """What was said over TCP, each connection and direction by itself; none from or to addresses ``apart_from``."""
        self.stop()
        flows: dict[tuple[str, int, str, int], list[tuple[int, bytes]]] = defaultdict(list)
        data = self._file.read_bytes()
        at_ = 0
        while at_ < len(data):
            (size,) = struct.unpack_from("<I", data, at_)
            frame = data[at_ + 4 : at_ + 4 + size]
            at_ += 4 + size
            if (found := _segment(frame)) is not None and not {found[0][0], found[0][2]} & set(apart_from):
                flows[found[0]].append(found[1:])
        return b"\n\n".join(_joined(pieces) for pieces in flows.values())


def _segment(frame: bytes) -> tuple[tuple[str, int, str, int], int, bytes] | None:
    """Of an Ethernet frame: the ends of a TCP connection over IPv4, the place of the piece (RFC 9293), the piece."""
    if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
        return None
    begin = 14 + (frame[14] & 15) * 4
    (length,) = struct.unpack_from("!H", frame, 16)
    source, target, place = struct.unpack_from("!HHI", frame, begin)
    header = (frame[begin + 12] >> 4) * 4
    syn = frame[begin + 13] & 2
    ends = socket.inet_ntoa(frame[26:30]), source, socket.inet_ntoa(frame[30:34]), target
    return ends, (place + bool(syn)) & 0xFFFFFFFF, frame[begin + header : 14 + length]


def _joined(pieces: list[tuple[int, bytes]]) -> bytes:
    """The bytes of one direction in their order; what is sent again counts once."""
    first = pieces[0][0]
    known = bytearray()
    for place, piece in sorted(((place - first) & 0xFFFFFFFF, piece) for place, piece in pieces if piece):
        known += b"?" * (place - len(known))
        known += piece[len(known) - place :]
    return bytes(known)
