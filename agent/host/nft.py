"""Transparent interception: one nftables table that leads workers' metadata requests to the agent.

What the table promises, for the machine's metadata addresses (EC2's and Google's, IPv4 and IPv6):

* **A worker's request to port 80 arrives at the agent.** A worker is a uid, a control group (so that a job that runs
  as root in its slice counts, and the monitoring agent beside it does not), or whatever comes in through a bridge of
  containers.
* **Everything else a worker sends there is rejected**, but DNS and NTP: Google's address also speaks TLS on 443 (with a
  client certificate that lies readable on the disk) and ALTS on 8080, and each would hand out the machine's identity.
* **Everybody else keeps the real service**, and does not get into the agent's door.
* **The doubtful is a worker.** A socket without an owner (some kernels' multipath TCP, sockets of kernel file systems)
  has no uid to compare. So the rule is not "these uids are redirected" but "those uids are let through".
* **Fail closed.** The table is no part of the agent's life: when the agent is down, workers wait at its socket. When
  the redirection is stopped, :func:`ruleset` with ``closed`` rejects what it redirected. Only removal opens.

One table of our own, replaced in one transaction; nobody else's rules are read or touched.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agent.core.errors import HostError

TABLE: Final = "inet credential_agent"

#: Where containers' requests are led. Loopback will not do: packets that come in through an interface must not reach
#: 127.0.0.1, and switching that protection off (``route_localnet``) opens every other local service too. So the
#: loopback interface gets an address that leads nowhere else, and the socket unit listens on it, assigned or not.
FRONT4: Final = "169.254.171.2"
FRONT6: Final = "fd6c:9e1f:25b2::2"

METADATA: Final = {"ip": ("169.254.169.254",), "ip6": ("fd00:ec2::254", "fd20:ce::254")}

MAX_UID: Final = 0xFFFFFFFE  # the last number is "no user"
UNIFIED: Final = Path("/sys/fs/cgroup")
_SEARCH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.:@-]{1,15}\*?\Z")
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}\.(?:slice|service|scope)\Z")
_CGROUP: Final = re.compile(r"[A-Za-z0-9:_.\\@/-]{1,4000}\Z")
_TIMEOUT_SECONDS: Final = 30.0
_FRONT: Final = {"ip": FRONT4, "ip6": f"[{FRONT6}]"}
_ADDRESS_TYPE: Final = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}
_PACKAGES: Final = {"nft": "nftables", "ip": "iproute2 (iproute on Amazon Linux)", "systemctl": "systemd"}

# Deleting what is not there is an error; adding what is there is none.
_REPLACE: Final = f"add table {TABLE}\ndelete table {TABLE}\n"


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """Who is a worker, in numbers and paths.

    Attributes:
        uids: ranges, both ends included, ascending and apart (see :func:`parse_uids`).
        cgroups: paths below the control group root, without a leading slash.
        bridges: interface names; a final ``*`` stands for any rest.
    """

    uids: tuple[tuple[int, int], ...] = ()
    cgroups: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()


def ruleset(workers: Workers, *, port: int, agent_uid: int | None, ipv6: bool = True, closed: bool = False) -> str:
    """The table as text for ``nft -f``: it replaces the one that is there, in one transaction.

    Args:
        workers: who is led to the agent.
        port: the agent's port on loopback and on the front addresses.
        agent_uid: the agent's own user, which needs the real service; ``None``: it does not exist here.
        ipv6: also the IPv6 addresses of the metadata services.
        closed: reject what would be redirected.

    Raises:
        HostError: a name in ``workers`` cannot stand in a rule.
    """
    _check(workers)
    families = ("ip", "ip6") if ipv6 else ("ip",)
    others = complement(workers.uids)
    if agent_uid is not None:
        others = merge((*others, (agent_uid, agent_uid)))
    cgroups = [f'socket cgroupv2 level {path.count("/") + 1} "{path}"' for path in workers.cgroups]
    agent = [] if agent_uid is None else [f"meta skuid {agent_uid} return"]
    # One rule each: a wildcard inside a set is understood by newer releases of nft only.
    bridges = [f'iifname "{name}"' for name in workers.bridges]

    def to_metadata(prefix: str, verdict: str) -> list[str]:
        return [f"{prefix}{family} daddr @metadata_{family} {verdict}" for family in families]

    parts = [
        *(_set(f"metadata_{family}", _ADDRESS_TYPE[family], METADATA[family]) for family in families),
        _set("workers", "uid", _ranges(workers.uids), "flags interval;"),
        _set("others", "uid", _ranges(others), "flags interval;"),
    ]
    if not closed:
        parts += [
            _chain("lead_output", "type nat hook output priority -110;", to_metadata("tcp dport 80 ", "jump worker")),
            _chain(
                "worker",
                None,
                [
                    *agent,
                    *(f"{match} meta l4proto tcp counter redirect to :{port}" for match in cgroups),
                    "meta skuid @others return",
                    f"meta l4proto tcp counter redirect to :{port}",
                ],
            ),
        ]
        if bridges:
            rules = [
                f"{bridge} tcp dport 80 {family} daddr @metadata_{family} "
                f"counter dnat {family} to {_FRONT[family]}:{port}"
                for bridge in bridges
                for family in families
            ]
            parts.append(_chain("lead_bridges", "type nat hook prerouting priority -110;", rules))
    parts += [
        # What the redirection left: other ports and protocols, and connections older than the table.
        _chain(
            "guard_output",
            "type filter hook output priority 0;",
            [f"fib daddr type local tcp dport {port} jump door", *to_metadata("", "jump real")],
        ),
        _chain(
            "real",
            None,
            [
                *agent,
                "meta l4proto { tcp, udp } th dport { 53, 123 } return",
                *(f"{match} counter reject" for match in cgroups),
                "meta skuid @workers counter reject",
                "meta skuid @others return",
                # The last packets of a closed connection have no owner any more: only new ones are nobody's.
                "ct state new counter reject",
            ],
        ),
        _chain(
            "door",
            None,
            [
                "ct state established,related accept",
                *(f"ct original {family} daddr @metadata_{family} accept" for family in families),
                *(f"{match} accept" for match in cgroups),
                *([] if agent_uid is None else [f"meta skuid {agent_uid} accept"]),
                "meta skuid @workers accept",
                "meta l4proto tcp counter reject with tcp reset",
            ],
        ),
        # Nobody from outside, even where something has switched the kernel's own protection of loopback off.
        _chain(
            "guard_input",
            "type filter hook input priority 0;",
            [
                *(f"{bridge} tcp dport {port} accept" for bridge in bridges),
                f'iifname != "lo" tcp dport {port} ct state new counter drop',
            ],
        ),
    ]
    if bridges:
        parts += [
            _chain(
                "guard_forward",
                "type filter hook forward priority 0;",
                [rule for bridge in bridges for rule in to_metadata(f"{bridge} ", "jump real_forward")],
            ),
            _chain("real_forward", None, ["meta l4proto { tcp, udp } th dport { 53, 123 } return", "counter reject"]),
        ]
    return f"{_REPLACE}table {TABLE} {{\n" + "\n".join(parts) + "}\n"


def removal() -> str:
    """The text that removes the table, whether it is there or not."""
    return _REPLACE


def run(script: str) -> None:
    """Hand a script to ``nft``: all of it takes effect, or none.

    Raises:
        HostError: nftables is missing, the kernel refused, or we may not.
    """
    _call("nft", ["-f", "-"], script)


def show() -> str | None:
    """The table as the kernel has it, with its counters; ``None``: it is not there.

    Raises:
        HostError: nftables is missing, or we may not look.
    """
    # A missing table and a missing permission are one exit status: ask for the list of tables first.
    if f"table {TABLE}" not in _call("nft", ["list", "tables"]).splitlines():
        return None
    return _call("nft", ["list", "table", *TABLE.split()])


def set_fronts(*, present: bool, ipv6: bool = True) -> None:
    """Put the front addresses on the loopback interface, or take them off. Neither minds being done twice.

    Raises:
        HostError: iproute2 is missing, or the kernel refused.
    """
    for family, address, length in (("-4", FRONT4, 32), ("-6", FRONT6, 128)):
        there = address in _call("ip", ["-o", family, "address", "show", "dev", "lo"])
        if present and not there and (ipv6 or family == "-4"):
            # nodad: an address of loopback has no neighbours to ask, and must be usable at once.
            nodad = ["nodad"] if family == "-6" else []
            _call("ip", [family, "address", "add", f"{address}/{length}", "dev", "lo", "scope", "host", *nodad])
        elif there and not present:
            _call("ip", [family, "address", "del", f"{address}/{length}", "dev", "lo"])


def control_group(unit: str) -> str | None:
    """The control group of a unit, as a path below the root; ``None``: it has none now.

    A slice is started when it is not there: a rule names a control group by its number in the kernel, so the group must
    exist when the rule is loaded and stay. A *service* has a new group at each start and its rule must be loaded again
    then (``ExecStartPre=+credential-agent redirect apply`` in its unit), which is why workers belong in a slice.

    Raises:
        HostError: it is not the name of a slice, service or scope, or control groups are not unified.
    """
    if not _UNIT.match(unit):
        raise HostError(f"redirect.units: expected the name of a slice, service or scope, got {unit!r}")
    if not (UNIFIED / "cgroup.procs").exists():
        raise HostError(
            f"{UNIFIED}: expected the unified hierarchy of control groups (cgroup v2)",
            hint="boot with systemd.unified_cgroup_hierarchy=1, or choose workers by uid alone: units = []",
        )
    if unit.endswith(".slice"):
        path = slice_path(unit)
        if not (UNIFIED / path).is_dir():
            _call("systemctl", ["start", unit])
    else:
        path = _call("systemctl", ["show", "--property=ControlGroup", "--value", unit]).strip().removeprefix("/")
    return path if path and (UNIFIED / path).is_dir() else None


def slice_path(unit: str) -> str:
    """The path of a slice: ``a-b.slice`` lies in ``a.slice`` (systemd.slice(5))."""
    if unit == "-.slice":
        raise HostError("redirect.units: the root slice holds every process of the machine")
    names = unit.removesuffix(".slice").split("-")
    if not all(names):
        raise HostError(f"redirect.units: {unit!r} is not the name of a slice: two dashes touch, or one is at an end")
    return "/".join("-".join(names[: depth + 1]) + ".slice" for depth in range(len(names)))


def parse_uids(texts: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Read ``1000`` and ``1000-60000``; sort, join what touches.

    Raises:
        HostError: it is neither, or takes root in: the machine's own services run as root.
    """
    ranges = []
    for text in texts:
        first, dash, last = text.partition("-")
        numbers = (first, last if dash else first)
        if not all(number.isascii() and number.isdigit() and len(number) <= 10 for number in numbers):
            raise HostError(f"redirect.uids: expected a uid or a range such as 1000-60000, got {text!r}")
        low, high = (int(number) for number in numbers)
        if low > high or high > MAX_UID:
            raise HostError(f"redirect.uids: expected a rising range up to {MAX_UID}, got {text!r}")
        if low == 0:
            raise HostError(
                "redirect.uids: uid 0 cannot be a worker: the machine's own services run as root",
                hint="name the slice that root's jobs run in: units = [...]",
            )
        ranges.append((low, high))
    return merge(ranges)


