"""The map for newcomers is true: what it names exists, all that there is stands on it, and its lists are the code's."""

from __future__ import annotations

import asyncio
import re
import tomllib
from pathlib import Path
from textwrap import indent

import pytest

ROOT = Path(__file__).resolve().parents[1]
AGENT = ROOT / "agent"
MAP = (AGENT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECISIONS = sorted((AGENT / "decisions").glob("[0-9]*.md"))
LAYERS = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]


def packages() -> set[str]:
    """The packages of ``agent/``, and the modules that stand beside them."""
    found = {path.parent.name for path in AGENT.glob("*/__init__.py")}
    return found | {path.stem for path in AGENT.glob("*.py") if not path.name.startswith("__")}


def section(heading: str) -> str:
    (body,) = [part for part in re.split(r"^## ", MAP, flags=re.MULTILINE) if part.startswith(heading)]
    return body


def rows(text: str) -> list[list[str]]:
    """The cells of each row of a table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def named(text: str) -> set[str]:
    """Every path that a page names, in backticks, in a diagram or as the target of a link."""
    paths = set(re.findall(r"(?<![\w/.])(?:agent|tests|systemd|packer)(?:/[a-z0-9_]+)+(?:/|\.[a-z]+)", text))
    return paths | set(re.findall(r"(?:agent|tests)/[A-Za-z_/]+\.(?:md|py|toml)", text))


def test_the_layers_are_those_that_are_checked() -> None:
    """The list of layers is the one of import-linter's contract, line by line."""
    (block,) = re.findall(r"^```text\n(cli\n.*?)^```$", MAP, re.MULTILINE | re.DOTALL)
    assert block.splitlines() == LAYERS


def test_every_package_has_its_row() -> None:
    """The table of packages names each package of ``agent/``, in the order of the layers, and none that is not there."""
    told = [row[0].strip("`") for row in rows(section("Packages"))]
    assert told == [name.strip() for layer in LAYERS for name in layer.split("|")]
    assert set(told) == packages()


def test_every_path_that_the_map_names_exists() -> None:
    """A file or a folder that the map names is there, by the whole path or beside the one named before it."""
    paths = named(MAP)
    assert len(paths) > 40
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    loose = set(re.findall(r"(?<![\w/*])[a-z0-9_]+\.py\b", MAP))
    known = {path.name for path in [*AGENT.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]}
    assert loose <= known


@pytest.mark.parametrize(
    "page", [AGENT / "README.md", *sorted((AGENT / "decisions").glob("*.md"))], ids=lambda p: p.name
)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Every relative link of the map and of the decisions names a file."""
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("way", ["The way of a bundle", "The way of a GET"])
def test_each_way_names_packages_in_code(way: str) -> None:
    """A diagram goes from file to file: each step is a module, and the files are there."""
    (diagram,) = re.findall(r"^```text\n(.*?)^```$", section(way), re.MULTILINE | re.DOTALL)
    assert len(named(diagram)) >= 10


def test_every_name_in_code_style_is_in_the_code() -> None:
    """A name that the map has in backticks (``_tree_of``, ``View``, ``fetch()``) occurs in the code or its settings."""
    words = set(re.findall(r"`(_?[A-Za-z]\w+)(?:\(\))?`", MAP))
    code = [*AGENT.rglob("*.py"), ROOT / "pyproject.toml", ROOT / "Makefile", *ROOT.glob("tests/*.py")]
    text = "\n".join(path.read_text() for path in code)
    assert len(words) > 20
    assert [word for word in sorted(words) if not re.search(rf"\b{word}\b", text)] == []


def test_the_words_of_the_glossary_are_used() -> None:
    """Each word that the glossary explains as ours occurs in the code: a word that went away goes from here too."""
    text = "\n".join(path.read_text().lower() for path in AGENT.rglob("*.py"))
    told = [word for row in rows(section("Words")) for word in re.split(r", ", row[0].replace("`", ""))]
    assert len(told) > 25
    assert [word for word in told if word.lower() not in text] == []
    assert len(told) == len(set(told))


def test_what_is_promised_is_one_of_the_words() -> None:
    """Each row of the promises names who may rely on it and where it is written."""
    for what, whom, promise, where in rows(section("What is promised")):
        assert what
        assert whom
        assert promise.startswith(("stable", "diagnostic", "by the row", "the providers'", "read by")), promise
        assert named(where) or "README.md" in where


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_says_what_why_and_what_was_rejected(path: Path) -> None:
    """Each record has its number, then Status, Decision, Why and Rejected, in this order, none of them empty."""
    title, *parts = re.split(r"^## ", path.read_text(), flags=re.MULTILINE)
    assert re.match(rf"# {path.name[:4]}: \S", title)
    heads = [part.partition("\n")[0] for part in parts]
    assert heads == ["Status", "Decision", "Why", "Rejected"]
    assert all(len(part.partition("\n")[2].strip()) > 5 for part in parts)
    status = parts[0].partition("\n")[2].strip()
    assert re.match(r"In force\.|Decided, half done\.|Replaced by \[\d{4}\]", status), status
    assert [name for name in sorted(named(path.read_text())) if not (ROOT / name).exists()] == []


def test_every_decision_is_in_the_list_that_the_map_links() -> None:
    """The list has each record once, in order, and the map leads to the list."""
    listed = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\)", (AGENT / "decisions" / "README.md").read_text(), re.MULTILINE)
    assert listed == [(path.name[:4], path.name) for path in DECISIONS]
    assert "decisions/README.md" in MAP


# -- the fakes ---------------------------------------------------------------------------------------------------------

FAKES = ROOT / "tests" / "fakes"


def test_every_fake_is_in_the_list_of_fakes() -> None:
    """The page of the fakes names each file of its folder once, and none that is not there."""
    listed = re.findall(r"^\| `([a-z0-9_]+\.[a-z]+)` \|", (FAKES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in FAKES.iterdir() if path.suffix in {".py", ".c"})


def test_fakes_share_no_codec_with_us() -> None:
    """A fake imports values of ``agent.core`` and nothing else of ours: who shares our codec shares our mistakes."""
    reasons = {
        "view.py": {
            "agent",
            "agent.daemon",
            "agent.serve",
            "agent.snapshot",
        },  # it is no fake of a service: it stands behind the real listener
        "net.py": {"agent.upstream"},  # it stands in for the way out, so it has its shape
        "wire.py": {"agent.upstream"},  # it is the real way out, with another's bytes at its end
    }
    for path in sorted(FAKES.glob("*.py")):
        imported = re.findall(r"^\s*(?:from|import) (agent(?:\.\w+)?)", path.read_text(), re.MULTILINE)
        assert set(imported) - {"agent.core"} - reasons.get(path.name, set()) == set(), path.name


def test_the_example_of_a_fake_is_one() -> None:
    """The fake that the page shows answers as the page says, over a real socket, with its faults and its diary."""
    page = (FAKES / "README.md").read_text()
    (fake, use) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    space: dict[str, object] = {}
    exec(fake + "\nasync def example():\n" + indent(use, "    "), space)
    example = space["example"]
    assert callable(example)
    asyncio.run(example())
