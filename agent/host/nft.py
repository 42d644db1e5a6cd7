"""Transparent interception: nftables tables that lead workers' metadata requests to the agent, and refuse the rest.

What they promise, for the machine's metadata addresses (EC2's and Google's, and those at which ECS and EKS hand out
credentials; IPv4 and IPv6):

* **A worker's request to port 80 arrives at the agent.** A worker is a uid, a control group (so that a job that runs
  as root in its slice counts, and the monitoring agent beside it does not), or whatever is forwarded: containers and
  virtual machines, whatever their bridge is called.
* **Everything else a worker sends there is rejected**, but DNS and NTP: Google's address also speaks TLS on 443 (with a
  client certificate that all may read on the disk) and ALTS on 8080, and each would hand out the machine's identity.
* **Everybody else keeps the real service**, and does not reach the agent's port.
* **The doubtful is a worker.** A socket without an owner (some kernels' multipath TCP, sockets of kernel file systems)
  has no uid to compare. So the rule is not "these uids are redirected" but "those uids are let through".
* **Closed first.** Two tables. The first is text (``closed.nft``), is loaded at boot before anything is read, and
  stays: it refuses what is not led. The second is made from the configuration, and leads. Whatever the second lacks (a
  mistake in a file, a name that is not there, a release that does not start), the first holds. Only removal opens.

Tables of our own, replaced in one transaction; nobody else's rules are read or touched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agent.core.errors import HostError
from agent.host import aliases, ranges
from agent.host.bounds import ADDRESS_TYPE, Bounds, bounded
from agent.host.nft_text import chain, elements, set_
from agent.host.tools import TIMEOUT_SECONDS, call
from agent.wire import names

TABLE: Final = "inet credential_agent"
CLOSED: Final = "inet credential_agent_closed"
#: The ending of the names of tables that a process of ours owns (see :mod:`agent.host.hold`).
HELD: Final = "_held"
#: The name that an earlier release gave the set ``listener_ports``; see ``closed.nft``.
_FORMER_PORTS: Final = "doors"
#: The copy of the closed table that ``credential-agent-watch.service`` owns while no process holds the rules.
KEPT: Final = f"{CLOSED}_kept"
CLOSED_FILE: Final = Path(__file__).with_name("closed.nft")


#: The metadata services, then what ECS (the address of relative URIs) and EKS lead SDKs to.
METADATA: Final = {
    "ip": (names.METADATA_IPV4, names.ECS_IPV4, names.EKS_IPV4),
    "ip6": (names.EC2_IPV6, names.GCE_IPV6, names.EKS_IPV6),
}
#: Interfaces of these kinds are cables, stand on one, or are tunnels that carry Ethernet: at their other end is another
#: machine, and no container of ours. One without a kind is a cable too.
_CABLES: Final = (
    "bond", "team", "vlan", "macsec", "hsr", "dsa", "macvlan", "ipvlan",
    "vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan", "batadv", "amt",
)  # fmt: skip


_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.:@-]{1,15}\*?\Z")
_CGROUP: Final = re.compile(r"[A-Za-z0-9:_.\\@/-]{1,4000}\Z")
_ALIAS: Final = {"ip": aliases.ALIAS4, "ip6": f"[{aliases.ALIAS6}]"}
_PROTOCOL: Final = {"ip": "ipv4", "ip6": "ipv6"}

# Deleting what is not there is an error; adding what is there is none.
_REPLACE: Final = f"add table {TABLE}\ndelete table {TABLE}\n"


class Workers(NamedTuple):
    """The workers, in numbers and paths.

    Attributes:
        uids: ranges, both ends included, ascending and apart (see :func:`parse_uids`).
        cgroups: paths below the control group root, without a leading slash.
        bridges: interfaces whose packets are a container's whatever else is known of them, and which may ask the
            agent's own port; a final ``*`` stands for any rest.
        exempt_bridges: interfaces whose packets are the machine's own: they reach the real service.
        families: for each user with subordinate uids (subuid(5)) all ranges: together they count as one worker.
        refused: uids, of ``uids`` none, of which it is not clear whether they are workers'. They are not led, so that
            they get nobody else's identity, and not let through, so that they are not the machine. Ranges as above.
        refused_cgroups: likewise; a worker inside is led.
    """

    uids: tuple[tuple[int, int], ...] = ()
    cgroups: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    exempt_bridges: tuple[str, ...] = ()
    families: tuple[tuple[tuple[int, int], ...], ...] = ()
    refused: tuple[tuple[int, int], ...] = ()
    refused_cgroups: tuple[str, ...] = ()


def ruleset(
    workers: Workers,
    *,
    port: int,
    agent_uid: int | None,
    server_uid: int | None = None,
    ipv6: bool = True,
    closed: bool = False,
    bounds: Bounds = Bounds(),  # noqa: B008 - frozen
) -> str:
    """Both tables as text for ``nft -f``: they replace those that are there, in one transaction.

    Args:
        workers: who is led to the agent.
        port: the agent's port on loopback and on its alias addresses.
        agent_uid: the agent's own user, which needs the real service; ``None``: it does not exist here.
        server_uid: the user of what answers workers. It may speak from the agent's port, and counts as a worker in all
            else, since it parses strangers' bytes and needs no service; ``None``: it does not exist here.
        ipv6: also lead the IPv6 addresses of the metadata services. They are refused in any case.
        closed: reject what would be redirected.
        bounds: of each worker.

    Raises:
        HostError: a name in ``workers`` cannot stand in a rule.
    """
    _check(workers)
    if server_uid is not None:
        workers = workers._replace(uids=ranges.merge((*workers.uids, (server_uid, server_uid))))
    others = ranges.complement(ranges.merge((*workers.uids, *workers.refused)))
    if agent_uid is not None:
        others = ranges.merge((*others, (agent_uid, agent_uid)))
    speakers = tuple(uid for uid in (agent_uid, server_uid) if uid is not None)
    made = _Names(
        port,
        agent_uid,
        speakers,
        [_sent_from(path) for path in workers.cgroups],
        [*(["meta skuid @refused"] if workers.refused else []), *map(_sent_from, workers.refused_cgroups)],
        [f'iifname "{name}"' for name in workers.bridges],
    )
    return (
        CLOSED_FILE.read_text()
        + _exceptions(workers, others, made)
        + _REPLACE
        + f"table {TABLE} {{\n"
        + "".join(_lead(workers, others, made, ipv6=ipv6, closed=closed, bounds=bounds))
        + "}\n"
    )


def refusal(uids: Sequence[tuple[int, int]] = ()) -> str:
    """The text of the closed table alone, as a boot begins with it. Loading it keeps what was excepted before.

    Args:
        uids: system users to refuse too. The kernel takes none that overlap those that it has.
    """
    refused = f"add element {CLOSED} worker_uids {{ {', '.join(elements(uids))} }}\n" if uids else ""
    return CLOSED_FILE.read_text() + refused


def held(script: str, ending: str = HELD) -> str:
    """The same rules in tables that belong to the process that loads them, and end with it.

    Nobody else can flush, change or delete those (``flags owner``, Linux 5.12 and nftables 0.9.9). The same rules
    twice do what they do once: whichever table a packet meets first leads it, and both refuse the same.
    """
    names = {name.split()[1] for name in (TABLE, CLOSED)}
    script = re.sub(rf"\b({'|'.join(sorted(names))})\b", rf"\1{ending}", script)
    # At each table's first mention, or the kernel takes the later flag for a change of it.
    begin = "".join(f"add table inet {name}{ending} {{\n\tflags owner\n}}\n" for name in sorted(names))
    replace = "".join(f"delete table inet {name}{ending}\n" for name in sorted(names))
    script = re.sub(r"^(?:add|delete) table .*\n", "", script, flags=re.MULTILINE)
    script = re.sub(r"^(table inet \w+ \{)$", r"\1\n\tflags owner", script, flags=re.MULTILINE)
    return begin + replace + script


def removal() -> str:
    """The text that removes both tables, whether they are there or not."""
    return _REPLACE + _REPLACE.replace(TABLE, CLOSED)


def _exceptions(workers: Workers, others: Sequence[tuple[int, int]], made: _Names) -> str:
    """The lines that the configuration adds to the closed table: whom it does not refuse, whom it does, the port."""
    lines = []
    for ports in ("listener_ports", _FORMER_PORTS):
        lines += [f"flush set {CLOSED} {ports}", f"add element {CLOSED} {ports} {{ {made.port} }}"]
    lines.append(f"flush set {CLOSED} speaker_uids")
    if made.speakers:
        lines.append(f"add element {CLOSED} speaker_uids {{ {', '.join(map(str, made.speakers))} }}")
    for name, uids in (("exempt_uids", others), ("worker_uids", ranges.merge((*workers.uids, *workers.refused)))):
        lines.append(f"flush set {CLOSED} {name}")
        if uids:
            lines.append(f"add element {CLOSED} {name} {{ {', '.join(elements(uids))} }}")
    lines.append(f"flush chain {CLOSED} exempt_interfaces")
    # One rule each: a wildcard inside a set is understood by newer releases of nft only.
    lines += [f'add rule {CLOSED} exempt_interfaces iifname "{name}" accept' for name in workers.exempt_bridges]
    lines.append(f"flush chain {CLOSED} asking_interfaces")
    lines += [f"add rule {CLOSED} asking_interfaces {bridge} accept" for bridge in made.bridges]
    return "\n".join(lines) + "\n"


class _Names(NamedTuple):
    """The parts that the rules are made of.

    Attributes:
        port: the agent's.
        agent_uid: the agent's own user; ``None``: it does not exist here.
        speakers: the users who may answer from the port: the agent's, and that of what answers for it.
        cgroups: matches of what a control group of workers sends.
        doubtful: matches of what somebody sends who is neither led nor let through.
        bridges: matches of what comes in from containers.
    """

    port: int
    agent_uid: int | None
    speakers: tuple[int, ...]
    cgroups: list[str]
    doubtful: list[str]
    bridges: list[str]

    def agent(self, verdict: str) -> list[str]:
        """The rule for the agent's own packets; none where it has no user."""
        return [] if self.agent_uid is None else [f"meta skuid {self.agent_uid} {verdict}"]


