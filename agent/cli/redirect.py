"""``credential-agent redirect``: lead workers' metadata requests to the agent, and show that they arrive."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from agent import config as configuration
from agent.cli.common import CONFIG_PATH, EX_CONFIG, EX_UNAVAILABLE
from agent.core.errors import AgentError, HostError
from agent.host import arrival, fronts, hold, nft, planning, ranges, subuid, systemctl, unroutable
from agent.host.bounds import Bounds

AGENT_USER: Final = "credential-agent"
MOST_FAMILIES: Final = 256
"""For at most so many users their subordinate uids are bounded with them: each costs a chain of rules."""
UNUSED_UID: Final = 60578
"""The first of those that systemd's list of uids (systemd.io/UIDS-GIDS) gives to nobody."""
_CONFIG = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, readable=False),  # whoever reads it says whether it can be read
    default=CONFIG_PATH,
    show_default=True,
    help="The configuration; its [redirect] section says who is a worker.",
)
_USER = click.option(
    "--user", default=AGENT_USER, show_default=True, help="The agent's own user, which keeps the real service."
)


@click.group()
def redirect() -> None:
    """Lead workers' metadata requests to the agent (nftables; needs CAP_NET_ADMIN)."""


@redirect.command()
@_CONFIG
@_USER
@click.option("--print", "only_print", is_flag=True, help="Print the rules and change nothing.")
def apply(path: Path, user: str, only_print: bool) -> int:
    """Make the rules anew and load them. Safe to repeat.

    Reads the [redirect] section alone. Exits 78 when what it says cannot be told: workers are refused then, or what was
    in force before stays so. Where credential-agent-redirect.service runs, it does this.
    """
    holder = None if only_print else _Holder.found()
    if holder is not None:
        return _told(holder.ask(signal.SIGHUP))
    plan = make_plan(path, user)
    if only_print:
        click.echo(plan.scripts[0], nl=False)
    else:
        _load(plan)
    for note in (*plan.notes, *plan.pending):
        click.echo(f"credential-agent: {note}", err=True)
    if plan.error is None:
        return 0
    click.echo(f"credential-agent: {plan.error}", err=True)
    click.echo("  hint: workers are refused until this is mended: credential-agent redirect apply", err=True)
    return EX_CONFIG


@redirect.command()
@_CONFIG
@_USER
@click.option("--print", "only_print", is_flag=True, help="Print the rules and change nothing.")
def close(path: Path, user: str, only_print: bool) -> None:
    """Stop redirecting, and reject what was redirected: no worker gets the machine's identity instead.

    Until "apply", or a start of credential-agent-redirect.service.
    """
    holder = None if only_print else _Holder.found()
    if holder is not None:
        holder.ask(signal.SIGUSR1)
        return
    plan = make_plan(path, user)
    if only_print:
        click.echo(plan.closed, nl=False)
        return
    _load(msgspec.structs.replace(plan, scripts=(plan.closed,), lacking=()))


@redirect.command(name="plan", hidden=True)
@_CONFIG
@_USER
def plan_(path: Path, user: str) -> None:
    """Print the rules and what belongs to them as JSON: for the process that holds them."""
    click.echo(msgspec.json.encode(make_plan(path, user)).decode())


@redirect.command()
def remove() -> None:
    """Remove the rules. Workers reach the machine's real metadata service from now on, until the next boot."""
    if _Holder.found() is not None:
        systemctl.stop(hold.UNIT)
        if (holder := _Holder.found()) is not None:
            raise HostError(f"process {holder.pid} holds the rules", hint=f"end it first: kill {holder.pid}")
    systemctl.stop_watch()
    unroutable.lift(arrival.STATE.parent / unroutable.MARK)
    nft.run(nft.removal())
    fronts.set_fronts(present=False)
    shutil.rmtree(arrival.STATE.parent, ignore_errors=True)


@redirect.command()
def show() -> None:
    """Print the rules as the kernel has them, with their counters."""
    table = nft.show()
    if table is None:
        raise HostError(f"table {nft.TABLE} is not loaded", hint=arrival.HINT)
    click.echo(table, nl=False)


@redirect.command()
@_CONFIG
def check(path: Path) -> int:
    """Ask as a worker and as others, and say who answered. Needs root; changes nothing."""
    section, port, notes = configuration.load_redirect(path)
    if nft.show() is None:
        raise HostError(f"table {nft.TABLE} is not loaded: workers are refused", hint=arrival.HINT)
    failed = False
    known = _settled()
    if known is not None and not known.arrives:
        failed = True
        click.echo(f"FAIL  {known.state}: {known.why}\n      hint: {arrival.hint(known.state)}")
    plan = _plan(section, port, notes, AGENT_USER)
    for note in (*plan.notes, *plan.pending):
        failed = True
        click.echo(f"FAIL  {note}")
    for fine, line in _findings(section, port):
        failed |= not fine
        click.echo(f"{'ok  ' if fine else 'FAIL'}  {line}")
    return EX_UNAVAILABLE if failed else 0


