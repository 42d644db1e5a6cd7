"""Who may be meant as a worker by a key that is not known? For refusing them: else they are the machine.

``user = ["batch"]`` was to be ``users``, ``[redirects]`` was to be ``[redirect]``; or a later release wrote the key.
The rest of the section is clear, and leads. Who is named there is not left to the machine: **what cannot be understood
leaves nobody open who is named in it**. In doubt too many are named; a word that is nobody's does no harm.

Looked at are the unknown keys of ``[redirect]``, of a section whose name is like it, and, anywhere else, the unknown
keys that are like ``users``, ``uids`` and ``units`` (a key that stands before its section's head, or behind the next).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from agent.config.schema import Config, Redirect
from agent.config.words import derived

MOST: Final = {"uids": 4096, "users": 4096, "units": 64}
"""So many of each are heeded. Each unit is asked of the service manager, and the whole must be told within a minute."""
_KEYS: Final = ("uids", "users", "units")
_PARTS: Final = re.compile(r"user|uid|unit|worker|slice")
_PARTS_OF_UNITS: Final = re.compile(r"unit|slice|service|scope")
_SECTIONS: Final = ("redirect", "redirection", "workers")
_ALIKE: Final = 0.75
_DEEPEST: Final = 16
_BETWEEN: Final = re.compile(r"[\s,;:]+")
_NUMBER: Final = re.compile(r"[0-9]{1,10}(?:-[0-9]{1,10})?\Z")
# Two dots, a colon, any dash: what other tools, people and editors write between the ends of a range.
_RANGE: Final = re.compile(
    r"(?<![\w.-])([0-9]{1,20})\s*(?:[-~:\u2010-\u2015\u2212]|\.{2,3}|to)\s*([0-9]{1,20})(?![\w.-])"
)
_LAST_USER: Final = (1 << 32) - 3
_MOST_NUMBER: Final = 1 << 64
_UNIT: Final = re.compile(r".*\.(?:slice|service|scope)\Z")


class Meant(NamedTuple):
    """Whoever may be meant; what is here may be no name or number that can be.

    Attributes:
        uids: uids and ranges.
        users: names of users.
        units: names of units.
    """

    uids: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    units: tuple[str, ...] = ()


@lru_cache(maxsize=4096)
def is_like_a_list(key: str) -> bool:
    """Whether a key is likely to be one of the lists of workers, misspelt."""
    plain = _plain(key)
    return bool(_PARTS.search(plain)) or _is_like(plain, _KEYS)


def is_like_units(key: str) -> bool:
    """Whether a key is likely to be the list of units, misspelt: a name there need not say of which kind it is."""
    plain = _plain(key)
    return bool(_PARTS_OF_UNITS.search(plain)) or _is_like(plain, ("units",))


def is_like_the_section(name: str) -> bool:
    """Whether the name of a section is likely to be ``redirect``, misspelt."""
    return _is_like(_plain(name), _SECTIONS)


def sorted_out(words: Iterable[str], units: Iterable[str] = ()) -> Meant:
    """What each word can be by its shape.

    Args:
        words: all of them.
        units: those of them that may be names of units without their kind.
    """
    found: dict[str, dict[str, None]] = {"uids": {}, "users": {}, "units": {}}
    for word in filter(None, words):
        if match := _RANGE.fullmatch(word.strip()):
            found["uids"][_rising(*match.groups())] = None
            continue
        kind = "uids" if _NUMBER.match(word) else "units" if _UNIT.match(word) else "users"
        found[kind][word] = None
    found["units"] |= dict.fromkeys(word for word in units if word in found["users"])
    return Meant(**{kind: tuple(names)[: MOST[kind]] for kind, names in found.items()})


def ranges_in(text: str) -> tuple[str, ...]:
    """Every range of numbers in a text, however its ends are set apart, whichever comes first and however large it is.

    Returns:
        ``LOW-HIGH`` each, as the configuration writes them; without root, and up to the last uid that is a user's.
    """
    return tuple(_rising(*ends) for ends in _RANGE.findall(text))


def by_unknown_keys(document: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """The words that each unknown key may name workers with.

    Args:
        document: the whole configuration, as TOML says it.
    """
    found: dict[str, dict[str, None]] = {}
    for key, value in _unknown(document):
        found.setdefault(key, {}).update(dict.fromkeys(words_in(value, key)))
    return {key: tuple(words) for key, words in found.items()}


def units_by_unknown_keys(document: Mapping[str, object]) -> Iterator[str]:
    """Those of the same words that are under a key like ``units``, itself unknown or in what is."""
    for key, value in _unknown(document):
        yield from _under_units(value, key.rpartition(".")[2])


def words_in(value: object, key: str, deep: int = _DEEPEST) -> Iterator[str]:
    """Every word of a value: its texts whole and in parts, its numbers, and the keys of tables inside.

    A number that stands alone is one only of a key that is like a list of workers: else it is a size or a time.
    """
    if not deep:
        return
    match value:
        case str():
            yield value
            yield from _BETWEEN.split(value)
        case int() if not isinstance(value, bool) and is_like_a_list(key.rpartition(".")[2]):
            yield from _digits(value)
        case list():
            for one in value:
                yield from _digits(one) if type(one) is int else words_in(one, key, deep - 1)
        case dict():
            for name, inner in value.items():
                yield name
                yield from words_in(inner, f"{key}.{name}", deep - 1)
        case _:
            return


def _under_units(value: object, key: str, deep: int = _DEEPEST) -> Iterator[str]:
    if is_like_units(key):
        yield from words_in(value, key, deep)
    elif deep and isinstance(value, dict):
        for name, inner in value.items():
            yield from _under_units(inner, name, deep - 1)
    elif deep and isinstance(value, list):
        for one in value:
            yield from _under_units(one, key, deep - 1)


def _rising(one: str, other: str) -> str:
    low, high = sorted((int(one), int(other)))
    return f"{min(max(low, 1), _LAST_USER)}-{min(max(high, 1), _LAST_USER)}"


def _digits(number: int) -> Iterator[str]:
    """It as a word. One of thousands of digits is nobody's, and Python refuses to write it."""
    if abs(number) < _MOST_NUMBER:
        yield str(number)


def _unknown(document: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in document.items():
        if name == "redirect":
            if isinstance(value, dict):
                known = Redirect.__struct_fields__
                yield from ((f"redirect.{key}", inner) for key, inner in value.items() if key not in known)
        elif name in Config.__struct_fields__:
            known = tuple(derived().keys.get(name, "").split(", "))
            yield from _like_lists(value, name, known)
        elif is_like_the_section(name) or is_like_a_list(name):
            yield name, value
        else:
            yield from _like_lists(value, name, ())


def _like_lists(
    value: object, under: str, known: tuple[str, ...], deep: int = _DEEPEST
) -> Iterator[tuple[str, object]]:
    if not deep:
        return
    if isinstance(value, list):
        for one in value:
            yield from _like_lists(one, under, known, deep - 1)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in known:
                continue
            if is_like_a_list(key):
                yield f"{under}.{key}", inner
            else:
                yield from _like_lists(inner, f"{under}.{key}", known, deep - 1)


def _plain(key: str) -> str:
    return key.casefold().replace("-", "_").strip()


def _is_like(name: str, others: Iterable[str]) -> bool:
    from difflib import SequenceMatcher  # noqa: PLC0415 - for mistakes only

    for other in others:
        matcher = SequenceMatcher(None, name, other)
        if matcher.real_quick_ratio() >= _ALIKE and matcher.ratio() >= _ALIKE:
            return True
    return False