def _lead(
    workers: Workers,
    others: Sequence[tuple[int, int]],
    made: _Names,
    *,
    ipv6: bool,
    closed: bool,
    bounds: Bounds,
) -> list[str]:
    return [
        *(set_(f"metadata_{family}", ADDRESS_TYPE[family], METADATA[family]) for family in ("ip", "ip6")),
        set_("workers", "uid", elements(workers.uids), "flags interval;"),
        set_("others", "uid", elements(others), "flags interval;"),
        *([set_("refused", "uid", elements(workers.refused), "flags interval;")] if workers.refused else []),
        *bounded(workers.families, bounds),
        *([] if closed else _redirection(workers, made, ("ip", "ip6") if ipv6 else ("ip",))),
        *_guards(made),
        *_listener(made),
    ]


def _sent_from(path: str) -> str:
    return f'socket cgroupv2 level {path.count("/") + 1} "{path}"'


def _to_metadata(prefix: str, verdict: str, families: Sequence[str] = ("ip", "ip6")) -> list[str]:
    return [f"{prefix}{family} daddr @metadata_{family} {verdict}" for family in families]


def _redirection(workers: Workers, made: _Names, families: Sequence[str]) -> list[str]:
    """The chains that lead a worker's request to the agent."""
    exempt = [f'iifname "{name}" return' for name in workers.exempt_bridges]
    to_alias = [
        f"meta nfproto {_PROTOCOL[family]} meta l4proto tcp counter dnat {family} to {_ALIAS[family]}:{made.port}"
        for family in families
    ]
    return [
        chain(
            "lead_output",
            "type nat hook output priority -110;",
            _to_metadata("tcp dport 80 ", "jump worker", families),
        ),
        chain(
            "worker",
            None,
            [
                *made.agent("return"),
                *(f"{match} meta l4proto tcp counter redirect to :{made.port}" for match in made.cgroups),
                *(["meta skuid @refused return"] if workers.refused else []),
                "meta skuid @others return",
                f"meta l4proto tcp counter redirect to :{made.port}",
            ],
        ),
        chain("to_alias", None, to_alias),
        chain(
            "forwarded",
            None,
            [
                *exempt,
                *(f"{bridge} jump to_alias" for bridge in made.bridges),
                # A packet that comes in where this machine itself goes out to the metadata service is a neighbour's.
                "fib daddr . iif oif exists return",
                # In quotes: newer releases of nft have words of their own among them (vxlan, geneve).
                'meta iifkind { "' + '", "'.join(_CABLES) + '" } return',
                # A tunnel (WireGuard, tun, IP in IP, PPP): its other end is another machine, or a person's.
                "meta iiftype != ether return",
                'meta iifkind != "none" jump to_alias',
            ],
        ),
        chain(
            "lead_forwarded",
            "type nat hook prerouting priority -110;",
            ['iifname "lo" return', *_to_metadata("tcp dport 80 ", "jump forwarded", families)],
        ),
    ]


