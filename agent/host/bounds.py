"""How much of the agent may one worker have: a uid, a user with subordinate uids, a container's address, a bridge?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from agent.host.nft_text import chain, elements, set_

ADDRESS_TYPE: Final = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}
#: Five hundred programs that start at once ask some three thousand times before the first has what it wants.
BURST_SECONDS: Final = 3
#: All containers behind one bridge together may have so many times what one of them may have.
CONTAINERS_FOLD: Final = 4
#: A worker that has not asked for so long may have a whole burst again.
FORGOTTEN_SECONDS: Final = 60


class Bounds(NamedTuple):
    """The bounds of one worker (a uid, or one address of a container); ``0``: none.

    Attributes:
        connections: at once.
        per_second: new ones; :data:`BURST_SECONDS` of them may come at once after a rest.
    """

    connections: int = 0
    per_second: int = 0


def bounded(families: Sequence[Sequence[tuple[int, int]]], bounds: Bounds) -> list[str]:
    """How much of the agent one worker may have: a uid, a user with all subordinate uids, an address, a bridge.

    Connections beyond the number at once are refused: it stays too high for a while. New ones that come too fast are
    dropped: the kernel tries again after a second, and then a crowd that started at once has been served.
    """
    sets, chains = [], []

    def both(name: str, kind: str, key: str, verdict: str, times: int = 1) -> list[str]:
        rules = []
        if bounds.per_second:
            # Elements time out: a set that nothing leaves is full some day, and then bounds no newcomer.
            extra = f"size 65535; flags dynamic,timeout; timeout {FORGOTTEN_SECONDS}s;"
            sets.append(set_(f"busy_new_{name}", kind, (), extra))
            rules.append(f"update @busy_new_{name} {{ {key} {_faster(bounds.per_second * times)} }} counter drop")
        if bounds.connections:
            sets.append(set_(f"busy_{name}", kind, (), "size 65535; flags dynamic;"))
            rules.append(f"add @busy_{name} {{ {key} ct count over {bounds.connections * times} }} counter {verdict}")
        return rules

    inner = both("uids", "uid", "meta skuid", "reject with tcp reset")
    if inner:
        members = []
        for number, ranges in enumerate(families):
            rules = [f"{_faster(bounds.per_second)} counter drop"] if bounds.per_second else []
            if bounds.connections:
                rules.append(f"ct count over {bounds.connections} counter reject with tcp reset")
            chains.append(chain(f"family_{number}", None, rules))
            members += [f"{each} : goto family_{number}" for each in elements(ranges)]
        if members:
            inner.insert(0, f"meta skuid vmap {{ {', '.join(members)} }}")
    outer = [
        # A container can make up any number of addresses of its bridge, but not another bridge.
        *both("links", "iface_index", "iif", "drop", times=CONTAINERS_FOLD),
        *both("ip", ADDRESS_TYPE["ip"], "ip saddr", "drop"),
        *both("ip6", ADDRESS_TYPE["ip6"], "ip6 saddr", "drop"),
    ]
    new = ["ct state != new return"]
    return [*sets, *chains, chain("bounds", None, new + inner), chain("outer_bounds", None, new + outer)]


def _faster(per_second: int) -> str:
    return f"limit rate over {per_second}/second burst {per_second * BURST_SECONDS} packets"
