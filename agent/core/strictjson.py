"""JSON from somebody else, with one way to fail.

msgspec raises three unrelated exceptions for what it does not take: its own, ``UnicodeDecodeError``, and
``RecursionError`` for sixty kilobytes of brackets, typed or not. Where one is forgotten, a stranger can
cause a crash.
"""

from __future__ import annotations

from typing import Any, TypeVar, overload

import msgspec

_T = TypeVar("_T")


class NotThatShapeError(Exception):
    """The bytes are not what was expected. The message quotes none of them: msgspec's own may hold a secret."""


@overload
def decode(data: bytes, shape: type[_T]) -> _T: ...
@overload
def decode(data: bytes) -> Any: ...
def decode(data: bytes, shape: Any = Any) -> Any:
    """Decode ``data`` strictly as ``shape``.

    Raises:
        NotThatShapeError: they are not that.
    """
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise NotThatShapeError from None
