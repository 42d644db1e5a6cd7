"""Every instant in a value that was read must be in UTC: one without a zone cannot be compared with ours."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec


def in_utc(value: object) -> bool:
    """Whether every instant in ``value``, however deep, is marked as UTC."""
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
