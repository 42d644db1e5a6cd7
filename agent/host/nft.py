"""Transparent interception: nftables tables that lead workers' metadata requests to the agent, and refuse the rest.

What they promise, for the machine's metadata addresses (EC2's and Google's, and those at which ECS and EKS hand out
credentials; IPv4 and IPv6):

* **A worker's request to port 80 arrives at the agent.** A worker is a uid, a control group (so that a job that runs
  as root in its slice counts, and the monitoring agent beside it does not), or whatever is forwarded: containers and
  virtual machines, whatever their bridge is called.
* **Everything else a worker sends there is rejected**, but DNS and NTP: Google's address also speaks TLS on 443 (with a
  client certificate that lies readable on the disk) and ALTS on 8080, and each would hand out the machine's identity.
* **Everybody else keeps the real service**, and does not get into the agent's door.
* **The doubtful is a worker.** A socket without an owner (some kernels' multipath TCP, sockets of kernel file systems)
  has no uid to compare. So the rule is not "these uids are redirected" but "those uids are let through".
* **Closed first.** Two tables. The one is text (``closed.nft``), is loaded at boot before anything is read, and stays:
  it refuses what is not led. The other is made of the configuration and leads. Whatever becomes of the second (a
  mistake in a file, a name that is not there, a release that does not start), the first holds. Only removal opens.

Tables of our own, replaced in one transaction; nobody else's rules are read or touched.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agent.core.errors import HostError
from agent.wire import names

TABLE: Final = "inet credential_agent"
CLOSED: Final = "inet credential_agent_closed"
#: What the names of the tables end in that a process of ours owns (see :mod:`agent.host.hold`).
HELD: Final = "_held"
WATCH: Final = "credential-agent-watch.service"
CLOSED_FILE: Final = Path(__file__).with_name("closed.nft")

#: Where containers' requests are led. Loopback will not do: packets that come in through an interface must not reach
#: 127.0.0.1, and switching that protection off (``route_localnet``) opens every other local service too. So the
#: loopback interface gets an address that leads nowhere else, and the socket unit listens on it, assigned or not.
FRONT4: Final = "169.254.171.2"
FRONT6: Final = "fd6c:9e1f:25b2::2"

#: The metadata services, then what ECS (the address of relative URIs) and EKS lead SDKs to.
METADATA: Final = {
    "ip": (names.METADATA_IPV4, names.ECS_IPV4, names.EKS_IPV4),
    "ip6": (names.EC2_IPV6, names.GCE_IPV6, names.EKS_IPV6),
}
#: Interfaces of these kinds are cables, and a neighbour on one is no container of ours. One that the kernel knows no
#: kind of is a cable too.
_CABLES: Final = ("bond", "team", "vlan")


#: Five hundred programs that start at once ask some three thousand times before the first has what it wants.
BURST_SECONDS: Final = 4
#: All containers behind one bridge together may have so many times as much as one of them.
CONTAINERS_FOLD: Final = 4
#: Whoever has not asked for so long is owed a whole burst again.
FORGOTTEN_SECONDS: Final = 60
MAX_UID: Final = 0xFFFFFFFE  # the last number is "no user"
UNIFIED: Final = Path("/sys/fs/cgroup")
_SEARCH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.:@-]{1,15}\*?\Z")
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}\.(?:slice|service|scope)\Z")
_CGROUP: Final = re.compile(r"[A-Za-z0-9:_.\\@/-]{1,4000}\Z")
_TIMEOUT_SECONDS: Final = 30.0
_FRONT: Final = {"ip": FRONT4, "ip6": f"[{FRONT6}]"}
_PROTOCOL: Final = {"ip": "ipv4", "ip6": "ipv6"}
_ADDRESS_TYPE: Final = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}
_PACKAGES: Final = {"nft": "nftables", "ip": "iproute2 (iproute on Amazon Linux)", "systemctl": "systemd"}

# Deleting what is not there is an error; adding what is there is none.
_REPLACE: Final = f"add table {TABLE}\ndelete table {TABLE}\n"


class Workers(NamedTuple):
    """Who is a worker, in numbers and paths.

    Attributes:
        uids: ranges, both ends included, ascending and apart (see :func:`parse_uids`).
        cgroups: paths below the control group root, without a leading slash.
        bridges: interfaces whose packets are a container's whatever else is known of them, and which may ask the
            agent's own port; a final ``*`` stands for any rest.
        exempt_bridges: interfaces whose packets are the machine's own: they reach the real service.
        families: of each user with subordinate uids (subuid(5)) all ranges: together they have what one worker has.
    """

    uids: tuple[tuple[int, int], ...] = ()
    cgroups: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    exempt_bridges: tuple[str, ...] = ()
    families: tuple[tuple[tuple[int, int], ...], ...] = ()


class Bounds(NamedTuple):
    """What one worker (a uid, or one address of a container) may take of the agent; ``0``: any number.

    Attributes:
        connections: at once.
        per_second: new ones; :data:`BURST_SECONDS` of them may come at once after a rest.
    """

    connections: int = 0
    per_second: int = 0


def ruleset(
    workers: Workers,
    *,
    port: int,
    agent_uid: int | None,
    ipv6: bool = True,
    closed: bool = False,
    bounds: Bounds = Bounds(),  # noqa: B008 - frozen
) -> str:
    """Both tables as text for ``nft -f``: they replace those that are there, in one transaction.

    Args:
        workers: who is led to the agent.
        port: the agent's port on loopback and on the front addresses.
        agent_uid: the agent's own user, which needs the real service; ``None``: it does not exist here.
        ipv6: also lead the IPv6 addresses of the metadata services. They are refused in any case.
        closed: reject what would be redirected.
        bounds: of each worker.

    Raises:
        HostError: a name in ``workers`` cannot stand in a rule.
    """
    _check(workers)
    others = complement(workers.uids)
    if agent_uid is not None:
        others = merge((*others, (agent_uid, agent_uid)))
    return (
        CLOSED_FILE.read_text()
        + _exceptions(workers, others, port)
        + _REPLACE
        + f"table {TABLE} {{\n"
        + "".join(_lead(workers, others, port=port, agent_uid=agent_uid, ipv6=ipv6, closed=closed, bounds=bounds))
        + "}\n"
    )


def refusal() -> str:
    """The text of the closed table alone, as a boot begins with it. Loading it keeps what was excepted before."""
    return CLOSED_FILE.read_text()


def held(script: str) -> str:
    """The same rules in tables that belong to the process that loads them, and end with it.

    Nobody else can flush, change or delete those (``flags owner``, Linux 5.12 and nftables 0.9.9). The same rules
    twice do what they do once: whichever table a packet meets first leads it, and both refuse the same.
    """
    names = {name.split()[1] for name in (TABLE, CLOSED)}
    script = re.sub(rf"\b({'|'.join(sorted(names))})\b", rf"\1{HELD}", script)
    # At each table's first mention, or the kernel takes the later flag for a change of it.
    begin = "".join(f"add table inet {name}{HELD} {{\n\tflags owner\n}}\n" for name in sorted(names))
    replace = "".join(f"delete table inet {name}{HELD}\n" for name in sorted(names))
    script = re.sub(r"^(?:add|delete) table .*\n", "", script, flags=re.MULTILINE)
    script = re.sub(r"^(table inet \w+ \{)$", r"\1\n\tflags owner", script, flags=re.MULTILINE)
    return begin + replace + script


def removal() -> str:
    """The text that removes both tables, whether they are there or not."""
    return _REPLACE + _REPLACE.replace(TABLE, CLOSED)


def _exceptions(workers: Workers, others: Sequence[tuple[int, int]], port: int) -> str:
    """What the configuration adds to the closed table: who is exempt from it, and where the agent's door is."""
    lines = [f"flush set {CLOSED} doors", f"add element {CLOSED} doors {{ {port} }}", f"flush set {CLOSED} exempt_uids"]
    if others:
        lines.append(f"add element {CLOSED} exempt_uids {{ {', '.join(_ranges(others))} }}")
    lines.append(f"flush chain {CLOSED} exempt_interfaces")
    # One rule each: a wildcard inside a set is understood by newer releases of nft only.
    lines += [f'add rule {CLOSED} exempt_interfaces iifname "{name}" accept' for name in workers.exempt_bridges]
    return "\n".join(lines) + "\n"


