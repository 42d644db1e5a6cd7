"""A string that does not show its value.

``repr``, ``str``, ``format`` and pickling all hide it; the value leaves only through :meth:`Secret.reveal`, so
that a search for ``reveal(`` finds every place where a secret becomes text. A dataclass field with ``repr=False``
would not do: the value still leaks through ``asdict``, f-strings and JSON.
"""

from __future__ import annotations

import hmac
from typing import Final, NoReturn

REDACTED: Final = "[redacted]"


class Secret:
    """A secret string, equal to another in constant time, hashable, and hidden everywhere.

    Args:
        value: the secret text.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):
            # The type only: the value itself must not reach a traceback.
            raise TypeError(f"a secret must be a str, got {type(value).__name__}")
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself. The only way to get it."""
        return self._value

    def __repr__(self) -> str:
        return REDACTED

    def __str__(self) -> str:
        return REDACTED

    def __format__(self, spec: str) -> str:
        return REDACTED

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret does not pickle")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self


def reveal(value: object) -> str:
    """The text of a secret inside a value that is encoded with everything in it: an ``enc_hook`` of msgspec.

    Raises:
        TypeError: it is something else that msgspec cannot encode.
    """
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"a grant must not hold a {type(value).__name__}")
