"""Requests as SDKs send them, read at a glance.

llhttp reads a request by calling back for each field; that is most of what a request costs that is not remembered. Most
requests need no parser: one piece, a plain target, plain fields each of another name, nothing behind the head. Such a
one is matched whole by one expression and split at its line ends.

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

_HEAD: Final = re.compile(
    rb"(?:GET|PUT|HEAD) /[A-Za-z0-9/._~:@!$&'()*+,;=%?-]* HTTP/1\.1\r\n"
    rb"(?:[A-Za-z][A-Za-z0-9-]*: [!-~](?:[ -~]*[!-~])?\r\n)+\r\n"
)
_FRAMING: Final = frozenset(
    {"connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "http2-settings"}
)
"""Fields that say where a request ends or what its connection becomes."""
_HARMLESS: Final = frozenset({("content-length", "0"), ("connection", "close"), ("connection", "keep-alive")})
_MEMO_ENTRIES: Final = 256

_known: dict[tuple[str, ...], tuple[str, ...] | None] = {}
"""By the names of a head's fields: those whose values must be looked at; ``None``: it is not plain. Programs send the
same names over and over. Bounded, since anybody may invent any."""


def read_plain(data: bytes, limits: Limits) -> Head | None:
    """A whole request without a body; ``None``: it is for the parser to say what it is.

    Args:
        data: all that has come.
        limits: of a listener. What is longer than any one of them is left to the parser, which counts.
    """
    if len(data) > limits.line_bytes or len(data) > limits.head_bytes or _HEAD.fullmatch(data) is None:
        return None
    first, *lines = data[:-4].decode("ascii").split("\r\n")
    fields = [(name, value) for name, _, value in [line.partition(": ") for line in lines]]
    names = tuple([name for name, _ in fields])
    try:
        doubtful = _known[names]
    except KeyError:
        doubtful = _learn(names)
    if doubtful is None or len(fields) > limits.headers:
        return None
    headers = CIMultiDict(fields)
    for name in doubtful:
        if (name, headers[name].lower()) not in _HARMLESS:
            return None
    method, target, _ = first.split(" ")
    return method, target, headers


def _learn(names: tuple[str, ...]) -> tuple[str, ...] | None:
    lowered = [name.lower() for name in names]
    doubtful = None
    if len(set(lowered)) == len(lowered) and "host" in lowered:
        doubtful = tuple(name for name in lowered if name in _FRAMING)
    if len(_known) >= _MEMO_ENTRIES:
        _known.clear()
    _known[names] = doubtful
    return doubtful