def _guards(made: _Names) -> list[str]:
    """Refuses what the redirection did not take: other ports and protocols, and connections older than the table."""
    anybody = "@workers" if made.agent_uid is None else f"1-{ranges.MAX_UID}"
    return [
        chain(
            "guard_output",
            "type filter hook output priority 0;",
            [
                f"fib daddr type local tcp dport {made.port} jump listener",
                f"ip saddr {{ 127.0.0.0/8, {aliases.ALIAS4} }} tcp sport {made.port} jump speaker",
                f"ip6 saddr {{ ::1, {aliases.ALIAS6} }} tcp sport {made.port} jump speaker",
                *_to_metadata("", "jump real"),
            ],
        ),
        # Workers trust what answers from the agent's port, so only the agent, what answers for it (a connection is the
        # user's who accepts it) and systemd's socket (root's) may answer: while none is there, any user may listen.
        # (Where the agent's user is unknown: no worker may answer.)
        chain(
            "speaker",
            None,
            [
                *(f"meta skuid {uid} return" for uid in made.speakers),
                "ct direction original return",
                # Root's job in a slice is a worker too, and could listen beside systemd's socket (``ReusePort=``).
                *(f"{match} counter reject with tcp reset" for match in made.cgroups),
                "meta skuid 0 return",
                f"meta skuid {anybody} counter reject with tcp reset",
            ],
        ),
        chain(
            "real",
            None,
            [
                *made.agent("return"),
                "meta l4proto { tcp, udp } th dport { 53, 123 } return",
                *(f"{match} goto refuse" for match in made.cgroups),
                "meta skuid @workers goto refuse",
                *(f"{match} goto refuse" for match in made.doubtful),
                "meta skuid @others return",
                # The last packets of a closed connection have no owner any more; all else without one is doubtful. (Not
                # `ct state new`: where somebody's `notrack` keeps connections untracked, no packet is new.)
                "ct state established,related return",
                "goto refuse",
            ],
        ),
        # A reset is not held back by the kernel's limit of ICMP messages.
        chain("refuse", None, ["meta l4proto tcp counter reject with tcp reset", "counter reject"]),
    ]


