"""``check``: what the service would find at its start."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.documents import json_option, tell
from agent.cli.exits import EX_CONFIG
from agent.cli.stderr import say
from agent.core.installed import CONFIG_PATH, SERVICE_USER

if TYPE_CHECKING:
    from agent.config import Config, Redirect
    from agent.core.errors import AgentError


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, readable=False),
    default=CONFIG_PATH,
    show_default=True,
    help="The agent's configuration file (TOML).",
)
@click.option(
    "--build",
    is_flag=True,
    help="Check the file alone, on a machine that is not the worker, and list what could not be checked.",
)
@json_option
def check(path: Path, build: bool, as_json: bool) -> None:
    """Check the configuration and the files it names.

    Lists every mistake at once, and starts nothing. Run as root, it checks what the service's own user can read. Exits
    78 if there is a mistake.
    """
    import asyncio

    from agent import config
    from agent.cli import where

    environ = {**where.passed(), **os.environ}
    if not build:
        _become_the_service()
    settings, faults = config.survey(path)
    wrong: list[AgentError] = [fault.error(str(path)) for fault in faults]
    wrong += _ruled_out(settings.redirect)
    warned = list(_never_asked(settings))
    if build:
        unseen = [f"not looked at: {name}" for name in _elsewhere(settings)]
        _end(path, wrong, warned + unseen, as_json=as_json, build=True)
        return
    from agent import daemon

    async def look() -> daemon.Checked:
        return daemon.check(settings, environ=environ)

    found = asyncio.run(look())
    warned += [f"warning: {warning}" for warning in (*found.told, *_unknown_users(settings.redirect.users))]
    # A faulty section has defaults in place of what was meant: faults that follow from these are not told.
    wrong += [error for key, error in found.faults if not config.follows(key, faults)]
    _end(path, wrong, warned, as_json=as_json, build=False)


def _end(path: Path, wrong: list[AgentError], notes: list[str], *, as_json: bool, build: bool) -> None:
    """Tell everything, and end with the status that says whether anything is wrong."""
    from agent.cli import report

    if as_json:
        faults = [{"said": error.message, "hint": error.hint} for error in wrong]
        tell("check", {"path": str(path), "ok": not wrong, "build": build, "faults": faults, "notes": notes})
    else:
        for note in notes:
            say(note)
        for error in wrong:
            report(error)
    if wrong:
        raise click.exceptions.Exit(EX_CONFIG)
    if not as_json:
        click.echo(f"{path}: ok" + (", as far as it can be said off the worker" if build else ""))


def _never_asked(settings: Config) -> Iterator[str]:
    """URLs that the agent starts with and makes no request with; what was got is not said: it is a password.

    No mistake that forbids anything: an agent that ran with one beside others is not kept from its next release.
    """
    from agent import config

    for key, value in config.urls(settings):
        # A proxy is told the name; whoever else is asked would be told it by none of our requests.
        if not key.endswith("proxy") and re.match(r"\w+://[^/?#]*@", value):
            yield f"warning: {key}: expected a url without a user's name: it is never asked"


def _ruled_out(section: Redirect) -> Iterator[AgentError]:
    """What the unit that makes the rules would refuse: the agent itself does without that section."""
    from agent.core.errors import HostError
    from agent.host import nft, ranges, systemctl

    def rules(workers: nft.Workers) -> None:
        nft.ruleset(workers, port=1, agent_uid=None)

    looks: list[tuple[Callable[[str], object], tuple[str, ...]]] = [
        (lambda text: ranges.parse_uids([text]), section.uids),
        (systemctl.check_unit, section.units),
        (lambda text: rules(nft.Workers(bridges=(text,))), section.bridges),
        (lambda text: rules(nft.Workers(exempt_bridges=(text,))), section.exempt_bridges),
    ]
    for look, values in looks:
        for value in values:
            try:
                look(value)
            except HostError as error:
                yield error


def _unknown_users(names: tuple[str, ...]) -> Iterator[str]:
    """Users that are named and not there: no error, since an image is built before the machine's own users exist."""
    for name in names:
        try:
            pwd.getpwnam(name)
        except (KeyError, ValueError):  # a name with a NUL in it is nobody's
            yield f"redirect.users: no user {name!r} on this machine yet; no worker until there is"


def _become_the_service() -> None:
    """Become the service's user, where it exists: a key that only root can read is of no use to the service."""
    if os.geteuid() != 0:
        return
    try:
        service = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return
    os.initgroups(service.pw_name, service.pw_gid)
    os.setresgid(service.pw_gid, service.pw_gid, service.pw_gid)
    os.setresuid(service.pw_uid, service.pw_uid, service.pw_uid)


def _elsewhere(settings: Config) -> Iterator[str]:
    """The files, the group and the metadata service that only a worker has."""
    for index, key in enumerate(settings.keys):
        for name in ("path", "public_key", "name"):
            if hasattr(key, name):
                yield f"keys[{index}].{name}: {getattr(key, name)}"
    for index, signer in enumerate(settings.signers):
        yield f"signers[{index}].key: {signer.key}"
    for index, source in enumerate(settings.sources):
        kind = str(source.__struct_config__.tag)
        service = {"ec2-user-data": "ec2", "gce-attribute": "gce"}.get(kind)
        if service is not None and getattr(settings.upstream, service) == "auto":
            # The installation asks that of the machine that builds, whatever machine comes of it.
            missing = f"a machine without such a metadata service refuses it, unless upstream.{service} names one"
            yield f"sources[{index}]: {kind}: {missing}"
    for index, source in enumerate(settings.sources):
        named = {name: getattr(source, name, None) for name in ("ca_file", "token_file", "url_file")}
        yield from (f"sources[{index}].{name}: {path}" for name, path in named.items() if path is not None)
    if settings.upstream.ca_file is not None:
        yield f"upstream.ca_file: {settings.upstream.ca_file}"
    if settings.environment.group is not None:
        yield f"environment.group: {settings.environment.group}"
