"""What a page or a hint tells somebody to type can be typed: each command is parsed, and run by nobody here."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from tests.test_docs import COMMANDS, PAGES, ROOT, command, commands

FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
NEXT = re.compile(r"&&|;|\n|`| \| | \(|: |, then ")
"""Between two commands, or before the first one, of a text."""
ENDS = re.compile(r"[\"()<>#]|, | (?:says|makes|does) |(?<!\.)\.$")
"""After a command begins something else: prose, a redirection, a comment."""
OF_SYSTEMD = re.compile(r"start|stop|restart|reload|enable|unmask|freeze|thaw|status|show|cat|list-unit-files")
"""What of systemctl(1) has a meaning for units whose files lie in ``/etc/systemd/system``: ``mask`` refuses those."""
FILLED_IN = "FILLED-IN"


class Typed(NamedTuple):
    """One command, where it stands, and whether it is all that is to be typed: prose names a command with one option."""

    where: str
    words: str
    whole: bool


def pages() -> Iterator[tuple[str, str]]:
    """Every page but that of former releases."""
    yield from ((str(path.relative_to(ROOT)), path.read_text()) for path in PAGES if path.name != "CHANGELOG.md")


def of_prose() -> Iterator[tuple[str, str]]:
    """What stands in backticks in the prose of a page; a command with its option stands there without the program, too."""
    for where, text in pages():
        for span in re.findall(r"`([^`]+)`", FENCED.sub("", text)):
            words = span.split()
            if len(words) > 1 and words[0] in COMMANDS:
                words.insert(0, "credential-agent")
            yield where, " ".join(words)


def of_consoles() -> Iterator[tuple[str, str]]:
    """What a page shows as typed."""
    yield from (
        (where, line) for where, text in pages() for _, fence in FENCED.findall(text) for line in commands(fence)
    )


@functools.cache
def of_the_program() -> tuple[tuple[str, str], ...]:
    """Every text in the program, its hints and the words of its commands among them; what it fills in is a word."""
    found = []
    for path in sorted((ROOT / "agent").rglob("*.py")):
        nodes, where = list(ast.walk(ast.parse(path.read_text()))), str(path.relative_to(ROOT))
        pieces = {id(one) for node in nodes if isinstance(node, ast.JoinedStr) for one in node.values}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                words = (str(one.value) if isinstance(one, ast.Constant) else FILLED_IN for one in node.values)
                found.append((where, "".join(words)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
                found.append((where, node.value))
    return tuple(found)


@functools.cache
def typed(program: str) -> tuple[Typed, ...]:
    """Every command of that program that anybody is told to type."""
    found = []
    for texts, whole in ((of_prose(), False), (of_consoles(), True), (of_the_program(), True)):
        for where, text in texts:
            for piece in NEXT.split(text):
                if piece.strip().startswith(f"{program} "):
                    words, more, _ = ENDS.split(piece.strip(), maxsplit=1)[0].partition(" ...")
                    found.append(Typed(where, words.strip(), whole and not more))
    return tuple(dict.fromkeys(found))


def is_placeholder(value: str) -> bool:
    return FILLED_IN in value or value.upper() == value


def refused(words: str, *, whole: bool = True) -> str | None:
    """Why the command line would refuse these words, which may leave out what it needs if they are not the whole.

    A command alone is its name. What the words say of files of this machine is not looked at.
    """
    found, rest = command(shlex.split(words)[1:])
    context = click.Context(found)
    try:
        values, left, _ = found.make_parser(context).parse_args(list(rest))
        if left and not isinstance(found, click.Group):
            return f"more than it takes: {left}"
        for param in found.params:
            value = values.get(param.name)
            given = value if isinstance(value, list | tuple) else [value] if isinstance(value, str) else []
            if rest and whole and param.required and not given:
                return f"it needs {param.opts[-1]}"
            for one in given:
                if (
                    isinstance(one, str)
                    and not is_placeholder(one)
                    and not isinstance(param.type, click.Path | click.File)
                ):
                    for choice in one.split("|"):
                        param.type.convert(choice, param, context)
    except click.UsageError as error:
        return error.format_message()
    return None


def test_every_command_that_somebody_is_told_to_type_is_parsed() -> None:
    """Its options, their values and its arguments are what the command takes, and nothing that it needs is missing."""
    told = [one for one in typed("credential-agent") if one.words.split()[1] in COMMANDS]  # the rest is prose
    assert {one.where.partition("/")[0] for one in told} >= {"README.md", "agent", "systemd", "packer"}
    wrong = [(one, why) for one in told if (why := refused(one.words, whole=one.whole)) is not None]
    assert wrong == []
    assert [one for one in typed("python -m agent") if one.words.split()[3] not in COMMANDS] == []


def test_no_hint_leaves_something_to_fill_in() -> None:
    """A text of the program that is a command is a whole one."""
    assert [one for one in of_the_program() if re.match(r"(credential-agent|systemctl) [^\n]*\.\.\.", one[1])] == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("credential-agent status --jsn", "No such option"),
        ("credential-agent seal --aws-mode kyes", "kyes"),
        ("credential-agent status now", "more than it takes"),
        ("credential-agent inspect --key KEY", "it needs"),
        ("credential-agent seal --duration soon", "soon"),
        ("credential-agent inspect --key", "requires an argument"),
    ],
)
def test_what_nobody_could_type_is_found(words: str, why: str) -> None:
    """The check of the commands sees through: an option, a value, an argument that the command does not take."""
    assert why in (refused(words) or "")


def unit_file(name: str) -> Path:
    """The file of a unit of ours, as a command names it."""
    name = re.sub(r"@.+\.", "@.", name)
    return ROOT / "systemd" / (name if "." in name else f"{name}.service")


def cannot(words: str) -> str | None:
    """Why systemctl(1) would refuse these words."""
    verb, *names = [word for word in shlex.split(words)[1:] if not word.startswith("-")]
    if names and not OF_SYSTEMD.fullmatch(verb):
        return f"{verb}: not for units whose files lie in /etc/systemd/system"
    for name in names:
        if name.startswith("credential-agent") and not re.search(r"[*]", name):
            if not (file := unit_file(name)).exists():
                return f"there is no {file.name}"
            text = file.read_text()
            if verb == "enable" and "\n[Install]\n" not in text:
                return f"{file.name} has no [Install]"
            if verb == "reload" and "\nExecReload=" not in text:
                return f"{file.name} has no ExecReload="
    return None


def test_what_systemd_is_told_to_do_with_our_units_it_can_do() -> None:
    """The unit is there, and it can be reloaded or enabled where somebody is told to do that."""
    told = typed("systemctl")
    assert len(told) > 20
    assert [(one, why) for one in told if (why := cannot(one.words)) is not None] == []


@pytest.mark.parametrize(
    "words",
    ["systemctl mask credential-agent", "systemctl restart credential-agentd", "systemctl reload credential-agent-watch",
     "systemctl enable credential-agent-gate@x.service"],
)  # fmt: skip
def test_what_systemd_could_not_do_is_found(words: str) -> None:
    """The check of the units sees through: a verb, a unit, a job that there is not."""
    assert cannot(words) is not None


def test_nothing_is_told_to_start_what_was_masked_a_moment_ago() -> None:
    """A link to /dev/null stands in the place of a unit's file: when it is gone there is no unit, so nothing follows in one line."""
    told = [one for one in (*of_prose(), *of_consoles(), *of_the_program()) if "systemctl unmask" in one[1]]
    assert told
    assert [one for one in told if re.search(r"systemctl unmask \S+( &&|;)", one[1])] == []


def test_every_script_knows_the_options_that_pages_give_it() -> None:
    """A script of `packer/` that a page names with options takes them."""
    wrong, seen = [], 0
    for where, text in (*of_prose(), *of_consoles()):
        for name, rest in re.findall(r"\b(install\.sh|payload\.sh|package\.sh)((?: [^\s;&|]+)*)", text):
            options = [word for word in rest.replace("[", "").replace("]", "").split() if word.startswith("--")]
            script = (ROOT / "packer" / name).read_text()
            seen += len(options)
            wrong += [
                (where, name, option)
                for option in options
                if not re.search(rf"^[^#\n]*{option}\b", script, re.MULTILINE)
            ]
    assert seen > 10
    assert wrong == []
