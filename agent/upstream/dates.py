"""The time in an answer, and whether its server is a witness.

``Date`` is read here and nowhere else. It is a stranger's text: nothing in it may raise; a date that is not credible
counts as absent.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from agent.core.google import TOKEN_ORIGINS
from agent.core.timekeeping import EARLIEST, LATEST, Witness
from agent.wire.names import EC2_IPV6, GCE_IPV6

METADATA_V6: Final = (ipaddress.ip_address(EC2_IPV6), ipaddress.ip_address(GCE_IPV6))
"""The IPv6 addresses of the EC2 and GCE metadata services: unique local, and link-local in effect like the IPv4 one."""

_AWS: Final = re.compile(
    r"https://sts(-fips)?(\.[a-z]{2}(-[a-z]+)+-[0-9]+)?\.(amazonaws\.com(\.cn)?|amazonaws\.eu|api\.aws|sc2s\.sgov\.gov|c2s\.ic\.gov)\Z"
)
"""STS under its own name, regional or global, in any partition; by default port, since its origin names none."""
_GOOGLE: Final = frozenset(TOKEN_ORIGINS)
_LONGEST_AGE: Final = 1 << 31
"""RFC 9111 section 1.2.2: what a cache sends when it cannot count that far."""


def date_of(headers: Mapping[str, str]) -> datetime | None:
    """When an answer was given: its ``Date``, and the ``Age`` that a cache added to it.

    Sources: RFC 9110 section 6.6.1, RFC 9111 section 5.1.

    Returns:
        Aware UTC between 2020 and 2100. ``None`` for anything else: absent, unreadable, two that differ, an ``Age``
        that is no number of seconds. A leap second (``:60``) is the second before it.
    """
    dates, ages = _all(headers, "Date"), _all(headers, "Age")
    if len(dates) != 1 or len(ages) > 1:
        return None
    given = _parsed(dates.pop())
    if given is None:
        return None
    seconds = 0
    for age in ages:
        if not (age.isascii() and age.isdigit() and len(age) <= 10 and int(age) <= _LONGEST_AGE):
            return None
        seconds = int(age)
    try:
        given += timedelta(seconds=seconds)
    except OverflowError:
        return None
    return given if EARLIEST <= given.timestamp() <= LATEST else None


def just_modified(headers: Mapping[str, str], within: timedelta) -> bool:
    """Whether what was answered was changed so short a time ago, by the server's own words.

    A file server names a version by its second and its size: what replaces it within that second has the same name (RFC
    9110 section 8.8.2.2).
    """
    given, modified = date_of(headers), _parsed(headers.get("Last-Modified", ""))
    return given is not None and modified is not None and abs(given - modified) < within


def witness_of(origin: str, *, link: bool, chosen: bool) -> Witness | None:
    """Which witness a ``Date`` from ``origin`` comes from; ``None``: from none, so it is ignored.

    Args:
        origin: scheme, host and port as connected to, the default port left out.
        link: it was asked as the machine's metadata service. It is one only at an address that no router passes on: at
            a configured other one (an emulator, a relay) it teaches nothing.
        chosen: the URL is ours or the operator's, and not one that a bundle names.
    """
    if link:
        return Witness.LINK if _is_link_local(origin) else None
    if not chosen:
        return None
    if _AWS.match(origin):
        return Witness.AWS
    return Witness.GOOGLE if origin in _GOOGLE else None


def _is_link_local(origin: str) -> bool:
    host = origin.partition("://")[2]
    host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name: whoever answers for it chooses the address
    return address.is_link_local or address in METADATA_V6


def _all(headers: Mapping[str, str], name: str) -> set[str]:
    found = getattr(headers, "getall", None)
    values = found(name, []) if found is not None else [headers[name]] if name in headers else []
    return {value.strip() for value in values}


def _parsed(text: str) -> datetime | None:
    from email.utils import parsedate_tz  # noqa: PLC0415 - loaded by aiohttp, and by nobody else

    try:
        found = parsedate_tz(text)
        if found is None:
            return None
        year, month, day, hour, minute, second = found[:6]
        given = datetime(year, month, day, hour, minute, min(second, 59) if second == 60 else second, tzinfo=UTC)
        return given - timedelta(seconds=found[9] or 0)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