def _listener(made: _Names) -> list[str]:
    """The chains that decide who reaches the agent's own port, from this machine and from outside."""
    return [
        chain(
            "listener",
            None,
            [
                "ct state established,related accept",
                # One worker's connections must leave room, and the agent's time, to the others.
                "jump bounds",
                *(f"ct original {family} daddr @metadata_{family} accept" for family in ("ip", "ip6")),
                *(f"{match} accept" for match in made.cgroups),
                *made.agent("accept"),
                "meta skuid @workers accept",
                "meta l4proto tcp counter reject with tcp reset",
            ],
        ),
        # Nobody from outside may ask, even where the kernel's own protection of loopback is switched off.
        chain(
            "guard_input",
            "type filter hook input priority 0;",
            [
                'iifname "lo" accept',
                # (Not `ct state new`: where somebody's `notrack` keeps connections untracked, no packet is new.)
                f"tcp dport {made.port} ct state established,related accept",
                f"tcp dport {made.port} jump outer_listener",
            ],
        ),
        chain(
            "outer_listener",
            None,
            [
                "jump outer_bounds",
                *(f"{bridge} accept" for bridge in made.bridges),
                *(f"ct status dnat ct original {family} daddr @metadata_{family} accept" for family in ("ip", "ip6")),
                "counter drop",
            ],
        ),
    ]


def run(script: str, *, seconds: float = TIMEOUT_SECONDS) -> None:
    """Hand a script to ``nft``: all of it takes effect, or none. It has so many seconds.

    Raises:
        HostError: nftables is missing, the kernel refused, or we may not.
    """
    call("nft", ["-f", "-"], script, seconds=seconds)


def show(table: str = TABLE, *, seconds: float = TIMEOUT_SECONDS) -> str | None:
    """A table as the kernel has it, with its counters; ``None``: it is not there.

    Raises:
        HostError: nftables is missing, or we may not look.
    """
    # A missing table and a missing permission are one exit status: ask for the list of tables first.
    if f"table {table}" not in call("nft", ["list", "tables"], seconds=seconds).splitlines():
        return None
    return call("nft", ["list", "table", *table.split()], seconds=seconds)


# ---------------------------------------------------------------------------------------------------------------------


def _check(workers: Workers) -> None:
    for key, interfaces in (("bridges", workers.bridges), ("exempt_bridges", workers.exempt_bridges)):
        for name in interfaces:
            if not _INTERFACE.match(name):
                raise HostError(
                    f"redirect.{key}: expected the name of an interface, perhaps with a final *, got {name!r}"
                )
    for path in (*workers.cgroups, *workers.refused_cgroups):
        if not _CGROUP.match(path) or path.startswith("/") or ".." in path.split("/"):
            raise HostError(f"expected the path of a control group, got {path!r}")
