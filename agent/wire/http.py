"""Requests and responses as values, and the reading of request targets.

Bytes become a :class:`Request` in :mod:`agent.serve.reading` (a library parses them). A :class:`Response` keeps its own
bytes, because one that was made once is sent thousands of times.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import quote, unquote_to_bytes

import msgspec

from agent.core.errors import TargetError
from agent.core.served import Given, Reason

TEXT: Final = ("Content-Type", "text/plain")
JSON: Final = ("Content-Type", "application/json")
"""Bare, with no charset: google-auth and Go compare the whole value."""

REASONS: Final[Mapping[int, str]] = {
    200: "OK",
    301: "Moved Permanently",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    414: "URI Too Long",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
    508: "Loop Detected",
}

_STANDARD_REASONS: Final[Mapping[int, str]] = {int(status): status.phrase for status in HTTPStatus}
"""For statuses that a real service answers and we never do; the phrases differ between Python versions."""
_BODILESS: Final = frozenset({204, 304})
"""No length: forbidden with 204, and with 304 it would be the length of another answer (RFC 9110 section 8.6)."""

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")  # RFC 9110 section 5.6.2
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")  # RFC 9110 section 5.5, no CR, LF or NUL


class Asker(Protocol):
    """The sender of a request, so far as it can be told."""

    async def owner(self) -> Hashable:
        """The owner whose share the request counts against. Slow: only for answers that take a while anyway."""


class Request(msgspec.Struct, frozen=True):
    """One request, its head read and its body complete.

    Attributes:
        method: as sent; methods are case-sensitive (RFC 9110 section 9.1).
        path: the part of the target before ``?``, raw, beginning with ``/``.
        query: the part after ``?``, raw; empty when there is none.
        segments: the path's segments, percent-decoded, without empty ones; see :func:`segments_of`.
        slash: whether the path ended with ``/``: in the GCE dialect that names the directory.
        headers: looked up without regard to case.
        host: the authority the client asked for, as sent.
        asker: who asked, for limits that are shared among askers; ``None`` where that does not matter.
    """

    method: str
    path: str
    query: str
    segments: tuple[str, ...]
    slash: bool
    headers: Mapping[str, str]
    host: str = ""
    body: bytes = b""
    asker: Asker | None = None

    def __repr__(self) -> str:
        # Neither headers (session tokens, Authorization) nor the body.
        return f"Request({self.method} {self.path!r})"


@dataclass(frozen=True, slots=True)
class Response:
    """One response; its head is rendered when it is made.

    ``head`` is the status line and the fields, each with its CRLF, without the empty line that ends them: what sends it
    adds what is known only then (``Date``) and the body, in one piece. ``note`` is for audit and metrics: what is given
    with it, or why the request was refused.

    ``Content-Length`` (where a body may be) and ``Connection: close`` are on every answer: CRT clients fail on a body
    that ends with the connection, and botocore, JS and two Rust clients fail on a kept-alive connection that a restart
    has closed.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    note: Given | Reason | None = field(default=None, repr=False, compare=False)
    head: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        reason = REASONS.get(self.status) or _STANDARD_REASONS.get(self.status, "Unknown")
        lines = [f"HTTP/1.1 {self.status} {reason}"]
        for name, value in self.headers:
            if not _HEADER_NAME.match(name) or not _HEADER_VALUE.match(value):
                # Response splitting: a value with a line break would start a second answer.
                raise AssertionError(f"internal error: the {name!r} header of an answer is malformed")
            lines.append(f"{name}: {value}")
        if self.status not in _BODILESS:
            lines.append(f"Content-Length: {len(self.body)}")
        lines.append("Connection: close\r\n")
        object.__setattr__(self, "head", "\r\n".join(lines).encode("latin-1"))

    def plus(self, line: bytes) -> Response:
        """The same answer with one more header.

        Args:
            line: ``Name: value`` with its CRLF, made by us: it is not checked, since this runs for every request.
        """
        return _twin(self, self.body, self.note, self.head + line)

    def filled(self, body: bytes) -> Response:
        """The same answer with another body of the same length, so that the head still holds."""
        assert len(body) == len(self.body)
        return _twin(self, body, self.note, self.head)

    def noted(self, note: Given | Reason) -> Response:
        """The same answer with a note."""
        return _twin(self, self.body, note, self.head)

    def header(self, name: str) -> str | None:
        """The first field of that name, without regard to case."""
        lowered = name.lower()
        return next((v for n, v in self.headers if n.lower() == lowered), None)


_new: Final = object.__new__
_set_status, _set_headers, _set_body, _set_note, _set_head = (
    getattr(Response, name).__set__ for name in ("status", "headers", "body", "note", "head")
)


def _twin(of: Response, body: bytes, note: Given | Reason | None, head: bytes) -> Response:
    """One that differs only in these. By the slots' own setters, since nearly every answer is made here."""
    twin = _new(Response)
    _set_status(twin, of.status)
    _set_headers(twin, of.headers)
    _set_body(twin, body)
    _set_note(twin, note)
    _set_head(twin, head)
    return twin


def forwardable(name: str, value: str) -> bool:
    """Whether a header that somebody else sent may stand in an answer of ours."""
    return bool(_HEADER_NAME.match(name) and _HEADER_VALUE.match(value))


_PLAIN_PATH = re.compile(r"[A-Za-z0-9._~@:+=,!$&'()*/-]*\Z")
_SAFE_IN_SEGMENT = "@:+=,!$&'()*-._~"


def segments_of(path: str) -> tuple[str, ...]:
    """Split a raw path into percent-decoded segments; ``//`` counts as ``/`` (some clients ask for ``meta-data//iam``).

    Refused, because the service behind a pass-through may read it differently from us (and then our hiding of a path
    would not hide it): ``.`` and ``..`` however encoded, an encoded slash or backslash, control characters and NUL, a
    second layer of percent-encoding, ``;`` parameters, and bytes that are not UTF-8.

    Raises:
        TargetError: any of those.
    """
    if not path.startswith("/"):
        raise TargetError("expected a path that begins with /")
    plain = _PLAIN_PATH.match(path) is not None
    segments = []
    for raw in path.split("/"):
        if not raw:
            continue
        segment = raw if plain else _decoded(raw)
        if segment in {".", ".."}:
            raise TargetError("expected a path without dot segments")
        segments.append(segment)
    return tuple(segments)


def _decoded(raw: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", raw):
        raise TargetError("expected two hexadecimal digits after % in a path")
    try:
        segment = unquote_to_bytes(raw.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeDecodeError:
        raise TargetError("expected utf-8 in a path") from None
    for character in segment:
        if character in "/\\%;?# " or not character.isprintable():
            raise TargetError("expected a path without encoded delimiters, control characters or parameters")
    return segment


def path_of(segments: tuple[str, ...], *, slash: bool) -> str:
    """The one spelling of a path: what a pass-through sends, whatever the client's spelling was."""
    path = "/" + "/".join(quote(segment, safe=_SAFE_IN_SEGMENT) for segment in segments)
    return path + "/" if slash and segments else path
