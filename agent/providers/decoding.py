"""Decodes an upstream's answer: it fails in one way, the same as JSON does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from agent.core.errors import WireError
from agent.core.strictjson import NotThatShapeError

_T = TypeVar("_T")


def parsed(parse: Callable[[], _T]) -> _T:
    """Decode an answer with a codec of :mod:`agent.wire`.

    Raises:
        NotThatShapeError: the codec does not accept it.
    """
    try:
        return parse()
    except (WireError, RecursionError):
        raise NotThatShapeError from None
