"""What is documented works: every block of every page is run here, or stands on a list that says who runs it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from agent import config
from agent.cli import _COMMANDS, cli
from tests.fakes.sts import FakeSts
from tests.system.harness import Agent
from tests.unit.sender.support import serving

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in {"build", "node_modules", "target"} for part in path.relative_to(ROOT).parts)
)  # fmt: skip


class Block(NamedTuple):
    page: str
    language: str
    text: str


def blocks() -> list[Block]:
    """Every fenced block of every page."""
    found = []
    for path in PAGES:
        fences = re.finditer(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
        found += [Block(str(path.relative_to(ROOT)), fence[1] or "none", fence[2]) for fence in fences]
    return found


HERE = "tests/test_docs.py"

# (page, language, words in the block): which test runs it. Console lines are also read option by option below.
COVERED = (
    ("README.md", "console", "$ make demo", "tests/system/test_demo.py"),
    ("README.md", "text", "every step went as said", "tests/system/test_demo.py"),
    ("README.md", "console", "$ make test", "Makefile"),  # this very run
    ("README.md", "text", "laptop or control plane", HERE),  # a picture
    ("README.md", "console", "credential-agent seal", HERE),
    ("README.md", "toml", "[[keys]]", HERE),
    ("README.md", "console", "$ credential-agent status", HERE),
    ("README.md", "console", "curl --unix-socket", "tests/system/test_daemon.py"),  # the same request, without curl
    ("systemd/README.md", "console", "packer/install.sh", "tests/system/test_boot.py"),
    ("systemd/README.md", "ini", "[Unit]", HERE),
    ("systemd/README.md", "console", "credential-agent redirect", "tests/system/test_boot.py"),
    (
        "systemd/README.md",
        "console",
        "docker run --env-file",
        "tests/system/test_boot.py",
    ),  # through the rules, no engine
    ("systemd/README.md", "console", "systemctl", "tests/system/test_boot.py"),
    ("systemd/README.md", "console", "curl", "tests/system/test_boot.py"),
    ("systemd/README.md", "toml", "", HERE),
    ("packer/README.md", "console", "packer/payload.sh", "tests/system/test_packer.py"),
    ("packer/README.md", "console", "packer build", "tests/system/test_packer.py"),  # validated: no cloud is reached
    ("packer/README.md", "console", "packer/seed.sh", "tests/system/test_packer.py"),
    ("packer/README.md", "toml", "[[sources]]", HERE),
    ("packer/README.md", "console", "# make image", "tests/system/virtual.py"),
    ("agent/README.md", "text", "", "tests/test_map.py"),  # the layers and two pictures
    ("agent/sources/README.md", "none", "BEGIN CREDENTIAL BUNDLE", "tests/unit/wire/test_userdata.py"),
    ("agent/sources/README.md", "yaml", "BEGIN CREDENTIAL BUNDLE", "tests/unit/wire/test_userdata.py"),
    ("agent/bundle/FORMAT.md", "", "", "tests/unit/bundle/test_format.py"),
    ("agent/bundle/FORMAT.md", "js", "jose.CompactSign", "tests/conformance/test_jose_peers.py"),
    ("tests/fakes/README.md", "python", "", "tests/test_map.py"),
    ("tests/", "", "", HERE),  # commands for developers: read below, module by module and target by target
)


@pytest.mark.parametrize(
    "block", blocks(), ids=lambda block: f"{block.page}:{block.language}:{block.text[:20].strip()}"
)
def test_every_block_is_run_by_somebody(block: Block) -> None:
    """No example stands in a page that no test runs, and the test that is named exists."""
    takers = [
        test
        for page, language, words, test in COVERED
        if block.page.startswith(page) and language in ("", block.language) and words in block.text
    ]
    assert takers, f"{block.page}: no test runs\n{block.text}"
    assert all((ROOT / test).exists() for test in takers)


# Commands ---------------------------------------------------------------------------------------------------------------

SAID = re.compile(r"credential-agent (?P<words>[a-z][a-z-]*(?:[ ]+[^\s`'\"|;#()<>\\]+)*)")


def texts() -> list[tuple[str, str]]:
    """Every text that tells somebody to call us: pages, code with its hints, scripts, units."""
    found = [(str(path.relative_to(ROOT)), path.read_text()) for path in PAGES]
    for pattern in ("agent/**/*.py", "packer/*", "systemd/**/*"):
        files = [path for path in ROOT.glob(pattern) if path.is_file() and path.suffix != ".md"]
        found += [(str(path.relative_to(ROOT)), path.read_text()) for path in files]
    return found


def command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words begin with, and the rest of them."""
    found: click.Command = cli
    while words and isinstance(found, click.Group):
        inner = found.get_command(click.Context(found), words[0])
        if inner is None:
            break
        found, words = inner, words[1:]
    return found, words


def test_every_command_and_option_that_is_named_exists() -> None:
    """A hint, a page or a script that names `credential-agent X --flag` names what there is."""
    seen, wrong = 0, []
    for name, text in texts():
        for match in SAID.finditer(text):
            words = match["words"].split()
            if words[0] not in _COMMANDS:
                continue  # prose: "credential-agent is", a unit's name
            found, rest = command(words)
            known = {option for param in found.params for option in (*param.opts, *param.secondary_opts)} | {"--help"}
            seen += 1
            for word in rest:
                if word == "--":
                    break
                if re.match(r"--[a-z]", word) and word.partition("=")[0].rstrip(".,:") not in known:
                    wrong.append(f"{name}: credential-agent {match['words']}: {word}")
    assert seen > 40
    assert wrong == []


