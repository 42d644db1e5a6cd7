"""A right answer, as networks, proxies and odd servers bring it: in pieces, late, broken off, dressed up otherwise.

What is said comes from a fake of :mod:`tests.fakes.net`; how it travels is written here by hand, from RFC 9112.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from agent.upstream import Upstream, UpstreamResponse, UpstreamSettings
from tests.fakes.net import Answer, InProcess

RESET = b"<reset>"
"""A piece that is none: the connection is reset there."""
HANG = b"<hang>"
"""A piece that is none: nothing comes any more."""

Pieces = Iterable[bytes]


def head(answer: Answer, *more: tuple[str, str], line: str | None = None) -> bytes:
    fields = [*answer.headers.items(), *more]
    first = line or f"HTTP/1.1 {answer.status} Whatever"
    return "".join([f"{first}\r\n", *(f"{name}: {value}\r\n" for name, value in fields), "\r\n"]).encode()


def sized(answer: Answer) -> tuple[str, str]:
    return "Content-Length", str(len(answer.body))


def whole(answer: Answer, *more: tuple[str, str]) -> bytes:
    return head(answer, *more, sized(answer)) + answer.body


def chunked(answer: Answer, *, size: int = 7, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    pieces = [answer.body[at : at + size] for at in range(0, len(answer.body), size)]
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    return head(answer, ("Transfer-Encoding", "chunked")) + body + b"0\r\n" + trailer + b"\r\n"


def bytewise(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


SAME: Mapping[str, Callable[[Answer], Pieces]] = {
    "as usual": lambda a: [whole(a)],
    "a byte at a time": lambda a: bytewise(whole(a)),
    "chunked": lambda a: [chunked(a)],
    "chunked, a byte at a time": lambda a: bytewise(chunked(a)),
    "chunked with extensions and trailers": lambda a: [chunked(a, extension=b";a=b", trailer=b"X-Sum: 1\r\n")],
    "after 100": lambda a: [b"HTTP/1.1 100 Continue\r\n\r\n", whole(a)],
    "after 103": lambda a: [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", whole(a)],
    "HTTP/1.0, ended by the connection": lambda a: [head(a, line=f"HTTP/1.0 {a.status} OK") + a.body],
    "ended by the connection": lambda a: [head(a) + a.body],
    "without a reason": lambda a: [whole(a).replace(b" Whatever", b" ", 1)],
    "answered twice": lambda a: [whole(a) + whole(a)],
}
"""Another form of the same answer: what comes of it is the same."""

BROKEN: Mapping[str, Callable[[Answer], Pieces]] = {
    "reset before the head": lambda _: [RESET],
    "reset in the head": lambda a: [whole(a)[:20], RESET],
    "reset in the body": lambda a: [whole(a)[:-3], RESET],
    "ended before the head": lambda _: [],
    "ended in the head": lambda a: [whole(a)[:20]],
    "ended in the body": lambda a: [whole(a)[:-3]],
    "ended in a chunk": lambda a: [chunked(a)[:-9]],
    "hangs in the body": lambda a: [whole(a)[:-3], HANG],
    "longer than it is": lambda a: [head(a, ("Content-Length", str(len(a.body) + 9))) + a.body],
    "two lengths": lambda a: [head(a, sized(a), ("Content-Length", "3")) + a.body],
    "a negative length": lambda a: [head(a, ("Content-Length", "-5")) + a.body],
    "compressed unasked": lambda a: [
        head(a, ("Content-Encoding", "gzip"), ("Content-Length", str(len(gzip.compress(a.body)))))
        + gzip.compress(a.body)
    ],
    "moved": lambda _: [b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/x\r\nContent-Length: 0\r\n\r\n"],
    "moved for good": lambda _: [b"HTTP/1.1 308 Moved\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"],
    "nothing": lambda a: [head(a, ("Content-Length", "0"))],
    "no content": lambda _: [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "a page": lambda _: [whole(Answer(200, b"<!DOCTYPE html><title>Sign in", {"Content-Type": "text/html"}))],
    "a page of a proxy": lambda _: [whole(Answer(403, b"<html>blocked", {"Content-Type": "text/html"}))],
    "a proxy wants a password": lambda _: [whole(Answer(407, b"", {"Proxy-Authenticate": "Basic"}))],
    "a gateway's trouble": lambda _: [whole(Answer(502, b"<html>bad gateway", {"Content-Type": "text/html"}))],
    "too many": lambda _: [whole(Answer(429, b""))],
    "a line without an end": lambda a: [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, whole(a)],
    "fields without an end": lambda a: [b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 50_000, whole(a)],
    "a body without an end": lambda a: [head(a, ("Content-Length", str(1 << 30))), b"x" * (6 << 20), HANG],
    "another protocol": lambda _: [b"SSH-2.0-OpenSSH_9.2\r\n"],
    "TLS": lambda _: [b"\x15\x03\x01\x00\x02\x02\x46"],
    "a status of four digits": lambda _: [b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"],
    "upgraded": lambda _: [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", HANG],
}
"""No answer, or somebody else's."""


class Wire(InProcess):
    """An ``Upstream`` whose answers are those of fakes, and whose transport is real, and odd.

    Attributes:
        oddity: how answers travel.

    Args:
        silence_seconds: of a server, after which it has not answered; by the oddity if ``None``: long where none is
            silent, since a busy machine is not.
    """

    def __init__(
        self,
        routes: Mapping[str, Any],
        oddity: Callable[[Answer], Pieces],
        *,
        host: str = "127.0.0.1",
        silence_seconds: float | None = None,
    ) -> None:
        super().__init__(routes)
        if silence_seconds is None:
            silence_seconds = 20.0 if oddity in SAME.values() else 0.3
        self.oddity = oddity
        self._host = host
        self._answer = Answer(500)
        self._out = Upstream(
            UpstreamSettings(read_timeout_seconds=silence_seconds, total_timeout_seconds=10 * silence_seconds)
        )

    async def request(self, method: str, url: str, **more: Any) -> UpstreamResponse:
        said = await super().request(method, url, **more)
        unsized = {name: value for name, value in said.headers.items() if name != "Content-Length"}
        self._answer = Answer(said.status, said.body, unsized)
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._talk, self._host, 0)
        try:
            port = server.sockets[0].getsockname()[1]
            host = f"[{self._host}]" if ":" in self._host else self._host
            more.pop("timeout_seconds", None)
            more.pop("reach", None)
            return await self._out.request(method, f"http://{host}:{port}/", **more)
        finally:
            server.close()
            await self._out.close()  # else what hangs there hangs on
            await asyncio.wait_for(self._ended.wait(), 5)

    async def close(self) -> None:
        await self._out.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            asked = await reader.readuntil(b"\r\n\r\n")
            length = asked.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or b"0"))
            for piece in self.oddity(self._answer):
                if piece == HANG:
                    await reader.read()  # until the other side has enough
                elif piece == RESET:
                    sock: socket.socket = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                else:
                    writer.write(piece)
                    await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self._ended.set()
