"""Loading msgspec without ``typing_extensions``, which is half a megabyte for all processes together.

msgspec takes three names of it where it is installed, and the standard library's otherwise, which do the same since
Python 3.11. What needs it later (aiohttp's ``aiosignal``) still finds it.
"""

from __future__ import annotations

import sys


def load_msgspec() -> None:
    """Load it, if nobody has yet. For a composition root, while there is one thread: another's import could fail."""
    if "typing_extensions" in sys.modules:
        return
    sys.modules["typing_extensions"] = None  # type: ignore[assignment] # so that an import says: not installed
    try:
        import msgspec  # noqa: F401, PLC0415 - see the module
    finally:
        del sys.modules["typing_extensions"]
