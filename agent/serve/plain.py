"""Requests as SDKs send them, read at a glance.

llhttp reads a request by calling back for each field; that is most of what a request costs that is not remembered. Most
requests need no parser: one piece, a plain target, plain fields each of another name, nothing behind the head. Such a
one is split at its line ends, where it has no bytes but those and printable ones. Names of fields are looked at once,
and then known.

This is no second opinion on HTTP. What is not matched, however valid, goes to :mod:`agent.serve.reading`; what is
matched is read by both alike, which a property test holds (``tests/unit/serve/test_plain.py``): the same method, target
and fields, no body, no fault.
"""

from __future__ import annotations

import re
from typing import Final

from multidict import CIMultiDict

from agent.snapshot import Limits

Head = tuple[str, str, CIMultiDict[str]]
"""Method, target as it was sent, fields."""

_FIRST: Final = re.compile(r"(GET|PUT|HEAD) (/[A-Za-z0-9/._~:@!$&'()*+,;=%?-]*) HTTP/1\.1")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_PRINTABLE: Final = bytes(range(0x20, 0x7F))
_LINE_END: Final = b"\r\n"
_FRAMING: Final = frozenset(
    {"connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "http2-settings"}
)
"""Fields that say where a request ends or what its connection becomes."""
_HARMLESS: Final = frozenset({("content-length", "0"), ("connection", "close"), ("connection", "keep-alive")})
_MEMO_ENTRIES: Final = 256
_MEMO_BYTES: Final = 1024
"""Of the names of one head."""

_known: dict[tuple[str, ...], tuple[str, ...] | None] = {}
"""By the names of a head's fields: those whose values must be looked at; ``None``: it is not plain. Programs send the
same names over and over. Bounded, since anybody may invent any."""


def read_plain(data: bytes, limits: Limits) -> Head | None:
    """A whole request without a body; ``None``: it is for the parser to say what it is.

    Args:
        data: all that has come.
        limits: of a listener. What is longer than any one of them is left to the parser, which counts.
    """
    if len(data) > limits.line_bytes or len(data) > limits.head_bytes or not data.endswith(b"\r\n\r\n"):
        return None
    text = data.decode("latin-1")
    lines = text.split("\r\n")
    # As many of both as there are ends of lines, and by turns: none stands alone, and any other byte is printable.
    if data.translate(None, _PRINTABLE) != _LINE_END * (len(lines) - 1):
        return None
    # Space before or behind a value is no part of it; before an empty one it is both.
    if ":  " in text or " \r\n" in text:
        return None
    first = _FIRST.fullmatch(lines[0])
    fields = [line.split(": ", 1) for line in lines[1:-2]]
    if first is None or len(fields) > limits.headers:
        return None
    try:
        headers: CIMultiDict[str] = CIMultiDict(fields)  # type: ignore[arg-type]  # pairs, else it says so
    except ValueError:
        return None  # a line that is no field as programs write it
    names = tuple([field[0] for field in fields])
    try:
        doubtful = _known[names]
    except KeyError:
        doubtful = _learn(names)
    if doubtful is None:
        return None
    for name in doubtful:
        if (name, headers[name].lower()) not in _HARMLESS:
            return None
    method, target = first.groups()
    return method, target, headers


def _learn(names: tuple[str, ...]) -> tuple[str, ...] | None:
    lowered = [name.lower() for name in names]
    doubtful = None
    if len(set(lowered)) == len(lowered) and "host" in lowered and all(map(_NAME.fullmatch, names)):
        doubtful = tuple(name for name in lowered if name in _FRAMING)
    if len(_known) >= _MEMO_ENTRIES:
        _known.clear()
    if sum(map(len, names)) <= _MEMO_BYTES:
        _known[names] = doubtful
    return doubtful
