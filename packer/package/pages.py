# ruff: noqa: INP001 - a program, and in no package
"""Makes the manual pages and the shells' completions from the command line itself: ``pages.py DIRECTORY``.

Run by ``packer/package.sh`` with the program and click-man on the path. ``SOURCE_DATE_EPOCH`` dates the pages.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.shell_completion import get_completion_class
from click_man.core import write_man_pages

import agent
from agent.cli import cli

NAME = "credential-agent"
SHELLS = {"bash": NAME, "zsh": f"_{NAME}", "fish": f"{NAME}.fish"}


def shorten(command: click.Command) -> None:
    """Give each command its first sentence whole: click ends it after 45 letters."""
    command.short_help = (command.help or "").split("\n\n")[0].replace("\n", " ").strip()
    for one in getattr(command, "commands", {}).values():
        shorten(one)


def main(target: Path) -> None:
    """Write ``man/*.1`` and ``completions/SHELL/FILE`` below ``target``."""
    pages = target / "man"
    pages.mkdir(parents=True)
    # The command line imports a command when it is called; click-man looks at those that are there.
    context = click.Context(cli, info_name=NAME)
    commands = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    whole = click.Group(NAME, {name: one for name, one in commands.items() if one}, params=cli.params, help=cli.help)
    shorten(whole)
    write_man_pages(NAME, whole, version=agent.__version__, target_dir=str(pages))
    for shell, file in SHELLS.items():
        kind = get_completion_class(shell)
        if kind is None:
            raise SystemExit(f"pages: click knows no completion for {shell}")
        place = target / "completions" / shell
        place.mkdir(parents=True)
        # Not `source()`: for bash it looks at the version of the bash here, which is another machine's matter.
        made = kind(cli, {}, NAME, f"_{NAME.replace('-', '_').upper()}_COMPLETE")
        (place / file).write_text(made.source_template % made.source_vars())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
