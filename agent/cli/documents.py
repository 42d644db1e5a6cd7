"""What commands print for programs: documents that name their schema and its version (``agent/cli/COMMANDS.md``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import click

SCHEMAS: Final = MappingProxyType(
    {
        "config": 1,
        "doctor": 1,
        "check": 1,
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


def documented(name: str, members: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a command, with its schema."""
    return {"schema": f"credential-agent/{name}", "schema_version": SCHEMAS[name], **members}


def tell(name: str, members: Mapping[str, Any]) -> None:
    """Print the document of the command ``name`` on standard output."""
    click.echo(json.dumps(documented(name, members), indent=2))


def json_option(command: Any) -> Any:
    """``--json``, as every command has it that prints something worth reading."""
    option = click.option("--json", "as_json", is_flag=True, help="Print a document for programs (JSON).")
    return option(command)
