"""The README is true: what is made is up to date, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from click.testing import CliRunner

from agent import config
from agent.cli import cli
from agent.core.counters import Counters
from tests import readme

ROOT = readme.README.parent
TEXT = readme.README.read_text()


def test_the_made_parts_are_up_to_date() -> None:
    """The configuration table is what `make readme` would write."""
    assert readme.made(TEXT) == TEXT, "run `make readme`"


def test_every_configuration_key_is_explained() -> None:
    """No key is without a meaning, so the table has no empty cell in its last column."""
    rows = [row for row in readme.configuration().splitlines()[2:] if not row.startswith("| **")]

    assert [row for row in rows if row.endswith("|  |")] == []


def test_every_section_is_in_the_table() -> None:
    """No section of the configuration is left out of the table, so that a new one cannot be forgotten."""

    def sections(kind: object) -> set[type]:
        found: set[type] = set()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            found.add(kind)
            for field in msgspec.structs.fields(kind):
                found |= sections(field.type)
        for part in get_args(kind):
            found |= sections(part)
        return found

    explained = {struct for _, struct in readme._SECTIONS}

    assert sections(config.Config) - {config.Config} == explained


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT))))
def test_every_link_leads_somewhere(link: str) -> None:
    """Every relative link names a file of the repository."""
    assert (ROOT / link).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|\$ )make ([a-z-]+)", TEXT))))
def test_every_make_target_exists(target: str) -> None:
    """Every `make` target that the README names is in the Makefile."""
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"credential-agent ([a-z-]+)", TEXT)) - {"is"}))
def test_every_command_exists(command: str) -> None:
    """Every sub-command that the README names has a help text."""
    result = CliRunner().invoke(cli, [command, "--help"])

    assert result.exit_code == 0, result.output


def test_every_option_exists() -> None:
    """Every long option in the README is one of some command."""
    known = ""
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        known += CliRunner().invoke(cli, [name, "--help"]).output
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) - {"--unix-socket"}

    assert [option for option in sorted(options) if option not in known] == []


def test_the_example_configuration_is_accepted() -> None:
    """The TOML in the README decodes."""
    examples = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)

    assert examples
    for example in examples:
        assert config.parse(example, origin="README.md").keys


def test_every_metric_exists() -> None:
    """Every metric that the README tells to alert on is one that is exported."""
    source = (ROOT / "agent" / "report.py").read_text()
    names = {re.sub(r"_total$", "", name) for name in re.findall(r"credential_agent_([a-z_]+)", TEXT)}

    assert [name for name in sorted(names) if f'"{name}"' not in source] == []
    assert Counters().accepted == 0


def test_every_log_event_exists() -> None:
    """Every log event that the README names is one that the code says."""
    code = "".join(path.read_text() for path in Path(ROOT / "agent").rglob("*.py"))
    block = TEXT[TEXT.index("Log events are") : TEXT.index("JSON off a terminal")]
    events = re.findall(r"`([a-z_]+\.[a-z_]+)`", block)

    assert len(events) > 5
    assert [event for event in events if f'"{event}"' not in code] == []