@redirect.command(hidden=True)
@click.argument("address")
@click.argument("port", type=int)
def probe(address: str, port: int) -> None:
    """Say in one word who answers at ADDRESS:PORT: for ``check``, which starts this as somebody else."""
    click.echo(arrival.ask(address, port))


# ---------------------------------------------------------------------------------------------------------------------


class _Holder:
    """The process that holds the rules, when there is one."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.pid = int(document["pid"])
        self._plans = document["plans"]

    @classmethod
    def found(cls) -> _Holder | None:
        document = cls._document()
        if document is None:
            return None
        try:
            running = b"agent.host.hold" in Path(f"/proc/{document['pid']}/cmdline").read_bytes()
        except OSError:
            return None
        return cls(document) if running else None

    def ask(self, number: signal.Signals) -> dict[str, Any]:
        """Have it do something, and wait until it has."""
        try:
            os.kill(self.pid, number)
        except PermissionError:
            raise HostError("this needs root", hint="sudo credential-agent redirect ...") from None
        end = time.monotonic() + planning.PLAN_SECONDS + 5
        while time.monotonic() < end:
            document = self._document()
            if document is not None and (
                document["plans"] > self._plans if number == signal.SIGHUP else document["state"] == "closed"
            ):
                return document
            time.sleep(0.05)
        raise HostError(f"process {self.pid} does not answer", hint=arrival.HINT)

    @staticmethod
    def _document() -> dict[str, Any] | None:
        try:
            document = json.loads(arrival.STATE.read_bytes())
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) and {"pid", "plans", "state"} <= document.keys() else None


def _settled() -> arrival.Arrival | None:
    """What the holder says. It probes every two seconds, so its last word may be older than the rules just loaded."""
    end = time.monotonic() + 2 * hold.PROBE_AGAIN_SECONDS + arrival.PROBE_SECONDS
    while (known := arrival.read()) is not None and not known.arrives and time.monotonic() < end:
        if known.state == "closed":
            break
        time.sleep(0.1)
    return known


def _told(document: dict[str, Any]) -> int:
    """Print what the holder said of its rules; returns the status to exit with."""
    for note in document["notes"]:
        click.echo(f"credential-agent: {note}", err=True)
    if document["error"] is None:
        return 0
    click.echo(f"credential-agent: {document['error']}", err=True)
    return EX_CONFIG


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The rules that follow from the configuration and the machine.

    Attributes:
        scripts: for ``nft``; the first that the kernel takes is in force.
        lacking: what each of them does without.
        closed: the same workers, refused.
        ipv6: whether the IPv6 front address is wanted.
        error: why ``scripts`` are closed; ``None``: they lead.
        notes: what is not as the configuration says, and was tolerated.
        pending: users and units that were not there; to be looked up again.
        uid: of a worker, to probe as; ``None``: no uid is a worker.
        groups: control groups that the rules name, with the number that each has now.
    """

    scripts: tuple[str, ...]
    closed: str
    ipv6: bool = True
    error: str | None = None
    notes: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    uid: int | None = None
    groups: dict[str, int] = {}
    lacking: tuple[str, ...] = ()


def make_plan(path: Path, user: str = AGENT_USER) -> Plan:
    """Read the section and look everything up. Raises nothing: on an error the plan refuses workers."""
    try:
        section, port, notes = configuration.load_redirect(path)
        return _plan(section, port, notes, user)
    except AgentError as error:
        hint = f" ({error.hint})" if error.hint else ""
        section = configuration.Redirect()
        closed = _plan(section, configuration.host_port(configuration.Listen().http[0])[1], (), user)
        return msgspec.structs.replace(closed, scripts=(closed.closed,), lacking=(), error=f"{error.message}{hint}")


