"""One HTTP/1 request out of bytes: llhttp (the parser of Node, by httptools) reads, this file bounds what it may bring.

llhttp is strict as it is used here: it refuses what two readers might read differently (bare line feeds, folded fields,
a length beside chunks, two lengths). What it does not know is added: sizes and numbers, fields that may occur once, the
Host that HTTP/1.1 demands. Only the first request of a connection is read; bytes behind it are surplus.

A budget for each request, because the parser calls back for every chunk and every field, and all connections share one
thread (twenty sockets with chunks of one byte once held up everybody for two minutes): no more bytes are given to the
parser than the head or the body may have, no body is kept where none is meant, and the pieces in which a request comes
and the chunks of its body are limited.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from multidict import CIMultiDict


class Fault(enum.Enum):
    """Why a request will not be read to its end. The values are the statuses that say so."""

    BAD = 400
    BODY_TOO_LARGE = 413
    TARGET_TOO_LONG = 414
    HEAD_TOO_LARGE = 431


_ONCE: Final = frozenset({"authorization", "content-length", "content-type", "host", "transfer-encoding", "user-agent"})
"""Fields of which two might be read differently by two readers (RFC 9110 section 5.3)."""
_VERSIONS: Final = frozenset({"1.0", "1.1"})
IDLE_BODY_BYTES: Final = 1024
"""How much may follow a head that means no body (some clients send ``{}``, or an empty chunked body): it is read
past, so that the answer is not lost in a reset, and not kept."""
_SLICE_BYTES: Final = 16384
_MAX_PIECES: Final = 4096
"""The most pieces in which a request may arrive. Each costs us a hundred times what it costs the sender; one that types
by hand needs some dozens."""
_FREE_PIECES: Final = 256
_BYTES_A_PIECE: Final = 64
"""After :data:`_FREE_PIECES`, the pieces of a body must have so many bytes on average."""
_HEAD_ENDS: Final = b"\r\n\r\n"


class RequestReader:
    """Reads one request, fed piece by piece. Never raises: see :attr:`fault`.

    Args:
        line_bytes: the longest target, field name or field value.
        head_bytes: all fields together, and all that may come before the head is whole.
        headers: their number.
        body_bytes: the longest body, where one is meant.
        bodies: whether a request with this method and raw target means a body; without it every one does.

    Attributes:
        method, target, headers, body: the request; the head's when :attr:`head`, the body when :attr:`complete`.
        fault: what is wrong with it; it is not read further then.
    """

    __slots__ = (
        "_bodies",
        "_body",
        "_body_bytes",
        "_body_pieces",
        "_field_bytes",
        "_head_bytes",
        "_line_bytes",
        "_max_headers",
        "_missing",
        "_parser",
        "_pieces",
        "_received",
        "_url",
        "_wanted",
        "complete",
        "fault",
        "fields",
        "head",
        "headers",
        "method",
        "target",
    )

    def __init__(
        self,
        *,
        line_bytes: int,
        head_bytes: int,
        headers: int,
        body_bytes: int,
        bodies: Callable[[str, str], bool] | None = None,
    ) -> None:
        self._line_bytes = line_bytes
        self._head_bytes = head_bytes
        self._max_headers = headers
        self._body_bytes = body_bytes
        self._bodies = bodies
        self._wanted = True
        self._received = 0  # of the head; once that is whole, of what is behind it
        self._pieces = 0
        self._body_pieces = 0
        self._field_bytes = 0
        self._missing = 0  # of the body of a request that offers an upgrade; llhttp leaves such a body alone
        self._url = b""
        self.fields: list[tuple[str, str]] = []
        self.headers: CIMultiDict[str] = _NO_HEADERS
        self.method = ""
        self.target = ""
        self._body = bytearray()
        self.head = False
        self.complete = False
        self.fault: Fault | None = None
        # A cycle (it holds our methods), which :meth:`release` breaks: nothing is left for the garbage collector.
        self._parser: HttpRequestParser | None = HttpRequestParser(self)

    @property
    def body(self) -> bytes:
        """As much of the body as has come."""
        return bytes(self._body) if self._body else b""

    def release(self) -> None:
        """Read no further."""
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Read on. Nothing happens any more once :attr:`complete` or :attr:`fault` says that it is over."""
        self._pieces += 1
        at = 0
        while at < len(data) and not self.complete and self.fault is None:
            piece = self._portion(data, at)
            at += len(piece)
            self._feed(piece)

    def _portion(self, data: bytes, at: int) -> bytes:
        """The bytes that the parser may see next: none behind the head until that was checked, no more than allowed.

        It shows one byte more than allowed: so a request of exactly the allowed size is known to be no longer.
        """
        if self.head:
            most = at + min(_SLICE_BYTES, self._body_room() + 1)
        else:
            most = at + self._head_bytes - self._received + 1
            end = data.find(_HEAD_ENDS, at, most)
            if end >= 0:
                most = end + len(_HEAD_ENDS)
        return data if not at and most >= len(data) else data[at:most]

    def _body_room(self) -> int:
        """How many bytes may still come behind the head, framing of chunks included."""
        most = self._body_bytes + max(512, self._body_bytes // 8) if self._wanted else IDLE_BODY_BYTES
        return most - self._received

    def _feed(self, data: bytes) -> None:
        was_head = self.head
        if self._missing:
            self._received += len(data)
            self._take(data)
        elif self._parser is not None:
            self._received += len(data)
            self._parse(self._parser, data)
        if self.head and not was_head:
            self._received = 0
        if self.fault is None and not self.complete:
            self._bound()
        if self.complete or self.fault is not None:
            self.release()

    def _parse(self, parser: HttpRequestParser, data: bytes) -> None:
        try:
            parser.feed_data(data)
        except HttpParserUpgrade as pause:
            # The head is whole and offers another protocol, which we may decline by answering as if it did not
            # (RFC 9110 section 7.8). llhttp takes everything behind it for that protocol, a body too.
            self._decline_upgrade(data[pause.args[0] :])
        except HttpParserError:
            # Behind a whole request an error does not matter: what is there is not read.
            if not self.complete and self.fault is None:
                self.fault = Fault.BAD

    def _bound(self) -> None:
        """Check what is not whole yet by how much has come already, and in how many pieces."""
        if not self.head:
            if self._received > self._head_bytes or self._pieces > _MAX_PIECES:
                self.fault = Fault.HEAD_TOO_LARGE
        elif self._body_room() < 0 or self._pieces > _MAX_PIECES or self._body_pieces > self._most_pieces():
            self.fault = Fault.BODY_TOO_LARGE

    def _most_pieces(self) -> int:
        return _FREE_PIECES + len(self._body) // _BYTES_A_PIECE

    def _decline_upgrade(self, rest: bytes) -> None:
        self.release()
        if self.fault is not None or "Transfer-Encoding" in self.headers:
            self.fault = self.fault or Fault.BAD
            return
        announced = self.headers.get("Content-Length", "0")
        self._missing = int(announced) if announced.isdecimal() else 0
        self._take(rest)

    def _take(self, data: bytes) -> None:
        piece = data[: self._missing]
        self._missing -= len(piece)
        if self._wanted:
            self._body += piece
        self.complete = not self._missing

    # -- httptools' calls. None raises: an exception would have to cross C, and hide what comes after it.

    def on_url(self, piece: bytes) -> None:
        """Part of the target."""
        if self.complete or self.fault is not None:
            return
        self._url += piece
        if len(self._url) > self._line_bytes:
            self.fault = Fault.TARGET_TOO_LONG

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole field, or a trailer of a chunked body, of which we want nothing."""
        if self.head or self.fault is not None:
            return
        self._field_bytes += len(name) + len(value)
        if len(name) > self._line_bytes or len(value) > self._line_bytes or self._field_bytes > self._head_bytes:
            self.fault = Fault.HEAD_TOO_LARGE
        elif len(self.fields) >= self._max_headers:
            self.fault = Fault.BAD
        else:
            # llhttp strips the blanks in front of a value, not those behind it (RFC 9110 section 5.5). Names are
            # tokens, hence ASCII.
            self.fields.append((name.decode("ascii"), value.rstrip(b" \t").decode("utf-8", "surrogateescape")))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self.head or self.fault is not None:
            return
        self.head = True
        self.headers = headers = CIMultiDict(self.fields)
        assert self._parser is not None
        self.method = self._parser.get_method().decode("ascii")
        self.target = self._url.decode("latin-1")
        version = self._parser.get_http_version()
        if (
            version not in _VERSIONS  # 0.9 has no status to say no with
            or ("Host" not in headers and version != "1.0")
            or _is_ambiguous(headers)
        ):
            self.fault = Fault.BAD
            return
        if self._bodies is not None:
            self._wanted = self._bodies(self.method, self.target)
        announced = headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) > (self._body_bytes if self._wanted else IDLE_BODY_BYTES):
            self.fault = Fault.BODY_TOO_LARGE

    def on_body(self, piece: bytes) -> None:
        """Part of the body."""
        if self.complete or self.fault is not None:
            return
        self._body_pieces += 1
        if self._body_pieces > self._most_pieces():
            self.fault = Fault.BODY_TOO_LARGE
            return
        if self._wanted:
            self._body += piece
            if len(self._body) > self._body_bytes:
                self.fault = Fault.BODY_TOO_LARGE

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self.fault is None:
            self.complete = True


def _is_ambiguous(headers: CIMultiDict[str]) -> bool:
    if len({name.lower() for name in headers}) == len(headers):
        return False
    return any(len(headers.getall(name, ())) > 1 for name in _ONCE)


_NO_HEADERS: Final[CIMultiDict[str]] = CIMultiDict()
