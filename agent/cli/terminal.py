"""Is a person looking, and may it be coloured?"""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import Final

_SGR: Final = re.compile("\033\\[[0-9;]*m")


def colourful() -> bool:
    """Whether stdout is a terminal that may be coloured (https://no-color.org)."""
    return is_screen() and not os.environ.get("NO_COLOR")


def is_screen() -> bool:
    """Whether stdout is a terminal that knows more than lines. One that is closed (``>&-``) is none."""
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def fitted(lines: Sequence[str], *, columns: int | None = None, rows: int | None = None) -> list[str]:
    """As many lines as a terminal has room for: what scrolls away is the top, and that is what matters most.

    Args:
        lines: as they are printed; colours take no room.
        columns: of the terminal; ``None``: of ours.
        rows: the same.
    """
    size = shutil.get_terminal_size()
    columns, rows = columns or size.columns, rows or size.lines
    heights = [max(1, -(-_width(line) // columns)) for line in lines]
    if sum(heights) < rows:
        return list(lines)
    room, shown = rows - 2, 0  # the last line says that there is more, and the cursor stands below it
    while shown < len(lines) and heights[shown] <= room:
        room -= heights[shown]
        shown += 1
    shown = max(shown, 1)
    return [*lines[:shown], f"({len(lines) - shown} more lines)"]


def _width(line: str) -> int:
    """The columns that it takes."""
    wide = {"W", "F"}
    return sum(1 + (unicodedata.east_asian_width(letter) in wide) for letter in _SGR.sub("", line))