def _plan(section: configuration.Redirect, port: int, notes: tuple[str, ...], user: str) -> Plan:
    uids, pending = list(ranges.parse_uids(section.uids)), []
    for name in section.users:
        uid = _uid(name)
        if uid is None:
            pending.append(f"redirect.users: no user {name!r} on this machine yet")
        else:
            uids.extend(ranges.parse_uids([str(uid)]))
    groups, said = _groups(section.units)
    families = subuid.families(uid_of=_uid)
    open_units = tuple(
        f"redirect.units: {unit} has no gate: what it starts with is the machine (systemd/README.md, Who is a worker)"
        for unit in section.units
        if systemctl.without_gate(unit)
    )
    workers = nft.Workers(
        uids=ranges.merge(uids),
        cgroups=tuple(groups),
        bridges=section.bridges,
        exempt_bridges=section.exempt_bridges,
        families=families[:MOST_FAMILIES],
    )
    if len(families) > MOST_FAMILIES:
        notes = (
            *notes,
            f"{subuid.FILE}: of {len(families)} users {MOST_FAMILIES} are bounded with their subordinate uids",
        )

    def script(bounds: Bounds = Bounds(), *, closed: bool = False) -> str:  # noqa: B008 - frozen
        agent_uid = _uid(user)
        return nft.ruleset(workers, port=port, agent_uid=agent_uid, ipv6=section.ipv6, closed=closed, bounds=bounds)

    # A kernel may be built without counting connections (nft_connlimit) or without rates (nft_limit).
    connections, per_second = section.max_connections_per_worker, section.new_connections_per_worker
    tried = {Bounds(connections, per_second): ""}
    for bounds, lacking in (
        (Bounds(connections, 0), "redirect.new_connections_per_worker: not in force, this kernel bounds no rate"),
        (Bounds(0, per_second), "redirect.max_connections_per_worker: not in force, this kernel counts none"),
        (Bounds(), "redirect: a worker may take any number of connections, this kernel bounds none"),
    ):
        tried.setdefault(bounds, lacking)
    return Plan(
        scripts=tuple(script(bounds) for bounds in tried),
        lacking=tuple(tried.values()),
        closed=script(closed=True),
        ipv6=section.ipv6,
        notes=(*notes, *open_units),
        pending=(*pending, *said),
        uid=_asker(workers.uids),
        groups=groups,
    )


def _asker(uids: tuple[tuple[int, int], ...]) -> int | None:
    """A worker's uid that probably nobody uses: the bounds of a real worker must not keep us from asking."""
    if not uids:
        return None
    low, high = uids[-1]
    return min(max(low, UNUSED_UID), high)


def _groups(units: tuple[str, ...]) -> tuple[dict[str, int], list[str]]:
    groups, missing = {}, []
    for unit in units:
        systemctl.check_unit(unit)
        try:
            path = systemctl.control_group(unit)
            number = None if path is None else (systemctl.UNIFIED / path).stat().st_ino
        except (HostError, OSError) as error:
            missing.append(f"redirect.units: {unit} cannot be told: {error}")
            continue
        if path is None or number is None:
            missing.append(f"redirect.units: {unit} does not run: it is no worker yet")
        else:
            groups[path] = number
    return groups, missing


def _load(plan: Plan) -> None:
    for number, script in enumerate(plan.scripts):
        try:
            nft.run(script)
        except HostError:
            if number == len(plan.scripts) - 1:
                raise
            continue
        if any(plan.lacking[number : number + 1]):
            click.echo(f"credential-agent: {plan.lacking[number]}", err=True)
        break
    # Rules first: the address must not be there before the rules that guard it.
    fronts.set_fronts(present=True, ipv6=plan.ipv6)


def _uid(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _findings(section: configuration.Redirect, port: int) -> Iterator[tuple[bool, str]]:
    metadata = nft.METADATA["ip"][0]
    workers = ranges.merge([*ranges.parse_uids(section.uids), *((u, u) for name in section.users if (u := _uid(name)))])
    if workers:
        uid = workers[0][0]
        answer = _as_user(uid, metadata, 80)
        yield answer == "agent", f"uid {uid} asks {metadata}: {arrival.said(answer)}"
    for unit in section.units:
        if not unit.endswith(".slice"):
            continue  # a probe cannot be started inside a running service
        answer = _in_slice(unit, metadata, 80)
        yield answer == "agent", f"root in {unit} asks {metadata}: {arrival.said(answer)}"
    outsider = next((max(low, 1) for low, high in ranges.complement(workers) if high >= 1), None)
    if outsider is not None:
        answer = _as_user(outsider, "127.0.0.1", port)
        yield answer == "refused", f"uid {outsider}, no worker, asks the agent's endpoint: {arrival.said(answer)}"
    answer = _as_user(0, metadata, 80)
    yield answer != "agent", f"root outside of them asks {metadata}: {arrival.said(answer)}"


def _as_user(uid: int, address: str, port: int) -> str:
    # In no other group: group rights must not make a difference.
    return _probe([], address, port, user=uid, group=uid, extra_groups=[])


def _in_slice(unit: str, address: str, port: int) -> str:
    run = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--slice={unit}", "--property=NoNewPrivileges=1"]
    return _probe(run, address, port)


def _probe(
    prefix: list[str],
    address: str,
    port: int,
    *,
    user: int | None = None,
    group: int | None = None,
    extra_groups: list[int] | None = None,
) -> str:
    command = [*prefix, sys.executable, "-I", "-m", "agent", "redirect", "probe", address, str(port)]
    try:
        done = subprocess.run(  # noqa: S603 - ourselves, with checked arguments
            command,
            capture_output=True,
            text=True,
            timeout=arrival.PROBE_SECONDS * 5,
            check=False,
            cwd="/",
            user=user,
            group=group,
            extra_groups=extra_groups,
        )
    except PermissionError:
        raise HostError("to ask as somebody else needs root", hint="sudo credential-agent redirect check") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"the probe could not be started: {error}") from None
    return done.stdout.strip() or f"the probe failed: {done.stderr.strip()[-200:]}"