def merge(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sort ranges and join those that overlap or touch."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Every uid that is not in ``ranges`` (ascending and apart)."""
    rest = []
    start = 0
    for low, high in ranges:
        if start < low:
            rest.append((start, low - 1))
        start = high + 1
    if start <= MAX_UID:
        rest.append((start, MAX_UID))
    return tuple(rest)


# ---------------------------------------------------------------------------------------------------------------------


def _check(workers: Workers) -> None:
    for name in workers.bridges:
        if not _INTERFACE.match(name):
            raise HostError(
                f"redirect.bridges: expected the name of an interface, perhaps with a final *, got {name!r}"
            )
    for path in workers.cgroups:
        if not _CGROUP.match(path) or path.startswith("/") or ".." in path.split("/"):
            raise HostError(f"expected the path of a control group, got {path!r}")


def _set(name: str, kind: str, elements: Sequence[str], extra: str = "") -> str:
    listed = f" elements = {{ {', '.join(elements)} }};" if elements else ""
    return f"\tset {name} {{ type {kind};{f' {extra}' if extra else ''}{listed} }}\n"


def _chain(name: str, hook: str | None, rules: Sequence[str]) -> str:
    lines = [f"{hook} policy accept;"] if hook else []
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in [*lines, *rules]) + "\t}\n"


def _ranges(ranges: Iterable[tuple[int, int]]) -> list[str]:
    return [str(low) if low == high else f"{low}-{high}" for low, high in ranges]


def _call(program: str, arguments: Sequence[str], text: str = "") -> str:
    path = shutil.which(program, path=_SEARCH)
    if path is None:
        raise HostError(f"{program}: not found in {_SEARCH}", hint=f"install the package {_PACKAGES[program]}")
    try:
        done = subprocess.run(  # noqa: S603 - fixed program, checked arguments
            [path, *arguments],
            input=text.encode(),
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
            env={"PATH": _SEARCH, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise HostError(f"{program} {arguments[0]}: no answer within {_TIMEOUT_SECONDS:.0f} s") from None
    if done.returncode != 0:
        first = next(iter(done.stderr.decode(errors="replace").strip().splitlines()), f"exit status {done.returncode}")
        hint = "this needs CAP_NET_ADMIN; run it as root" if "not permitted" in first.lower() else None
        raise HostError(f"{program}: {first}", hint=hint)
    return done.stdout.decode(errors="replace")
