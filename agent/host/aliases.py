"""Where are containers' requests redirected to? Addresses of our own on the loopback interface.

Loopback's own will not do: packets that come in through an interface must not reach 127.0.0.1, and switching that
protection off (``route_localnet``) opens every other local service too. So the loopback interface gets an address that
serves nothing else, and the socket unit listens on it, assigned or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.core.errors import HostError
from agent.host.tools import call

_SECONDS: Final = 5.0  # whoever holds the rules asks, and must not be held up
ALIAS4: Final = "169.254.171.2"
ALIAS6: Final = "fd6c:9e1f:25b2::2"


def set_aliases(*, present: bool, ipv6: bool = True) -> None:
    """Put the alias addresses on the loopback interface, or take them off. Either may be repeated.

    Where IPv6 is switched off (``ipv6.disable=1``, ``disable_ipv6``) there is no such address, and that is no error.

    Raises:
        HostError: iproute2 is missing, or the kernel refused.
    """
    for family, address, length in (("-4", ALIAS4, 32), ("-6", ALIAS6, 128)):
        try:
            said = call("ip", ["-o", family, "address", "show", "dev", "lo"], seconds=_SECONDS)
            there = address in {word.partition("/")[0] for word in said.split()}
            if present and not there and (ipv6 or family == "-4"):
                # nodad: an address of loopback has no neighbours to ask, and must be usable at once.
                nodad = ["nodad"] if family == "-6" else []
                scope = ["dev", "lo", "scope", "host", *nodad]
                call("ip", [family, "address", "add", f"{address}/{length}", *scope], seconds=_SECONDS)
            elif there and not present:
                call("ip", [family, "address", "del", f"{address}/{length}", "dev", "lo"], seconds=_SECONDS)
        except HostError:
            if family == "-4" or not ipv6_is_off():
                raise


def ipv6_is_off(switch: Path = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")) -> bool:
    """Whether the loopback interface has no IPv6: the machine was booted without, or a setting has taken it away."""
    try:
        return switch.read_text().strip() != "0"
    except OSError:
        return True
