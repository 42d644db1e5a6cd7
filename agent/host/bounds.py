"""How much of the agent may one worker have: a uid, a user with subordinate uids, a container, a bridge?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from agent.host.nft_text import chain, elements, set_

_RESET: Final = "counter reject with tcp reset"
ADDRESS_TYPE: Final = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}
#: Five hundred programs that start at once ask some three thousand times before the first has what it wants.
BURST_SECONDS: Final = 12
#: All containers behind one bridge together may have so many times what one of them may have.
CONTAINERS_FOLD: Final = 4
#: The one number that is no uid (setuid(2)): a comparison with it is false only where there is no owner to compare.
NOBODY_AT_ALL: Final = 4294967295
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
    """How much of the agent one worker may have: a uid, a user with all subordinate uids, an address, a link, a bridge.

    Connections beyond the number at once are refused: it stays too high for a while. New ones that come too fast are
    dropped: the kernel tries again after a second, and then a crowd that started at once has been served. But who waits
    so keeps one of the machine's some 28,000 ports (ip_local_port_range), for two minutes, and from one address to one
    other there are no more: so when as many wait as may come at once, the rest is refused. What one uid can have then,
    closed connections included (a port rests for a minute), leaves ports to the others: see
    ``tests/unit/host/test_bounds.py``. A container has ports of its own.

    Only a port whose owner ends the connection first rests: in a network namespace with 5,000 ports one uid had 20,000
    sessions where the agent ended them, as it does, and 5,000 where the client did. All count all the same. A rule
    sees the uid of a first packet; the last one may be sent when its socket has no owner any more, a limit of nftables
    gives nothing back, and each connection stays in the kernel's table for two minutes, whoever ends it
    (nf_conntrack_tcp_timeout_time_wait): with the default, one uid fills half of what a machine with 2 GB has there,
    and where that table is full the kernel drops everybody's packets. To reset connections instead of ending them would
    leave no port resting, whoever ends first (measured). But a client that ends its own side and reads to the end then
    gets an error behind its answer, and one that comes late to end its side already there.
    """
    sets, chains = [], []
    fast = _faster(bounds.per_second)
    # Elements time out: a set that nothing leaves is full some day, and then bounds no newcomer.
    timed = f"size 65535; flags dynamic,timeout; timeout {FORGOTTEN_SECONDS}s;"

    def both(name: str, kind: str, key: str, *, too_fast: str, too_many: str, times: int = 1) -> list[str]:
        rules = []
        if bounds.per_second:
            sets.append(set_(f"busy_new_{name}", kind, (), timed))
            rules.append(f"update @busy_new_{name} {{ {key} {_faster(bounds.per_second * times)} }} {too_fast}")
        if bounds.connections:
            sets.append(set_(f"busy_{name}", kind, (), "size 65535; flags dynamic;"))
            rules.append(f"add @busy_{name} {{ {key} ct count over {bounds.connections * times} }} {too_many}")
        return rules

    inner = both("uids", "uid", "meta skuid", too_fast="jump late", too_many=_RESET)
    if bounds.per_second:
        sets.append(set_("busy_late_uids", "uid", (), timed))
        chains.append(chain("late", None, [f"update @busy_late_uids {{ meta skuid {fast} }} {_RESET}", "counter drop"]))
    if inner:
        members = []
        for number, ranges in enumerate(families):
            chains += _together(f"family_{number}", f"late_{number}", bounds)
            members += [f"{each} : goto family_{number}" for each in elements(ranges)]
        if members:
            inner.insert(0, f"meta skuid vmap {{ {', '.join(members)} }}")
        # What has no owner (multipath TCP on some kernels) is somebody's all the same. All of it is one worker's.
        chains += _together("unowned", "late_unowned", bounds)
        inner += [f"meta skuid != {NOBODY_AT_ALL} return", "goto unowned"]
    drop = "counter drop"
    outer = [
        # A container can make up any number of addresses of its bridge, and so take the share of all who are behind it:
        # it counts by its link's address too (which whoever may use packet sockets can forge as well). It cannot make
        # up another bridge.
        *both("macs", "ether_addr", "ether saddr", too_fast=drop, too_many=drop),
        *both("links", "iface_index", "iif", too_fast=drop, too_many=drop, times=CONTAINERS_FOLD),
        *both("ip", ADDRESS_TYPE["ip"], "ip saddr", too_fast=drop, too_many=drop),
        *both("ip6", ADDRESS_TYPE["ip6"], "ip6 saddr", too_fast=drop, too_many=drop),
    ]
    new = ["ct state != new return"]
    return [*sets, *chains, chain("bounds", None, new + inner), chain("outer_bounds", None, new + outer)]


def _together(name: str, late: str, bounds: Bounds) -> list[str]:
    """The chains that bound all who are sent to the first of them as one."""
    made, rules, fast = [], [], _faster(bounds.per_second)
    if bounds.per_second:
        made.append(chain(late, None, [f"{fast} {_RESET}", "counter drop"]))
        rules.append(f"{fast} jump {late}")
    if bounds.connections:
        rules.append(f"ct count over {bounds.connections} {_RESET}")
    return [*made, chain(name, None, rules)]


def _faster(per_second: int) -> str:
    return f"limit rate over {per_second}/second burst {per_second * BURST_SECONDS} packets"
