"""Where a URL may lead: one parser of URLs, and the addresses that a URL from a bundle may not reach."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from agent.core.errors import UpstreamError
from agent.upstream.dates import METADATA_V6

if TYPE_CHECKING:
    from yarl import URL


_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address that is reached


class UpstreamRefused(UpstreamError):
    """We did not ask: the URL or the address behind it is not one we may ask. It will not pass by itself."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, code="refused")


def origin_of(url: str) -> str:
    """The scheme, host and port of ``url`` as this module would connect to them (default port left out).

    Allow-lists compare this, so that the name that is checked and the name that is connected come from one parser.

    Raises:
        UpstreamRefused: not an absolute http(s) URL, or one that carries a user name.
    """
    return str(parsed(url).origin()).lower()


def parsed(url: str) -> URL:
    """A URL as this package connects to it; raises UpstreamRefused."""
    if not url.isascii() or not url.isprintable() or " " in url:
        raise UpstreamRefused("a url may hold printable ascii without spaces only")
    from yarl import URL  # noqa: PLC0415 - part of aiohttp, and its reader of URLs

    try:
        target = URL(url, encoded=True)
        port = target.port
    except ValueError:
        raise UpstreamRefused("not a url") from None
    if target.scheme not in {"http", "https"} or not target.host or port is None:
        raise UpstreamRefused("expected an absolute http or https url")
    if target.user is not None or target.password is not None:
        raise UpstreamRefused(f"a url must not carry a user name or password: {target.scheme}://...@{target.host}")
    return target


def may_reach(address: str, *, allow_private: bool) -> bool:
    """Whether a URL that came out of a bundle may lead to ``address``."""
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        # Forms of IPv6 that end at an IPv4 address are checked as that address.
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip.sixtofour is not None:
            ip = ip.sixtofour
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip in METADATA_V6:
        return False
    if ip.is_private or ip.is_loopback:
        return allow_private
    return ip.is_global


def refuse_literal(target: URL, *, allow_private: bool) -> None:
    """Raise UpstreamRefused where the host is an address that may not be reached."""
    host = target.host or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return  # a name
    if not may_reach(host, allow_private=allow_private):
        raise refused_address(str(target.origin()))


def refused_address(origin: str) -> UpstreamRefused:
    """The error for a name or an address that may not be reached."""
    return UpstreamRefused(
        f"{origin} leads to a private, loopback or link-local address",
        hint="a url from a bundle must be public unless the configuration allows private addresses",
    )
