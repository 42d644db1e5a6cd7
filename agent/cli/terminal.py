"""Is a person looking, may it be coloured, and what must not reach a terminal?"""

from __future__ import annotations

import os
import sys


def colourful() -> bool:
    """Whether stdout is a terminal that may be coloured (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def plain(text: str, keep: str = "") -> str:
    """``text`` without what a terminal obeys, but for ``keep``: anybody may listen at a port, and send any names."""
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)
