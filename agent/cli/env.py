"""``env``: what the environment file of the workers says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from agent.cli.options import config_option, unreadable


@click.command()
@config_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["shell", "systemd", "json", "null"]),
    default="shell",
    show_default=True,
    help="shell: for eval. systemd: for EnvironmentFile=. json: an object. null: NAME=value, each ended by a NUL byte.",
)
def env(path: Path, form: str) -> None:
    """Print the variables that point programs to the agent.

    In a shell: eval "$(credential-agent env)".
    """
    from agent.host import envfile

    found = variables(path)
    if form == "json":
        click.echo(json.dumps(found, indent=2))
    elif form == "null":
        click.echo("".join(f"{name}={value}\0" for name, value in found.items()).encode(), nl=False)
    else:
        render = envfile.render_shell if form == "shell" else envfile.render_systemd
        click.echo(render(found), nl=False)  # bytes: whatever the locale, it is what the file says


def variables(path: Path) -> dict[str, str]:
    """The variables in the environment file. Raises HostError where it cannot be read.

    The file belongs to the agent's user: root takes from it only what the configuration lets an agent write.
    """
    from agent.cli import where
    from agent.host import envfile

    found = where.find(path)
    try:
        data = found.file.read_bytes()
    except OSError as error:
        raise unreadable(found.file, error) from None
    told = envfile.parse_systemd(data)
    settings = found.environment
    if os.geteuid() != 0 or settings is None:
        return told
    return envfile.for_root(told, own=settings.variables, allow=settings.allow, static=settings.static)
