"""Whom does a file name as workers that cannot be understood? For refusing them, never for leading them."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from agent.config.meant import (
    MOST,
    by_unknown_keys,
    is_like_a_list,
    is_like_the_section,
    is_like_units,
    ranges_in,
    sorted_out,
    words_in,
)
from agent.config.read import head
from agent.config.schema import Redirect
from agent.core.errors import ConfigError

_LISTS: Final = ("uids", "users", "units")
_COMMENT: Final = re.compile(r"^[ \t]*#.*$", re.MULTILINE)
_REMARK: Final = re.compile(r"#.*$", re.MULTILINE)
_HEAD: Final = re.compile(r"""^[ \t]*\[+[ \t]*["']?([\w-]{1,64})([^\n\]]*)""", re.MULTILINE)
_COLON: Final = re.compile(r"""((?<![\w-])(?!["']?[0-9]+\s*:)["']?[\w-]{1,64}["']?\s*):""")
_LIST: Final = re.compile(r"""(?<![\w-])["']?([\w-]{1,64})["']?\s*=(?=([^=]*)(=?))""")
_STRING: Final = re.compile(r""""([^"\n]*)"|'([^'\n]*)'""")
_WORD: Final = re.compile(r"""[^\s"',\[\]{}]+""")
_NUMBERS: Final = re.compile(r"[0-9]+(?:-[0-9]+)?")


def named_workers(path: Path) -> Redirect:
    """The defaults of ``[redirect]``, and beside them what the file names in any list of its keys.

    Read as text, since a mistake may be anywhere: a bracket or a quote that is missing, a list that is a string, a
    table that is an array, UTF-16; and, where it is TOML, by what TOML says. A key may be misspelt besides, and a name
    may stand in the wrong list. In doubt too many are named. What is found may be no name or number that can be.

    Args:
        path: the configuration. If it cannot be read, it names nobody; if it is too long, its beginning counts.
    """
    try:
        words = head(path).decode(errors="replace").replace("\0", "")
    except ConfigError:
        return Redirect()
    found: dict[str, list[str]] = {key: [] for key in _LISTS}
    for key, names in (*_in_tree(words), *_in_text(words)):
        if key in found:
            found[key] += names
        for kind, those in sorted_out(names, names if is_like_units(key.rpartition(".")[2]) else ())._asdict().items():
            found[kind] += those
    usual = Redirect()
    return Redirect(
        uids=(*usual.uids, *_first("uids", found)),
        users=_first("users", found),
        units=(*usual.units, *_first("units", found)),
    )


def _in_tree(words: str) -> Iterator[tuple[str, Iterable[str]]]:
    """What the lists hold, whatever shape they have, in a file that is TOML."""
    try:
        document: Mapping[str, object] = tomllib.loads(words)
    except (ValueError, RecursionError):  # also a number of more digits than Python reads
        return
    section = document.get("redirect")
    for one in section if isinstance(section, list) else [section]:
        if isinstance(one, dict):
            yield from ((key, tuple(words_in(one[key], key))) for key in _LISTS if key in one)
            yield from by_unknown_keys({"redirect": one}).items()
        else:
            yield "users", tuple(words_in(one, "users"))
    yield from by_unknown_keys({key: value for key, value in document.items() if key != "redirect"}).items()


def _in_text(words: str) -> Iterator[tuple[str, Iterable[str]]]:
    words = _COLON.sub(r"\1=", _COMMENT.sub("", words))
    # As it stands, and without what is said behind values: an equals sign in that ends no list.
    for text in (words, _REMARK.sub("", words)):
        found = [match for match in _HEAD.finditer(text) if is_like_the_section(match[1])]
        heads = [match.start() for match in _HEAD.finditer(text)]
        inside = {match.start(): match[2] for match in found}
        for rest in inside.values():
            yield "", re.findall(r"[\w-]+", rest)
        for match in _LIST.finditer(text):
            key, value, more = match.groups()
            rest = inside.get(heads[bisect_right(heads, match.start()) - 1]) if heads else None
            if is_like_a_list(key):
                yield key, list(_listed(key, value, more=bool(more)))
            elif rest is not None and key not in Redirect.__struct_fields__:
                # Of a table inside the section ([redirect.users]) the keys may be names.
                yield key, [*_strings(value), *([key] if "." in rest else [])]


def _listed(key: str, value: str, *, more: bool) -> Iterator[str]:
    """The words of a list, in quotes or without. The last line is the next key's, where there are ``more``."""
    yield from _strings(value)
    lines = _REMARK.sub("", value.rpartition("\n")[0] if more and "\n" in value else value)
    yield from (_NUMBERS if key == "uids" else _WORD).findall(lines)
    if key == "uids":
        yield from ranges_in(lines)


def _strings(value: str) -> Iterator[str]:
    yield from (string.replace("\\\\", "\\") for strings in _STRING.findall(value) for string in strings)


def _first(kind: str, found: Mapping[str, list[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, found[kind])))[: MOST[kind]]