def test_commands_in_backticks_exist() -> None:
    """A page that writes `credential-agent X` names a command."""
    wrong = [
        f"{name}: {word}"
        for name, text in texts()
        if name.endswith(".md")
        for word in re.findall(r"[`$#] ?credential-agent ([a-z][a-z-]+)", text)
        if word not in _COMMANDS
    ]
    assert wrong == []


def test_files_and_targets_that_pages_name_exist() -> None:
    """A path of the repository, a `make` target, a `python -m` module in a page is one that exists."""
    makefile = (ROOT / "Makefile").read_text()
    wrong = []
    for path in PAGES:
        text = path.read_text()
        named = re.findall(r"`((?:agent|systemd|packer|tests|requirements)/[A-Za-z0-9_./-]+)`", text)
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in named if not (ROOT / name).exists()]
        wrong += [
            f"{path.relative_to(ROOT)}: make {target}"
            for target in re.findall(r"(?:`|\$ |# )make ([a-z]+)\b", text)
            if not re.search(rf"^{target}:", makefile, re.MULTILINE)
        ]
        for module in re.findall(r"python -m (tests[a-z_.]*)", text):
            place = ROOT / module.replace(".", "/")
            if not place.with_suffix(".py").exists() and not (place / "__main__.py").exists():
                wrong.append(f"{path.relative_to(ROOT)}: python -m {module}")
    assert wrong == []


# Configurations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "toml"], ids=lambda block: block.page)
def test_every_configuration_is_accepted(block: Block) -> None:
    """Every TOML block is a configuration, or a piece of one."""
    config.parse(block.text, origin=block.page)


def test_the_lines_of_a_worker_unit_are_those_of_the_example() -> None:
    """What the page shows of a worker's unit is in the example that it points to."""
    (block,) = [b for b in blocks() if b.language == "ini"]
    example: dict[str, set[str]] = {}
    for line in (ROOT / "systemd/examples/dask-worker.service").read_text().splitlines():
        key, _, value = line.partition("=")
        example.setdefault(key, set()).update(value.split())
    for line in block.text.splitlines():
        key, _, value = line.partition("=")
        assert set(value.split()) <= example.get(key, set()), line


def first(page: str, language: str, words: str) -> str:
    return next(b.text for b in blocks() if b.page == page and b.language == language and words in b.text)


def commands(text: str) -> list[str]:
    """The lines of a console block that a person types."""
    joined = text.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith(("$ ", "# "))]


def test_seal_and_configure_fit_each_other(tmp_path: Path) -> None:
    """README word by word: what "Seal" makes, put where "Configure" says, is accepted and served."""
    sts = FakeSts(lambda: datetime.now(UTC))
    key, secret = sts.user()
    desk, etc, run = tmp_path / "desk", tmp_path / "etc", tmp_path / "run"
    for directory in (desk, etc / "signers", run, tmp_path / "bin"):
        directory.mkdir(parents=True)
    program = tmp_path / "bin" / "credential-agent"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)} -m agent "$@"\n'
    )
    program.chmod(0o755)
    with serving(sts) as url:
        environ = {
            "PATH": f"{program.parent}:{os.defpath}", "HOME": str(desk), "AWS_ENDPOINT_URL_STS": url,
            "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": "eu-west-1",
        }  # fmt: skip
        for line in commands(first("README.md", "console", "credential-agent seal")):
            subprocess.run(["sh", "-c", line], cwd=desk, env=environ, check=True, capture_output=True)
    page = " ".join((ROOT / "README.md").read_text().split())
    options = re.search(r"with `(--key [^`]+)` also what is inside", page)
    assert options, "README.md does not say how one looks inside"
    seen = subprocess.run(
        ["sh", "-c", f"credential-agent inspect bundle.jose {options[1]}"],
        cwd=desk, env=environ, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert '"issuer": "laptop:' in seen
    assert secret not in seen
    settings = first("README.md", "toml", "[[keys]]").replace("/etc/credential-agent", str(etc))
    told = config.parse(settings, origin="README.md")
    for named in (told.keys[0].path, told.signers[0].key, told.sources[0].path):  # type: ignore[union-attr]
        Path(named).write_bytes((desk / Path(named).name).read_bytes())
    Path(told.keys[0].path).chmod(0o600)  # type: ignore[union-attr]
    (etc / "config.toml").write_text(
        settings
        + f'[listen]\nhttp = ["127.0.0.1:0"]\ncontrol = "{run}/control"\n'
        + f'[environment]\nfile = "{run}/env"\nshell_file = "{run}/env.sh"\ntoken_file = "{run}/token"\n'
        + (f'container_file = "{run}/container.env"\n' if hasattr(config.Environment(), "container_file") else "")
        + f'[state]\ndirectory = "{run}"\n[upstream]\nec2 = "off"\ngce = "off"\n[log]\nformat = "json"\n'
    )
    with Agent(etc / "config.toml") as agent:
        agent.wait_for("bundle.accepted")
        assert agent.status()["clouds"]["aws"]["origin"] == "bundle"
        said = subprocess.run(
            ["sh", "-c", commands(first("README.md", "console", "$ credential-agent status"))[0] + f" --config {etc}/config.toml"],
            env=environ, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "from the bundle" in said.stdout
