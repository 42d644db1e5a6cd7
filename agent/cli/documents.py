"""What commands print for programs: JSON documents that name their schema and its version (``agent/cli/JSON.md``)."""

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
        "pubkey": 1,
    }
)
"""The version of each command's document. It rises when a member goes or changes its meaning; new ones may come."""


def documented(name: str, members: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a command, with its schema."""
    return {"schema": f"credential-agent/{name}", "schema_version": SCHEMAS[name], **members}


def tell(name: str, members: Mapping[str, Any]) -> None:
    """Print it."""
    click.echo(json.dumps(documented(name, members), indent=2))


def json_option(command: Any) -> Any:
    """``--json``, as every command has it that prints something worth reading."""
    return click.option("--json", "as_json", is_flag=True, help="A document for programs (agent/cli/JSON.md).")(command)
