"""JSON from an upstream, with one way to fail.

msgspec raises ``RecursionError`` for input that is nested deeply enough, typed or not: sixty kilobytes of brackets
from a broker would otherwise end as a crash.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from agent.wire.http import WireError

_T = TypeVar("_T")


class NotThatShapeError(Exception):
    """The bytes are not what was expected. Holds nothing of them."""


def decode(data: bytes, shape: type[_T]) -> _T:
    """Decode ``data`` strictly as ``shape``.

    Raises:
        NotThatShapeError: they are not that.
    """
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise NotThatShapeError from None


def parsed(parse: Callable[[], _T]) -> _T:
    """What a codec of :mod:`agent.wire` makes of an answer.

    Raises:
        NotThatShapeError: the codec does not accept it.
    """
    try:
        return parse()
    except (WireError, RecursionError):
        raise NotThatShapeError from None
