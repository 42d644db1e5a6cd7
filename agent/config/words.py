"""Words for what is wrong: the key, what was expected, and what there is instead.

The words come from the types of :mod:`agent.config.schema`. msgspec's message names a regular expression or a value: no
operator should have to read the one, or guess what would stand in place of the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

import msgspec
from msgspec import inspect

from agent.config.schema import Config

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`(?P<where>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>.*)`$")
_TYPES = re.compile(r"`([a-z| ]+)`")
_TOML: Final = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "object": "table"}
_LONG: Final = 10**24
_CHOICE = re.compile(r"^Invalid (?:enum )?value '(?P<value>.*)'$")
_PATTERN = re.compile(r"^Expected `str` matching regex (?P<regex>.*)$")


class Words(NamedTuple):
    """The words that the types give.

    Attributes:
        shapes: for each pattern, as msgspec's message quotes it: what it expects.
        choices: for each key whose value is one of some: which.
        kinds: for each list of entries of several kinds: which.
        keys: for each section, and for each kind of its entries (``keys file``): the keys that it knows.
    """

    shapes: dict[str, str]
    choices: dict[str, str]
    kinds: dict[str, str]
    keys: dict[str, str]


ENTRIES: Final[dict[str, object]] = {
    field.name: field.type.__args__[0]
    for field in msgspec.structs.fields(Config)
    if getattr(field.type, "__origin__", None) is tuple
}
"""The sections of which there may be several: the type of one."""


def key_of(where: str | None, under: str = "") -> str:
    """``$.sources[0].path`` as an operator writes it: ``sources[0].path``."""
    return (under + (where or "$").removeprefix("$")).removeprefix(".") or "the file"


def explain(error: msgspec.ValidationError, under: str = "") -> tuple[str, str]:
    """The key and what was expected, from msgspec's message about what stands ``under`` a key."""
    match = _WHERE.match(str(error))
    if match is None:
        raise AssertionError("internal error: a message that matches nothing")
    what, key = match["what"], key_of(match["where"], under)
    unknown = _UNKNOWN.match(what)
    if unknown is not None:
        name = unknown["field"] if key == "the file" else f"{key}.{unknown['field']}"
        return name, "unknown key"
    pattern = _PATTERN.match(what)
    if pattern is not None:
        return key, f"expected {derived().shapes.get(pattern['regex'], 'other text')}"
    choice = _CHOICE.match(what)
    if choice is not None:
        bare = re.sub(r"\[[0-9]+\]", "", key)
        section, _, name = bare.partition(".")
        kinds = f"one of {derived().kinds.get(section, 'the known kinds')}"
        expected = kinds if name == "kind" else derived().choices.get(bare, "another value")
        return key, f"expected {expected}, got {choice['value']!r}"
    return key, _TYPES.sub(_in_toml, f"{what[0].lower()}{what[1:]}").replace("`", "")


def with_number(said: str, tree: object, key: str) -> str:
    """``said`` with the number that stands at ``key`` of ``tree``. Nothing but a number: a text may be a secret."""
    for step in re.findall(r"[^.\[\]]+", key):
        if isinstance(tree, dict):
            tree = tree.get(step)
        elif isinstance(tree, list | tuple) and step.isdecimal() and int(step) < len(tree):
            tree = tree[int(step)]
    if ", got " in said or isinstance(tree, bool) or not isinstance(tree, int | float):
        return said
    # A number in base 16 may have any length, and Python writes out none of thousands of digits.
    return f"{said}, got {tree}" if isinstance(tree, float) or abs(tree) < _LONG else said


def _in_toml(types: re.Match[str]) -> str:
    """The types in a message of msgspec's by TOML's words: a file has no null."""
    if types.string[: types.start()].endswith("got ") and types[1] == "float":
        return "float"  # which an integer may stand in place of, and not the other way round
    return " or ".join(_TOML.get(one, one) for one in types[1].split(" | ") if one != "null")


def hint_for(key: str, kind: object = None) -> str | None:
    """A hint on how to mend a mistake in ``key``.

    Args:
        key: as an operator writes it.
        kind: of the entry that it stands in, where there are several.
    """
    section = re.split(r"[.\[]", key, maxsplit=1)[0]
    words = derived()
    if (known := words.keys.get(f"{section} {kind}")) is not None:
        return f'[[{section}]] of kind "{kind}" knows {known}'
    if section in words.kinds:
        return f"each [[{section}]] has a kind: {words.kinds[section]}"
    if key == "the file":
        return None
    known = words.keys.get(section)
    if known is None:
        return f"the sections are {', '.join(name for name in words.keys if ' ' not in name)}"
    return f"[[{section}]] knows {known}" if section in ENTRIES else f"[{section}] knows {known}"


@cache
def derived() -> Words:
    """The words that the types of the configuration give."""
    words = Words({}, {}, {}, {})
    config = inspect.type_info(Config)
    if not isinstance(config, inspect.StructType):
        raise AssertionError("internal error: the configuration is no struct")  # noqa: TRY004 - ours
    for section in config.fields:
        structs = [kind for kind in _parts(section.type) if isinstance(kind, inspect.StructType)]
        if len(structs) > 1:
            words.kinds[section.name] = ", ".join(str(struct.tag) for struct in structs)
        words.keys[section.name] = ", ".join(dict.fromkeys(key.name for struct in structs for key in struct.fields))
        for struct in structs if len(structs) > 1 else ():
            words.keys[f"{section.name} {struct.tag}"] = ", ".join(key.name for key in struct.fields)
        for key in (key for struct in structs for key in struct.fields):
            for kind in _parts(key.type):
                if isinstance(kind, inspect.LiteralType):
                    words.choices[f"{section.name}.{key.name}"] = _alternatives(kind)
                elif isinstance(kind, inspect.Metadata) and isinstance(kind.type, inspect.StrType):
                    words.shapes[repr(kind.type.pattern)] = (kind.extra_json_schema or {})["description"]
    return words


def _parts(kind: inspect.Type) -> Iterator[inspect.Type]:
    """The types of single values in ``kind``."""
    inner: tuple[inspect.Type, ...] = ()
    if isinstance(kind, inspect.UnionType):
        inner = kind.types
    elif isinstance(kind, inspect.VarTupleType):
        inner = (kind.item_type,)
    elif isinstance(kind, inspect.DictType):
        inner = (kind.key_type, kind.value_type)
    else:
        yield kind
    for one in inner:
        yield from _parts(one)


def _alternatives(kind: inspect.LiteralType) -> str:
    values = [f'"{value}"' for value in kind.values]
    return f"{', '.join(values[:-1])} or {values[-1]}" if len(values) > 1 else values[0]
