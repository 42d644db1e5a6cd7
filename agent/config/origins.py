"""Where does each value of a configuration stand? tomllib says what a file means, not in which line it says so."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from typing import Final

_HEADER: Final = re.compile(r"^\s*(?P<list>\[)?\[\s*(?P<name>[A-Za-z0-9_-]+)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(r"^\s*(?P<key>[A-Za-z0-9_-]+(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=")


def lines(text: str) -> Mapping[str, int]:
    """The line, counted from 1, in which each key stands, as ``sources[0].path``.

    Args:
        text: valid TOML.

    A key that is written in another way (quoted, within an inline table) has no line of its own; the table that it is
    in may have one.
    """
    found: dict[str, int] = {}
    entries: Counter[str] = Counter()
    section = ""
    rows = text.splitlines()
    number = 0
    while number < len(rows):
        row = rows[number]
        number += 1
        if header := _HEADER.match(row):
            section = header["name"]
            if header["list"]:
                entries[section] += 1
                section = f"{section}[{entries[section] - 1}]"
            found.setdefault(section, number)
        elif key := _KEY.match(row):
            name = re.sub(r"\s", "", key["key"])
            found.setdefault(f"{section}.{name}" if section else name, number)
            number = _end(rows, number - 1)
    return found


def _end(rows: list[str], begin: int) -> int:
    """The index of the row after the value that begins in row ``begin``: it may be an array or a text of many rows."""
    for end in range(begin + 1, len(rows) + 1):
        try:
            tomllib.loads("\n".join(rows[begin:end]))
        except tomllib.TOMLDecodeError:
            continue
        return end
    return begin + 1
