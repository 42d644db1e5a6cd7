"""A name server, as far as stub resolvers ask it: written from RFC 1035 (messages) and RFC 3596 (AAAA).

It answers over UDP and, since answers that do not fit are cut there, over TCP, at a loopback address of its own.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import threading
from typing import Final, Self

A, AAAA = 1, 28
NO_ERROR, SERVER_FAILURE, NO_SUCH_NAME = 0, 2, 3
_RESPONSE: Final = 0x8180  # an answer; recursion was wanted, and is to be had
_CUT: Final = 0x0200
_MOST_BYTES: Final = 512


class NameServer:
    """A name server.

    Attributes:
        names: the addresses of each name; a name that is not here does not exist.
        silent: whether it answers nothing at all.
        code: what it says instead of any answer.
        asked: the names that were asked for, in the order of the questions.
    """

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.silent = False
        self.code = NO_ERROR
        self.asked: list[str] = []
        pid = os.getpid()
        self.address = f"127.{pid >> 16 & 127 | 64}.{pid >> 8 & 255}.{pid & 255 or 1}"

    def __enter__(self) -> Self:
        """Listen; it needs to be root, since resolvers know port 53 only."""
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._tcp = socket.socket()
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for one in (self._udp, self._tcp):
            one.bind((self.address, 53))
        self._tcp.listen(16)
        self._threads = [threading.Thread(target=serve, daemon=True) for serve in (self._datagrams, self._streams)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._udp.sendto(b"", self._udp.getsockname())  # an empty one wakes it, and ends it
        with contextlib.suppress(OSError):
            self._tcp.shutdown(socket.SHUT_RD)
        for thread in self._threads:
            thread.join(10)
        self._udp.close()
        self._tcp.close()

    def _datagrams(self) -> None:
        while True:
            asked, peer = self._udp.recvfrom(_MOST_BYTES)
            if not asked:
                return
            answer = self._answer(asked)
            if answer is not None:
                cut = answer[:2] + struct.pack(">H", _RESPONSE | _CUT) + answer[4:6] + bytes(6) + asked[12:]
                self._udp.sendto(answer if len(answer) <= _MOST_BYTES else cut, peer)

    def _streams(self) -> None:
        while True:
            try:
                stream, _ = self._tcp.accept()
            except OSError:
                return
            with stream, contextlib.suppress(OSError, struct.error):
                stream.settimeout(10)
                while length := stream.recv(2, socket.MSG_WAITALL):  # both families are asked on one connection
                    answer = self._answer(stream.recv(int.from_bytes(length), socket.MSG_WAITALL))
                    if answer is not None:
                        stream.sendall(struct.pack(">H", len(answer)) + answer)

    def _answer(self, asked: bytes) -> bytes | None:
        labels, at = [], 12
        while asked[at]:
            labels.append(asked[at + 1 : at + 1 + asked[at]].decode().lower())
            at += 1 + asked[at]
        kind, _ = struct.unpack_from(">HH", asked, at + 1)
        question, name = asked[12 : at + 5], ".".join(labels)
        self.asked.append(name)
        if self.silent:
            return None
        found = [ipaddress.ip_address(one) for one in self.names.get(name, ())]
        fit = [one.packed for one in found if one.version == {A: 4, AAAA: 6}.get(kind)]
        code = self.code or (NO_ERROR if name in self.names else NO_SUCH_NAME)
        fit = fit if not code else []
        records = b"".join(struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(one)) + one for one in fit)
        return asked[:2] + struct.pack(">HHHHH", _RESPONSE | code, 1, len(fit), 0, 0) + question + records
