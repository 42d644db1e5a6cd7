"""``credential-agent redirect``: lead workers' metadata requests to the agent, and show that they arrive."""

from __future__ import annotations

import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from agent import config as configuration
from agent.cli.common import CONFIG_PATH, EX_UNAVAILABLE
from agent.core.errors import HostError
from agent.host import nft
from agent.wire.http import USER_AGENT_PREFIX

AGENT_USER: Final = "credential-agent"
PROBE_SECONDS: Final = 3.0
_CONFIG = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
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
def apply(path: Path, user: str, only_print: bool) -> None:
    """Load the rules, replacing ours if they are there. Safe to repeat."""
    _load(path, user, closed=False, only_print=only_print)


@redirect.command()
@_CONFIG
@_USER
@click.option("--print", "only_print", is_flag=True, help="Print the rules and change nothing.")
def close(path: Path, user: str, only_print: bool) -> None:
    """Stop redirecting, and reject what was redirected: no worker gets the machine's identity instead."""
    _load(path, user, closed=True, only_print=only_print)


@redirect.command()
def remove() -> None:
    """Remove the rules. Workers reach the machine's real metadata service from now on."""
    nft.run(nft.removal())
    nft.set_fronts(present=False)


@redirect.command()
def show() -> None:
    """Print the rules as the kernel has them, with their counters."""
    table = nft.show()
    if table is None:
        raise HostError(f"table {nft.TABLE} is not loaded", hint="systemctl start credential-agent-redirect")
    click.echo(table, nl=False)


@redirect.command()
@_CONFIG
def check(path: Path) -> int:
    """Ask as a worker and as others, and say who answered. Needs root; changes nothing."""
    settings = configuration.load(path)
    if nft.show() is None:
        raise HostError(f"table {nft.TABLE} is not loaded", hint="systemctl start credential-agent-redirect")
    failed = False
    for fine, line in _findings(settings):
        failed |= not fine
        click.echo(f"{'ok  ' if fine else 'FAIL'}  {line}")
    return EX_UNAVAILABLE if failed else 0


@redirect.command(hidden=True)
@click.argument("address")
@click.argument("port", type=int)
def probe(address: str, port: int) -> None:
    """Say in one word who answers at ADDRESS:PORT: for ``check``, which starts this as somebody else."""
    click.echo(_ask(address, port))


# ---------------------------------------------------------------------------------------------------------------------


def _load(path: Path, user: str, *, closed: bool, only_print: bool) -> None:
    settings = configuration.load(path)
    section = settings.redirect
    script = nft.ruleset(
        _workers(section), port=_port(settings), agent_uid=_uid(user), ipv6=section.ipv6, closed=closed
    )
    if only_print:
        click.echo(script, nl=False)
        return
    nft.run(script)
    # Rules first: the address must not be there before the guard that watches over it.
    nft.set_fronts(present=bool(section.bridges), ipv6=section.ipv6)


def _workers(section: configuration.Redirect) -> nft.Workers:
    uids = list(nft.parse_uids(section.uids))
    for name in section.users:
        uid = _uid(name)
        if uid is None:
            raise HostError(f"redirect.users: no user {name!r} on this machine")
        uids.extend(nft.parse_uids([str(uid)]))
    cgroups = []
    for unit in section.units:
        path = nft.control_group(unit)
        if path is None:
            click.echo(f"credential-agent: {unit} does not run: it is no worker until this is repeated", err=True)
        else:
            cgroups.append(path)
    return nft.Workers(uids=nft.merge(uids), cgroups=tuple(cgroups), bridges=section.bridges)


def _port(settings: configuration.Config) -> int:
    return settings.redirect.port or configuration.host_port(settings.listen.http[0])[1]


def _uid(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _findings(settings: configuration.Config) -> Iterator[tuple[bool, str]]:
    section, port, metadata = settings.redirect, _port(settings), nft.METADATA["ip"][0]
    workers = nft.merge([*nft.parse_uids(section.uids), *((u, u) for name in section.users if (u := _uid(name)))])
    if workers:
        uid = workers[0][0]
        answer = _as_user(uid, metadata, 80)
        yield answer == "agent", f"uid {uid} asks {metadata}: {_said(answer)}"
    for unit in section.units:
        if not unit.endswith(".slice"):
            continue  # a probe cannot be started inside a running service
        answer = _in_slice(unit, metadata, 80)
        yield answer == "agent", f"root in {unit} asks {metadata}: {_said(answer)}"
    outsider = next((max(low, 1) for low, high in nft.complement(workers) if high >= 1), None)
    if outsider is not None:
        answer = _as_user(outsider, "127.0.0.1", port)
        yield answer == "refused", f"uid {outsider}, no worker, asks the agent's door: {_said(answer)}"
    answer = _as_user(0, metadata, 80)
    yield answer != "agent", f"root outside of them asks {metadata}: {_said(answer)}"


def _said(answer: str) -> str:
    return {
        "agent": "the agent answers",
        "refused": "refused",
        "timeout": f"no answer within {PROBE_SECONDS:.0f} s (is the agent running?)",
        "unreachable": "no route: a machine without a default route needs one to any interface, even a dummy",
    }.get(answer, "another service answers" if answer.startswith("http ") else answer)


def _as_user(uid: int, address: str, port: int) -> str:
    # As nobody's group: group rights must not make a difference.
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
            timeout=PROBE_SECONDS * 5,
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


def _ask(address: str, port: int) -> str:
    """Who answers: ``agent``, ``http STATUS``, ``refused``, ``timeout`` or ``unreachable``.

    The agent refuses its own user agent with 508, so that a redirect that catches the agent itself is no endless loop.
    No real metadata service answers so: it is a fingerprint that needs neither a token nor a secret.
    """
    try:
        with socket.create_connection((address, port), timeout=PROBE_SECONDS) as connection:
            connection.sendall(
                f"GET / HTTP/1.1\r\nHost: {nft.METADATA['ip'][0]}\r\nUser-Agent: {USER_AGENT_PREFIX}redirect-check\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            head = connection.makefile("rb").readline(1024).split()
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return "unreachable" if error.errno in _NO_ROUTE else f"failed: {(error.strerror or str(error)).lower()}"
    status = head[1].decode(errors="replace") if len(head) > 1 else "nothing"
    return "agent" if status == "508" else f"http {status}"


_NO_ROUTE: Final = (101, 113)  # ENETUNREACH, EHOSTUNREACH
