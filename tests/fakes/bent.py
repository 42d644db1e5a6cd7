"""A right answer, bent: each of its parts in turn is of the wrong type, empty, huge, twice, nested or not there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_DEEP = 20_000
_ODD: tuple[Any, ...] = (None, True, 0, -1, 1.5, 10**400, "", "x", "\u2028\x00", [], {}, [[]], {"": {}})
_ELEMENT = re.compile(rb"<([A-Za-z][A-Za-z0-9]*)([^<>]*)>([^<>]*)</\1>|<([A-Za-z][A-Za-z0-9]*)([^<>]*)>")


def bent(body: bytes) -> Iterator[bytes]:
    """Each way in which ``body`` may be wrong: as JSON, as XML or as text, and as bytes."""
    try:
        document = json.loads(body)
    except ValueError:
        yield from _xml(body) if body.lstrip().startswith(b"<") else ()
    else:
        yield from _json(document)
    yield from _cut(body)


def _cut(body: bytes) -> Iterator[bytes]:
    yield from (b"", b"\n", b"\x00", b"\xff\xfe", b"null", b"0", b'""', b"[]", b"{}", b"<a/>", b"<html>", b"[" * _DEEP)
    yield from (b"<!DOCTYPE html><title>Sign in</title>", b"9" * 5000, b"x" * 60_000, b"a\nb\n", b"\xef\xbb\xbf" + body)
    yield from (body[: len(body) * eighths // 8] for eighths in range(1, 8))
    yield from (body + body, body + b"\n}", body.decode("utf-8").encode("utf-16"), body.replace(b'"', b"'"))
    yield body[:-2] + b"\xff" + body[-1:]


def _json(document: Any) -> Iterator[bytes]:
    for path in _paths(document):
        for odd in (*_ODD, _at(document, path), [_at(document, path)], {"a": _at(document, path)}):
            yield json.dumps(_with(document, path, odd)).encode()
        deep = json.dumps(_with(document, path, "<deep>")).encode()
        yield deep.replace(b'"<deep>"', b"[" * _DEEP + b"]" * _DEEP)
        yield deep.replace(b'"<deep>"', b"1e999")
        yield deep.replace(b'"<deep>"', b'"\\ud800"')
        if path and isinstance(path[-1], str):
            yield json.dumps(_with(document, path, ...)).encode()
            again = json.dumps(_with(document, path, "<twice>")).encode()
            name = json.dumps(path[-1]).encode()
            yield again.replace(b'"<twice>"', b"null, " + name + b": " + json.dumps(_at(document, path)).encode())
            yield again.replace(b'"<twice>"', json.dumps(_at(document, path)).encode() + b", " + name + b": null")


def _paths(document: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield here
    parts = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for name, part in parts:
        yield from _paths(part, (*here, name))


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        document = document[name]
    return document


def _with(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = document.copy()
    if value is ... and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = _with(copy[path[0]], path[1:], value)
    return copy


def _xml(body: bytes) -> Iterator[bytes]:
    for name in dict.fromkeys(re.findall(rb"<([A-Za-z][A-Za-z0-9]*)", body)):
        whole = re.search(rb"<" + name + rb"\b[^<>]*>(.*?)</" + name + rb">", body, re.DOTALL)
        if whole is None:
            continue
        before, after, inside = body[: whole.start()], body[whole.end() :], whole[1]
        odd = (
            b"",
            b"x",
            b"1e999",
            b"-1",
            b"9" * 400,
            b"<a/>",
            b"<a>x</a>",
            b"<member>x</member>",
            b"x<a/>",
            b"&#xD800;",
        )
        for other in (*odd, b"<![CDATA[" + inside + b"]]>", inside + b"<a>x</a>", b"<" + name + b">x</" + name + b">"):
            yield before + b"<" + name + b">" + other + b"</" + name + b">" + after
        yield before + after
        yield before + inside + after
        yield before + whole[0] + whole[0] + after
        yield before + whole[0] + b"<" + name + b"/>" + after
        yield before + b"<" + name + b"/>" + whole[0] + after
        yield before + b"<" + name + b'/ xmlns="a">' + inside + after
        yield before + b"<b:" + name + b' xmlns:b="b">' + inside + b"</b:" + name + b">" + after
        yield before + (b"<" + name + b">") * 2000 + (b"</" + name + b">") * 2000 + after
