"""Every instant in a value that was read: to compare it with ours, or to count from it, it must be of the same kind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec


def in_utc(value: object) -> bool:
    """Whether every instant in ``value``, however deep, says that it is UTC; one without a zone compares with none."""
    return all(instant.tzinfo == UTC for instant in _instants(value))


def _instants(value: object) -> Iterator[datetime]:
    match value:
        case datetime():
            yield value
        case msgspec.Struct():
            for name in value.__struct_fields__:
                yield from _instants(getattr(value, name))
        case dict():
            for one in value.values():
                yield from _instants(one)
        case list() | tuple():
            for one in value:
                yield from _instants(one)
