"""What commands print for programs: documents that name their schema and its version (``agent/cli/COMMANDS.md``).

Who asks for a document gets one, whatever comes of the command: where it fails before it has printed its own, the
document of the error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any, Final

import click

SCHEMAS: Final = MappingProxyType(
    {
        "config": 1,
        "doctor": 1,
        "check": 1,
        "error": 1,
        "pubkey": 1,
        "push": 1,
        "redirect-check": 1,
        "refresh": 1,
        "reload": 1,
        "status": 1,
        "wait": 1,
        "whoami": 1,
    }
)
"""The version of each command's document. It rises when a member goes or changes its meaning; new ones may come."""


class Asked:
    """Whether a document was asked for on this command line, and whether it was printed.

    Args:
        arguments: of the command line, without the program's name.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        # `exec` passes on what is not its own. A command that has no such option ends with 64, and a document.
        ours = takewhile(lambda word: word != "--", arguments) if arguments[:1] != ["exec"] else ()
        self.lacking = "--json" in ours


def documented(name: str, members: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a command, with its schema."""
    return {"schema": f"credential-agent/{name}", "schema_version": SCHEMAS[name], **members}


def tell(name: str, members: Mapping[str, Any]) -> None:
    """Print the document of the command ``name`` on standard output."""
    show(documented(name, members))


def show(document: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Print a document that has its schema already."""
    click.echo(json.dumps(document, indent=indent))
    context = click.get_current_context(silent=True)
    asked = None if context is None else context.find_object(Asked)
    if asked is not None:
        asked.lacking = False


def error_document(status: int, said: str, hint: str | None) -> dict[str, Any]:
    """The document of a command that failed before it could print its own.

    Args:
        status: with which the command ends.
        said: what went wrong, for a person.
        hint: what to do, for a person.
    """
    return documented("error", {"exit_status": status, "error": said, "hint": hint})


def json_option(command: Any) -> Any:
    """``--json``, as every command has it that prints something worth reading."""
    option = click.option("--json", "as_json", is_flag=True, help="Print a document for programs (JSON).")
    return option(command)
