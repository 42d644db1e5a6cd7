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
_REMARK: Final = re.compile(r"#.*$", re.MULTILINE)
_COLON: Final = re.compile(r"""((?<![\w-])["']?(?:uids|users|units)["']?\s*):""")
_LIST: Final = re.compile(r"""(?<![\w-])["']?(uids|users|units)["']?\s*=(?=([^=]*)(=?))""")
_STRING: Final = re.compile(r""""([^"\n]*)"|'([^'\n]*)'""")
_WORD: Final = re.compile(r"""[^\s"',\[\]{}]+""")
_NUMBERS: Final = re.compile(r"[0-9]+(?:-[0-9]+)?")


def named_workers(path: Path) -> Redirect:
    """The defaults of ``[redirect]``, and beside them what the file names in any list of its keys.

    Read as text, since a mistake may be anywhere: a bracket or a quote that is missing, a list that is a string, a
    table that is an array, UTF-16. In doubt too many are named. What is found may be no name or number that can be.

    Args:
        path: the configuration. If it cannot be read, it names nobody.
    """
    found: dict[str, list[str]] = {"uids": [], "users": [], "units": []}
    try:
        words = data(path).decode(errors="replace").replace("\0", "")
    except ConfigError:
        return Redirect()
    words = _COLON.sub(r"\1=", _COMMENT.sub("", words))
    # As it stands, and without what is said behind values: an equals sign in that ends no list.
    for text in (words, _REMARK.sub("", words)):
        for key, value, more in _LIST.findall(text):
            found[key] += [string.replace("\\\\", "\\") for strings in _STRING.findall(value) for string in strings]
            # The last line is the next key's.
            lines = _REMARK.sub("", value.rpartition("\n")[0] if more and "\n" in value else value)
            found[key] += (_NUMBERS if key == "uids" else _WORD).findall(lines)
    usual = Redirect()
    return Redirect(
        uids=(*usual.uids, *_first(found["uids"])),
        users=_first(found["users"]),
        units=(*usual.units, *_first(found["units"])),
    )


def _first(names: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, names)))[:MOST]
