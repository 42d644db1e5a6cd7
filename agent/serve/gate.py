"""Refuses requests before any dialect sees them: the one table of who may speak to the workers' endpoint at all.

The metadata address is the most attacked address of a cloud machine. The attacks, and the line that answers each:

* **A web page in a browser on this machine** (notebooks!), by DNS rebinding: the browser connects to us with the
  attacker's name in ``Host``. Only names and addresses of metadata services and of loopback are answered.
* **The same page without rebinding**, through a simple cross-site request: browsers send ``Origin``, ``Referer`` or one
  of the ``Sec-`` fields, and no program that wants a credential does (``Sec-Fetch-Mode`` alone passes: Node's own
  ``fetch`` sends it). A browser that is too old for them calls itself Mozilla *and* names its languages or asks for a
  page: each alone is no sign, since PowerShell and .NET call themselves Mozilla, Node's ``fetch`` names languages, and
  Java's asks for pages.
* **An open proxy or a server that can be talked into fetching URLs** (SSRF): proxies add ``X-Forwarded-For`` or
  ``Forwarded``, and the real services refuse it for that reason; so do we, and an empty one too.
* **Ourselves**: if the redirect caught the agent's own requests to the real service, each would cause another.
  The agent's user agent is refused with 508.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from agent.core.served import Reason
from agent.wire import names
from agent.wire.http import Request

_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})

METADATA_HOSTS: Final = frozenset(
    {
        *names.METADATA_ADDRESSES,
        "localhost",
        "instance-data",
        "instance-data.ec2.internal",
        "metadata",
        names.GCE_HOST,
        "metadata.goog",
    }
)
"""Every name and address under which an SDK may look for us, beside loopback addresses."""

_OF_PAGES: Final = (
    "Origin",
    "Referer",
    "Sec-Fetch-Site",
    "Sec-Fetch-Dest",
    "Sec-Fetch-User",
    "Sec-Purpose",
    "Sec-CH-UA",
    "Sec-WebSocket-Key",
    "Access-Control-Request-Method",
    "Access-Control-Request-Private-Network",
)
_OF_OLD_BROWSERS: Final = ("Accept-Language", "Cookie", "DNT", "Upgrade-Insecure-Requests")

_PORT = re.compile(r"[0-9]{1,5}\Z")
_MEMO_ENTRIES: Final = 256
_MEMO_BYTES: Final = 1024
"""Of the names of one request's fields."""


class Refusal(msgspec.Struct, frozen=True):
    """Why a request goes no further.

    Attributes:
        why: for a person, and safe to send: it repeats nothing that was sent.
        reason: for a metric.
        allow: the methods that would do, on a 405.
    """

    status: int
    why: str
    reason: Reason
    allow: str | None = None


def bare_host(authority: str) -> str | None:
    """The host of an authority, lower case, without port, brackets and a final dot; ``None`` when it is malformed.

    awscrt sends an IPv6 literal without brackets; it is understood.
    """
    host = authority.strip().lower()
    if host.startswith("["):
        host, bracket, port = host[1:].partition("]")
        if not bracket or (port and not (port.startswith(":") and _PORT.match(port[1:]))):
            return None
        return host
    if host.count(":") == 1:
        host, _, port = host.partition(":")
        if port and not _PORT.match(port):
            return None
    return host.removesuffix(".") or None


def _canonical(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _by_names(headers: Mapping[str, str]) -> Refusal | None:
    """What the mere names of the fields say."""
    if "X-Forwarded-For" in headers or "Forwarded" in headers:
        return Refusal(
            403, "requests that passed a proxy are refused; set NO_PROXY for the metadata addresses", "proxy"
        )
    if any(name in headers for name in _OF_PAGES):
        return Refusal(403, "requests of web pages are refused", "browser")
    return None


def _by_agent(agent: str, headers: Mapping[str, str]) -> Refusal | None:
    """What the name of the program says."""
    if "mozilla" in agent.lower():
        if any(name in headers for name in _OF_OLD_BROWSERS):
            return Refusal(403, "requests of browsers are refused", "browser")
        if "text/html" in headers.get("Accept", "").lower():
            return Refusal(403, "requests of browsers are refused", "browser")
    if agent.startswith(names.USER_AGENT_PREFIX):
        return Refusal(508, "the agent's own request came back to it; exempt its user from the redirect", "loop")
    return None


class Gate:
    """The checks, in order; the first that fails decides.

    Args:
        extra_hosts: further names that are ours (a container bridge's address, say).
    """

    def __init__(self, extra_hosts: tuple[str, ...] = ()) -> None:
        # As they are compared: an IPv6 address in its shortest form.
        self._hosts = METADATA_HOSTS | {_canonical(host.lower()) for host in extra_hosts}
        # Bounded, since a caller may invent any number.
        self._seen: dict[str, bool] = {}  # authority -> ours
        self._plain: set[tuple[str, ...]] = set()  # names of fields, as sent, none of which is refused

    def refusal(self, request: Request) -> Refusal | None:
        """``None`` when the dialects may see it."""
        headers = request.headers
        if request.method not in _METHODS:
            return Refusal(405, "only GET, HEAD and PUT are answered here", "method", allow="GET, HEAD, PUT")
        if not self._is_ours(request.host, headers.get("Host")):
            return Refusal(
                403,
                "the Host header does not name a metadata service; requests under other names are refused",
                "host",
            )
        sent = tuple(headers)
        if sent not in self._plain:
            refusal = _by_names(headers)
            if refusal is not None:
                return refusal
            if len(self._plain) >= _MEMO_ENTRIES:
                self._plain.clear()
            if sum(map(len, sent)) <= _MEMO_BYTES:
                self._plain.add(sent)
        agent = headers.get("User-Agent")
        return None if agent is None else _by_agent(agent, headers)

    def _is_ours(self, authority: str, header: str | None) -> bool:
        if not authority:
            # HTTP/1.0 without a Host; the parser refuses HTTP/1.1 without one. A browser always sends it.
            return header is None
        return self._named(authority) and (header is None or header is authority or self._named(header))

    def _named(self, authority: str) -> bool:
        known = self._seen.get(authority)
        if known is None:
            known = self._evaluate(authority)
            if len(self._seen) >= _MEMO_ENTRIES:
                self._seen.clear()
            if len(authority) <= _MEMO_ENTRIES:
                self._seen[authority] = known
        return known

    def _evaluate(self, authority: str) -> bool:
        host = bare_host(authority)
        if host is None:
            return False
        if host in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return address.is_loopback or str(address) in self._hosts
