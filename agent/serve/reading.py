"""One HTTP/1 request out of bytes: llhttp (the parser of Node, by httptools) reads, this file bounds what it may bring.

llhttp is strict as it is used here: it refuses what two readers might read differently (bare line feeds, folded fields,
a length beside chunks, two lengths). What it does not know is added: sizes and numbers, fields that may occur once, the
Host that HTTP/1.1 demands. Only the first request of a connection is read; what is behind it is surplus.
"""

from __future__ import annotations

import enum
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


class RequestReader:
    """Reads one request, fed piece by piece. Never raises: see :attr:`fault`.

    Args:
        line_bytes: the longest target, field name or field value.
        head_bytes: all fields together, and all that may come before the head is whole.
        headers: their number.
        body_bytes: the longest body.

    Attributes:
        method, target, headers, body: the request; the head's when :attr:`head`, the body when :attr:`complete`.
        fault: what is wrong with it; it is not read further then.
    """

    __slots__ = (
        "_body",
        "_body_bytes",
        "_field_bytes",
        "_head_bytes",
        "_line_bytes",
        "_max_headers",
        "_missing",
        "_parser",
        "_received",
        "_url",
        "complete",
        "fault",
        "fields",
        "head",
        "headers",
        "method",
        "target",
    )

    def __init__(self, *, line_bytes: int, head_bytes: int, headers: int, body_bytes: int) -> None:
        self._line_bytes = line_bytes
        self._head_bytes = head_bytes
        self._max_headers = headers
        self._body_bytes = body_bytes
        self._received = 0
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
        # A circle (it holds our methods), which :meth:`release` cuts: nothing is left for the garbage collector.
        self._parser: HttpRequestParser | None = HttpRequestParser(self)

    @property
    def body(self) -> bytes:
        """What has come of it."""
        return bytes(self._body) if self._body else b""

    def release(self) -> None:
        """Read no further."""
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Read on. Nothing happens any more once :attr:`complete` or :attr:`fault` says that it is over."""
        self._received += len(data)
        if self._missing:
            self._take(data)
        elif self._parser is not None:
            self._parse(self._parser, data)
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
            # Behind a whole request it is of no interest: that is not read.
            if not self.complete and self.fault is None:
                self.fault = Fault.BAD

    def _bound(self) -> None:
        """Judge what is not whole yet by how much has come already."""
        if not self.head:
            if self._received > self._head_bytes:
                self.fault = Fault.HEAD_TOO_LARGE
        elif self._received > self._head_bytes + 8 * self._body_bytes:
            # Chunks of one byte cost six: a bound on what is sent, not only on what it says.
            self.fault = Fault.BODY_TOO_LARGE

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
        announced = headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) > self._body_bytes:
            self.fault = Fault.BODY_TOO_LARGE

    def on_body(self, piece: bytes) -> None:
        """Part of the body."""
        if self.complete or self.fault is not None:
            return
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
