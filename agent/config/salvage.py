"""Whom does a file name as workers that cannot be understood? For refusing them, never for leading them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from agent.config.read import data
from agent.config.schema import Redirect
from agent.core.errors import ConfigError

MOST: Final = 64
"""So many of each are heeded."""
_COMMENT: Final = re.compile(r"^[ \t]*#.*$", re.MULTILINE)
_LIST: Final = re.compile(r"""(?<![\w-])["']?(uids|users|units)["']?\s*=(?=([^=]*))""")
_STRING: Final = re.compile(r""""([^"\n]*)"|'([^'\n]*)'""")


def named_workers(path: Path) -> Redirect:
    """The defaults of ``[redirect]``, and beside them what the file names in any list of its keys.

    Read as text, since a mistake may be anywhere: a bracket that is missing, a list that is a string, a table that is
    an array. In doubt too many are named. What is found may be no name or number that can be.

    Args:
        path: the configuration. If it cannot be read, it names nobody.
    """
    found: dict[str, list[str]] = {"uids": [], "users": [], "units": []}
    try:
        words = _COMMENT.sub("", data(path).decode(errors="replace"))
    except ConfigError:
        return Redirect()
    for key, value in _LIST.findall(words):
        strings = [one or other for one, other in _STRING.findall(value)]
        if key == "uids":
            strings += re.findall(r"\d+", _STRING.sub("", value))
        found[key] += [string.replace("\\\\", "\\") for string in strings]
    usual = Redirect()
    return Redirect(
        uids=(*usual.uids, *found["uids"][:MOST]),
        users=tuple(found["users"][:MOST]),
        units=(*usual.units, *found["units"][:MOST]),
    )