def _lead(
    workers: Workers,
    others: Sequence[tuple[int, int]],
    *,
    port: int,
    agent_uid: int | None,
    ipv6: bool,
    closed: bool,
    bounds: Bounds,
) -> list[str]:
    families = ("ip", "ip6") if ipv6 else ("ip",)
    cgroups = [f'socket cgroupv2 level {path.count("/") + 1} "{path}"' for path in workers.cgroups]
    agent = [] if agent_uid is None else [f"meta skuid {agent_uid} return"]
    bridges = [f'iifname "{name}"' for name in workers.bridges]

    def to_metadata(prefix: str, verdict: str, families: Sequence[str] = ("ip", "ip6")) -> list[str]:
        return [f"{prefix}{family} daddr @metadata_{family} {verdict}" for family in families]

    parts = [
        *(_set(f"metadata_{family}", _ADDRESS_TYPE[family], METADATA[family]) for family in ("ip", "ip6")),
        _set("workers", "uid", _ranges(workers.uids), "flags interval;"),
        _set("others", "uid", _ranges(others), "flags interval;"),
    ]
    parts += _bounded(workers.families, bounds)
    if not closed:
        exempt = [f'iifname "{name}" return' for name in workers.exempt_bridges]
        to_front = [
            f"meta nfproto {_PROTOCOL[family]} meta l4proto tcp counter dnat {family} to {_FRONT[family]}:{port}"
            for family in families
        ]
        parts += [
            _chain(
                "lead_output",
                "type nat hook output priority -110;",
                to_metadata("tcp dport 80 ", "jump worker", families),
            ),
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
            _chain("to_front", None, to_front),
            _chain(
                "forwarded",
                None,
                [
                    *exempt,
                    *(f"{bridge} jump to_front" for bridge in bridges),
                    # Whoever comes in where this machine itself goes out to the metadata service is a neighbour.
                    "fib daddr . iif oif exists return",
                    f"meta iifkind {{ {', '.join(_CABLES)} }} return",
                    # A tunnel (WireGuard, tun, IP in IP, PPP): its other end is another machine, or a person's.
                    "meta iiftype != ether return",
                    'meta iifkind != "none" jump to_front',
                ],
            ),
            _chain(
                "lead_forwarded",
                "type nat hook prerouting priority -110;",
                ['iifname "lo" return', *to_metadata("tcp dport 80 ", "jump forwarded", families)],
            ),
        ]
    parts += [
        # What the redirection left: other ports and protocols, and connections older than the table.
        _chain(
            "guard_output",
            "type filter hook output priority 0;",
            [
                f"fib daddr type local tcp dport {port} jump door",
                f"ip saddr {{ 127.0.0.0/8, {FRONT4} }} tcp sport {port} jump speaker",
                f"ip6 saddr {{ ::1, {FRONT6} }} tcp sport {port} jump speaker",
                *to_metadata("", "jump real"),
            ],
        ),
        # Whoever is led believes what answers from the agent's port: the agent, or systemd's socket (root's), alone.
        # While that is not there any user may listen. (Where the agent's user has no name here: no worker.)
        _chain(
            "speaker",
            None,
            [
                *agent,
                "meta skuid 0 return",
                "ct direction original return",
                f"meta skuid {'@workers' if agent_uid is None else f'1-{MAX_UID}'} counter reject with tcp reset",
            ],
        ),
        _chain(
            "real",
            None,
            [
                *agent,
                "meta l4proto { tcp, udp } th dport { 53, 123 } return",
                *(f"{match} goto refuse" for match in cgroups),
                "meta skuid @workers goto refuse",
                "meta skuid @others return",
                # The last packets of a closed connection have no owner any more; all else without one is doubtful. (Not
                # "is new": where somebody's `notrack` keeps connections from being known, nothing is.)
                "ct state established,related return",
                "goto refuse",
            ],
        ),
        # A reset is not held back by the kernel's limit of ICMP messages.
        _chain("refuse", None, ["meta l4proto tcp counter reject with tcp reset", "counter reject"]),
        _chain(
            "door",
            None,
            [
                "ct state established,related accept",
                # One worker's connections leave room, and the agent time, for the others'.
                "jump bounds",
                *(f"ct original {family} daddr @metadata_{family} accept" for family in ("ip", "ip6")),
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
            ['iifname "lo" accept', f"tcp dport {port} ct state new jump outer_door"],
        ),
        _chain(
            "outer_door",
            None,
            [
                "jump outer_bounds",
                *(f"{bridge} accept" for bridge in bridges),
                *(f"ct status dnat ct original {family} daddr @metadata_{family} accept" for family in ("ip", "ip6")),
                "counter drop",
            ],
        ),
    ]
    return parts


def _bounded(families: Sequence[Sequence[tuple[int, int]]], bounds: Bounds) -> list[str]:
    """How much of the agent one worker may have: a uid, a user with all subordinate uids, an address, a bridge.

    What is too much at once is refused: it will be so for a while. What comes too fast is dropped: the kernel sends it
    again after a second, and a crowd that started at once is through by then.
    """
    sets, chains = [], []

    def both(name: str, kind: str, key: str, verdict: str, times: int = 1) -> list[str]:
        rules = []
        if bounds.per_second:
            # An element has a clock: a set that nothing leaves is full some day, and then bounds nobody new.
            extra = f"size 65535; flags dynamic,timeout; timeout {FORGOTTEN_SECONDS}s;"
            sets.append(_set(f"busy_new_{name}", kind, (), extra))
            rules.append(f"update @busy_new_{name} {{ {key} {_faster(bounds.per_second * times)} }} counter drop")
        if bounds.connections:
            sets.append(_set(f"busy_{name}", kind, (), "size 65535; flags dynamic;"))
            rules.append(f"add @busy_{name} {{ {key} ct count over {bounds.connections * times} }} counter {verdict}")
        return rules

    inner = both("uids", "uid", "meta skuid", "reject with tcp reset")
    if inner:
        members = []
        for number, ranges in enumerate(families):
            rules = [f"{_faster(bounds.per_second)} counter drop"] if bounds.per_second else []
            if bounds.connections:
                rules.append(f"ct count over {bounds.connections} counter reject with tcp reset")
            chains.append(_chain(f"family_{number}", None, rules))
            members += [f"{each} : goto family_{number}" for each in _ranges(ranges)]
        if members:
            inner.insert(0, f"meta skuid vmap {{ {', '.join(members)} }}")
    outer = [
        # A container makes up as many addresses of its bridge as it likes; the bridge it cannot.
        *both("links", "iface_index", "iif", "drop", times=CONTAINERS_FOLD),
        *both("ip", _ADDRESS_TYPE["ip"], "ip saddr", "drop"),
        *both("ip6", _ADDRESS_TYPE["ip6"], "ip6 saddr", "drop"),
    ]
    new = ["ct state != new return"]
    return [*sets, *chains, _chain("bounds", None, new + inner), _chain("outer_bounds", None, new + outer)]


def _faster(per_second: int) -> str:
    return f"limit rate over {per_second}/second burst {per_second * BURST_SECONDS} packets"


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

    Where IPv6 is switched off (``ipv6.disable=1``, ``disable_ipv6``) there is no such address, and nobody misses it.

    Raises:
        HostError: iproute2 is missing, or the kernel refused.
    """
    for family, address, length in (("-4", FRONT4, 32), ("-6", FRONT6, 128)):
        try:
            there = address in _call("ip", ["-o", family, "address", "show", "dev", "lo"])
            if present and not there and (ipv6 or family == "-4"):
                # nodad: an address of loopback has no neighbours to ask, and must be usable at once.
                nodad = ["nodad"] if family == "-6" else []
                _call("ip", [family, "address", "add", f"{address}/{length}", "dev", "lo", "scope", "host", *nodad])
            elif there and not present:
                _call("ip", [family, "address", "del", f"{address}/{length}", "dev", "lo"])
        except HostError:
            if family == "-4" or not ipv6_is_off():
                raise


def ipv6_is_off(switch: Path = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")) -> bool:
    """Whether the loopback interface has no IPv6: the machine was booted without, or a setting has taken it away."""
    try:
        return switch.read_text().strip() != "0"
    except OSError:
        return True


def control_group(unit: str) -> str | None:
    """The control group of a unit, as a path below the root; ``None``: it has none now.

    A slice is started when it is not there: a rule names a control group by its number in the kernel, so the group must
    exist when the rule is loaded and stay. A *service* has a new group at each start and its rule must be loaded again
    then (``ExecStartPre=+credential-agent redirect apply`` in its unit), which is why workers belong in a slice.

    Raises:
        HostError: :func:`check_unit` refuses the name, control groups are not unified, or systemd does not answer.
    """
    check_unit(unit)
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


def without_gate(unit: str) -> bool:
    """Whether a unit starts without a gate (``credential-agent-gate@.service``); in doubt not.

    Its control group is led and refused only after it has been seen: until then its jobs are the machine.
    """
    try:
        needs = _call("systemctl", ["show", "--property=Requires", "--value", unit])
    except HostError:
        return False
    return bool(needs.strip()) and f"credential-agent-gate@{unit}.service" not in needs.split()


def stop(unit: str) -> None:
    """Have systemd stop a unit.

    Raises:
        HostError: systemd does not answer, or refuses.
    """
    _call("systemctl", ["stop", unit])


def stop_watch() -> None:
    """Stop the unit that closes again after a flush, where it runs: it cannot tell a removal from a flush.

    Raises:
        HostError: systemd does not answer, or refuses.
    """
    if not Path("/run/systemd/system").is_dir():
        return
    if _call("systemctl", ["show", "--property=ActiveState", "--value", WATCH]).strip() not in {"inactive", "failed"}:
        stop(WATCH)


def check_unit(unit: str) -> None:
    """Refuse what cannot be the name of a unit of workers.

    Raises:
        HostError: it is not the name of a slice, service or scope.
    """
    if not _UNIT.match(unit):
        raise HostError(f"redirect.units: expected the name of a slice, service or scope, got {unit!r}")
    if unit.endswith(".slice"):
        slice_path(unit)


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
    for key, interfaces in (("bridges", workers.bridges), ("exempt_bridges", workers.exempt_bridges)):
        for name in interfaces:
            if not _INTERFACE.match(name):
                raise HostError(
                    f"redirect.{key}: expected the name of an interface, perhaps with a final *, got {name!r}"
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
    # Neither shutil nor dataclasses here: with what they import the process that holds the rules is a sixth larger.
    places = (f"{directory}/{program}" for directory in _SEARCH.split(":"))
    path = next((place for place in places if os.access(place, os.X_OK)), None)
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
