"""The target of a request (RFC 9112 section 3.2), read strictly: what two readers might read differently is refused."""

from __future__ import annotations

from typing import Final

import msgspec
from multidict import CIMultiDict

from agent.core.errors import TargetError
from agent.wire.http import Asker, Request, segments_of

LONGEST_REMEMBERED: Final = 256


class Target(msgspec.Struct, frozen=True):
    """The target of a request.

    Attributes:
        path, query: as they were sent, without the question mark.
        segments: of the path, decoded.
        slash: whether the path ends in one.
        authority: of absolute-form; else the Host field says it.
    """

    path: str
    query: str
    segments: tuple[str, ...]
    slash: bool
    authority: str | None


def _check(text: str) -> None:
    if not text.isascii() or not text.isprintable() or " " in text or "#" in text:
        raise TargetError("expected a target in printable ascii without a fragment")


def with_query(target: Target, query: str) -> Target:
    """The same in origin-form with a query, as :func:`read_target` would read it.

    Raises:
        TargetError: the query has what no target has.
    """
    _check(query)
    return Target(target.path, query, target.segments, target.slash, None)


def read_target(target: str) -> Target:
    """Read origin-form and absolute-form (RFC 9112 section 3.2), strictly.

    Raises:
        TargetError: any other form, and every spelling that two readers might read differently.
    """
    _check(target)
    authority = None
    if not target.startswith("/"):
        scheme, separator, rest = target.partition("://")
        if not separator or scheme.lower() != "http":
            raise TargetError("expected a target in origin-form or absolute-form")
        authority, slash, tail = rest.partition("/")
        if "?" in authority:
            # ``http://host?query``: an empty path (RFC 9110 section 4.2.3 makes it /).
            authority, _, query = rest.partition("?")
            slash, tail = "/", "?" + query
        if not authority or "@" in authority:
            raise TargetError("expected an authority without user information")
        target = "/" + tail if slash else "/"
    path, _, query = target.partition("?")
    return Target(path, query, segments_of(path), path.endswith("/"), authority)


def request_of(method: str, target: Target, headers: CIMultiDict[str], body: bytes, asker: Asker | None) -> Request:
    """The request whose parts those are."""
    return Request(
        method,
        target.path,
        target.query,
        target.segments,
        target.slash,
        headers,
        headers.get("Host", "") if target.authority is None else target.authority,
        body,
        asker,
    )
