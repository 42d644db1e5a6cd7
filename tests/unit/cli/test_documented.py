"""What commands tell programs is on one page: each status with its meaning, each document with its version."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from agent.cli import cli, documents, exits
from agent.doctor import telling

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "agent/cli/COMMANDS.md").read_text()
COMMANDS = sorted((ROOT / "agent/cli").glob("*.py"))


def test_the_page_has_the_table_of_the_statuses() -> None:
    """Every status and its meaning, in order, and no other."""
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == dict(exits.TABLE)
    named = {value for name, value in vars(exits).items() if name.startswith("EX_")}
    assert named == set(exits.TABLE)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_a_command_ends_only_with_a_status_of_the_table(path: Path) -> None:
    """No command invents a number: what it ends with is 0 or a name of the table."""
    numbers = []
    for node in ast.walk(ast.parse(path.read_text())):
        ends = isinstance(node, ast.Call) and ast.unparse(node.func) in {"sys.exit", "click.exceptions.Exit", "exit"}
        if ends:
            assert isinstance(node, ast.Call)
            numbers += [ast.unparse(one) for one in node.args if isinstance(one, ast.Constant)]
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant) and type(node.value.value) is int:
            numbers += [str(node.value.value)] if node.value.value else []
    assert numbers == []


def test_the_page_has_every_document() -> None:
    """Each schema has its section, and each section is a schema."""
    assert re.findall(r"^### `([a-z-]+)`$", PAGE, re.MULTILINE) == sorted(documents.SCHEMAS)


def test_the_doctors_document_is_of_the_same_table() -> None:
    """It is made where nothing prints; its name and version are those of the table."""
    assert telling.SCHEMA == "credential-agent/doctor"
    assert documents.SCHEMAS["doctor"] == telling.SCHEMA_VERSION


def commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """The commands of a group, and of the groups in it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if not command.hidden:
            yield name, command
        if isinstance(command, click.Group):
            yield from commands(command)


@pytest.mark.parametrize(
    ("name", "command"), list(commands(cli)), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_command_and_its_options_are_explained(name: str, command: click.Command) -> None:
    """The first sentence fits into the list of commands of a narrow terminal, and no option is without its words."""
    assert not command.get_short_help_str(limit=80 - len("credential-process") - 6).endswith("..."), name
    options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    assert [option.name for option in options if not option.help] == []


OTHERS = {
    "run": "prints nothing",
    "env": "prints what --format says, json too",
    "exec": "the command prints",
    "credential-process": "prints the document of AWS",
    "keygen": "prints a JWK",
    "seal": "prints a bundle",
    "inspect": "is for a person at a desk, about a file",
    "forward": "tells a person of what goes on",
    "redirect apply": "prints rules, or nothing",
    "redirect close": "prints rules, or nothing",
    "redirect remove": "prints nothing",
    "redirect record": "prints nothing",
    "redirect show": "prints what nft says",
    "redirect plan": "prints JSON, for one of our own processes",
    "redirect probe": "prints a word, for one of our own processes",
}
"""Commands without ``--json``, and why."""


def all_commands() -> dict[str, click.Command]:
    found = {}
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if isinstance(command, click.Group):
            found.update({f"{name} {inside}": one for inside, one in command.commands.items()})
        elif command is not None:
            found[name] = command
    return found


def test_every_command_that_says_something_says_it_to_programs_too() -> None:
    """Each has ``--json``, and its schema on the page, or a reason to have none."""
    with_json = {
        name for name, command in all_commands().items() if any("--json" in one.opts for one in command.params)
    }
    assert set(all_commands()) - with_json == set(OTHERS)
    schemas = {"config show": "config", "redirect check": "redirect-check"}
    assert {schemas.get(name, name) for name in with_json} == set(documents.SCHEMAS) - {"error"}
