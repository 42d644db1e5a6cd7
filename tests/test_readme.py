"""The README and the pages beside it are true: what is made is up to date, and what they name exists."""

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
from tests.test_docs import PAGES as PATHS

ROOT = readme.ROOT
PAGES = (
    "README.md",
    "agent/CONFIGURATION.md",
    "systemd/OPERATIONS.md",
    "agent/EVENTS.md",
    "systemd/README.md",
    "packer/README.md",
    "packer/container/README.md",
    "agent/SECURITY.md",
)
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
TEXT = "\n".join(TEXTS.values())


def test_the_made_parts_are_up_to_date() -> None:
    """The configuration table is what `make readme` would write."""
    page = readme.PAGE.read_text()
    assert readme.made(page) == page, "run `make readme`"


def test_the_readme_is_for_a_newcomer() -> None:
    """It stays within ten minutes of reading: what is looked up stands on other pages."""
    assert len(TEXTS["README.md"].splitlines()) < 235
    assert len([line for line in TEXTS["README.md"].splitlines() if line.startswith("| `")]) < 10


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


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT).as_posix() for path in PATHS))
def test_every_link_leads_somewhere(page: str) -> None:
    """Every relative link of every page names a file of the repository."""
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    """Whoever reads on finds each page: by a link or by its path, from one page to the next."""
    seen, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page in seen:
            continue
        seen.add(page)
        text = page.read_text()
        named = [page.parent / link for link in re.findall(r"\]\(([^)#:]+\.md)\)", text)]
        named += [ROOT / name for name in re.findall(r"`([\w./-]+\.md)`", text)]
        named += [(ROOT / name) / "README.md" for name in re.findall(r"`((?:tests|agent)/[\w/-]+)/?`", text)]
        named += [page.parent / name / "README.md" for name in re.findall(r"^\| `([\w/]+)/` \|", text, re.MULTILINE)]
        left += [path.resolve() for path in named if path.exists()]
    assert sorted(str(path.relative_to(ROOT)) for path in set(PATHS) - seen) == []


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|\$ )make ([a-z-]+)", TEXT))))
def test_every_make_target_exists(target: str) -> None:
    """Every `make` target that the README names is in the Makefile."""
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"[`$#] ?credential-agent ([a-z-]+)", TEXT))))
def test_every_command_exists(command: str) -> None:
    """Every sub-command that the pages name has a help text."""
    result = CliRunner().invoke(cli, [command, "--help"])

    assert result.exit_code == 0, result.output


def test_every_option_exists() -> None:
    """Every long option in the README is one of some command, or of the script beside which it stands."""
    known = ""
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        known += CliRunner().invoke(cli, [name, "--help"]).output
    known += (ROOT / "packer/install.sh").read_text()
    text = TEXTS["README.md"] + TEXTS["agent/CONFIGURATION.md"] + TEXTS["systemd/OPERATIONS.md"]
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--unix-socket"}

    assert [option for option in sorted(options) if option not in known] == []


def test_the_example_configuration_is_accepted() -> None:
    """The TOML in the README decodes."""
    examples = re.findall(r"```toml\n(.*?)```", TEXTS["README.md"], re.DOTALL)

    assert examples
    for example in examples:
        assert config.parse(example, origin="README.md").keys


def test_every_metric_exists() -> None:
    """Every metric that the pages tell to alert on is one that is exported."""
    source = (ROOT / "agent" / "report" / "metrics.py").read_text()
    names = {
        re.sub(r"_total$", "", name)
        for name in re.findall(r"credential_agent_([a-z_]+)", TEXTS["systemd/OPERATIONS.md"])
    }

    assert [name for name in sorted(names) if f'"{name}"' not in source] == []
    assert Counters().accepted == 0


def test_every_log_event_exists() -> None:
    """Every log event that the page names is one that the code says."""
    code = "".join(path.read_text() for path in Path(ROOT / "agent").rglob("*.py"))
    text = TEXTS["systemd/OPERATIONS.md"]
    block = text[text.index("Log events are") : text.index("JSON off a terminal")]
    events = re.findall(r"`([a-z_]+\.[a-z_]+)`", block)

    assert len(events) > 5
    assert [event for event in events if f'"{event}"' not in code] == []
