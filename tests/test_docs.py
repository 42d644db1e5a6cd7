"""What is documented works: every block of every page is run here, or stands on a list that says who runs it."""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import yaml

from agent import config
from agent.cli import cli
from agent.doctor.checks import CHECKS
from tests.fakes.sts import FakeSts
from tests.system.harness import Agent
from tests.unit.sender.support import serving

ROOT = Path(__file__).resolve().parents[1]
MADE = {
    "build",
    "node_modules",
    "target",
    "site-packages",
}  # of the last a reader of README.md has one, beside the pages
PAGES = sorted(
    path for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in MADE for part in path.relative_to(ROOT).parts)
)  # fmt: skip


class Block(NamedTuple):
    page: str
    language: str
    text: str


@functools.cache
def blocks() -> list[Block]:
    """Every fenced block of every page."""
    found = []
    for path in PAGES:
        fences = re.finditer(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
        found += [Block(str(path.relative_to(ROOT)), fence[1] or "none", fence[2]) for fence in fences]
    return found


def commands(text: str) -> list[str]:
    """The lines of a console block that a person types."""
    joined = text.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith(("$ ", "# "))]


HERE = "tests/test_docs.py::"
BOOT = "tests/system/test_boot.py::TestEc2Worker::"
FIREWALL = "tests/system/test_hardened.py::"
PACKER = "tests/system/test_packer.py::"
SIGNING = "tests/system/test_signing.py::"
CONTAINER = "tests/system/test_container_recipe.py::"


class Row(NamedTuple):
    """Who runs an example.

    Attributes:
        page: where it stands, or the beginning of that.
        words: in the command, or in the block that is no console's.
        test: the id of the test that runs it; or, where none can, a sentence that says why.
        runs: what must stand in that test or in what it uses, its constants and helpers included, as it is run there.
    """

    page: str
    words: str
    test: str
    runs: str = ""


# The first row that fits counts. A console block is evaluated command by command.
COVERED = (
    Row("README.md", "forward.dask", "tests/system/test_demo.py::test_every_step_goes_as_said", '"tests.demo"'),
    Row("README.md", "make demo", "tests/system/test_demo.py::test_every_step_goes_as_said", '"tests.demo"'),
    Row(
        "README.md",
        "every step went as said",
        "tests/system/test_demo.py::test_every_step_goes_as_said",
        "went as said",
    ),
    Row("README.md", "make test", "what runs this very test"),
    Row("README.md", "laptop or control plane", "a picture"),
    Row(
        "agent/README.md", "controller | report", "tests/test_map.py::test_the_layers_are_those_that_are_checked", "MAP"
    ),
    Row("agent/README.md", "", "tests/test_map.py::test_every_path_that_the_map_names_exists", "MAP"),  # two pictures
    Row("tests/fakes/README.md", "Greeter", "tests/test_map.py::test_the_example_of_a_fake_is_one", "README.md"),
    Row(
        "README.md",
        "packer/install.sh",
        "tests/system/test_install.py::test_it_installs_where_nothing_runs",
        '"/payload/install.sh"',
    ),
    *(
        Row("README.md", words, f"{HERE}test_the_readme_word_by_word", f'"{section}"')
        for section, words in (
            ("Seal an identity", "credential-agent keygen"),
            ("Seal an identity", "credential-agent seal"),
            ("Configure", "[[keys]]"),
            ("Configure", "worker.jwk /etc"),
            ("Configure", "sender.pub.jwk /etc"),
            ("Configure", "credential-agent check"),
            ("Configure", "systemctl restart credential-agent"),
            ("Deliver", "bundle.jose /etc"),
            ("Deliver", "mv /etc"),
            ("Deliver", "credential-agent wait --bundle"),
            ("Deliver", "credential-agent status"),
        )
    ),
    *(
        Row("systemd/OPERATIONS.md", words, f"{HERE}test_the_readme_word_by_word", '"Change a key"')
        for words in ("worker-2", "credential-agent check", "systemctl reload credential-agent")
    ),
    Row("systemd/OPERATIONS.md", "curl", f"{HERE}test_the_readme_word_by_word", '"systemd/OPERATIONS.md"'),
    Row(
        "systemd/README.md",
        "uninstall",
        "tests/system/test_install.py::test_purge_leaves_no_group_and_no_file",
        '"--purge"',
    ),
    Row(
        "systemd/README.md",
        "packer/install.sh --worker",
        "tests/system/test_install.py::test_it_installs_where_nothing_runs",
        '"--worker"',
    ),
    Row(
        "systemd/README.md",
        "docker run",
        "no engine is here; `test_container_clients` gives clients the same file, through the rules",
    ),
    *(
        Row("systemd/README.md", words, f"{BOOT}test_the_commands_of_the_pages_work", "systemd/README.md")
        for words in ("credential-agent ", "systemctl status", "journalctl")
    ),
    *(
        Row("systemd/README.md", words, f"{FIREWALL}test_a_firewall_beside_us_opens_nothing", words)
        for words in ("firewall-cmd --permanent", "ufw allow in on docker0")
    ),
    Row(
        "systemd/README.md",
        "ufw allow out to",
        "tests/system/test_interception.py::test_a_firewall_that_filters_what_goes_out_needs_the_pages_rule",
        "ufw allow out to",
    ),
    Row(
        "systemd/README.md",
        "[Unit]",
        f"{HERE}test_the_lines_of_a_worker_unit_are_those_of_the_example",
        "dask-worker.service",
    ),
    Row("systemd/monitoring/README.md", "[metrics]", f"{HERE}test_every_configuration_is_accepted", "config.parse"),
    Row("systemd/monitoring/README.md", "", f"{BOOT}test_a_scraper_is_let_in_as_the_page_says", "monitoring/README.md"),
    Row(
        "packer/README.md",
        "payload.sh",
        "tests/system/test_install.py::test_it_installs_where_nothing_runs",
        '"packer/payload.sh"',
    ),
    Row("packer/README.md", "packer init", "it fetches Packer's plugins, and there is no network in a test"),
    Row(
        "packer/README.md",
        "packer build",
        f"{PACKER}TestPacker::test_the_builds_of_the_page_are_valid",
        '"packer/README.md"',
    ),
    Row("packer/README.md", "packer/seed.sh", "tests/system/virtual.py::build", '"seed.sh"'),
    Row("packer/README.md", "BOOT_SUITE=", "it boots another release, for ten minutes: by hand"),
    Row("packer/README.md", "SIGNING_KEY=", f"{SIGNING}signed", "SIGNING_KEY="),
    *(
        Row("packer/README.md", words, f"{SIGNING}test_a_repository_is_its_makers", "### Signed")
        for words in ("apt-ftparchive", "gpg ", "createrepo_c", "signed-by=")
    ),
    Row("packer/README.md", "apt-get update", f"{SIGNING}test_a_repository_is_its_makers", '"download"'),
    Row(
        "packer/README.md",
        "make packages",
        "tests/system/test_packages.py::test_one_source_makes_the_same_bytes",
        "package.sh",
    ),
    Row("packer/README.md", "make image", "tests/system/virtual.py::main", "build("),
    Row("packer/README.md", "[[launch_signers]]", f"{HERE}test_every_configuration_is_accepted", "config.parse"),
    Row(
        "agent/sources/README.md",
        "credential-agent-signer",
        "tests/unit/wire/test_signers.py::test_a_line_is_found_in_every_carrier",
        "find_signers",
    ),
    Row("packer/README.md", "[[sources]]", f"{HERE}test_every_configuration_is_accepted", "config.parse"),
    Row(
        "packer/README.md", "[upstream]", "tests/system/test_install.py::test_an_image_is_made_as_the_page_says", "toml"
    ),
    Row(
        "packer/README.md",
        "/mnt/image",
        "tests/system/test_install.py::test_an_image_is_made_as_the_page_says",
        '"/mnt/image"',
    ),
    *(
        Row("packer/README.md", words, f"{HERE}test_what_other_tools_are_told_to_run_is_there", "install.sh")
        for words in ("ansible.builtin", "#cloud-config")
    ),
    Row("packer/container/README.md", "payload.sh", f"{CONTAINER}image", "m.payload()"),
    Row(
        "packer/container/README.md",
        "docker ",
        "no engine is here; `tests/system/engine.py` carries out the files that the commands name",
    ),
    Row("packer/container/README.md", "install ", f"{CONTAINER}site", 'page("install")'),
    Row("packer/container/README.md", "mv site", f"{CONTAINER}deliver", 'page("mv")'),
    Row("agent/SECURITY.md", "--withdraw", f"{HERE}test_the_readme_word_by_word", '"agent/SECURITY.md"'),
    Row(
        "agent/sources/README.md",
        "#cloud-config",
        "tests/unit/wire/test_userdata.py::test_cloud_init_sees_nothing_in_what_we_write",
        "runcmd: [date]",
    ),
    Row(
        "agent/sources/README.md",
        "BEGIN CREDENTIAL",
        "tests/unit/wire/test_userdata.py::test_armour_is_found_commented_out_and_indented",
        "extract(",
    ),
    Row(
        "agent/bundle/FORMAT.md",
        "jose.CompactSign",
        "tests/conformance/test_jose_peers.py::test_a_bundle_made_elsewhere_opens_for_each_of_its_recipients",
        "panva",
    ),
    Row(
        "agent/bundle/FORMAT.md",
        '"grants"',
        "tests/unit/bundle/test_format.py::test_the_example_of_the_content_is_the_content",
        "FORMAT.md",
    ),
    Row(
        "agent/enrol/PROTOCOL.md",
        '"evidence"',
        "tests/unit/enrol/test_message.py::test_the_example_of_the_page_has_every_member",
        "PROTOCOL.md",
    ),
    Row(
        "agent/enrol/PROTOCOL.md",
        '"clouds"',
        "tests/system/test_courier.py::test_a_worker_enrols_and_is_handed_a_bundle",
        "PROTOCOL.md",
    ),
    *(
        Row(
            "agent/bundle/FORMAT.md",
            words,
            "tests/unit/bundle/test_format.py::test_what_a_producer_is_told_to_write_is_accepted",
            "exec(",
        )
        for words in ("from joserfc", "from jwcrypto")
    ),
    Row("agent/bundle/FORMAT.md", "", "tests/unit/bundle/test_format.py::test_the_examples_open", "FORMAT.md"),
    Row(
        "tests/", "", f"{HERE}test_files_and_targets_that_pages_name_exist", "python -m"
    ),  # for developers: read by name
)


@functools.cache
def module(path: Path) -> dict[str, ast.stmt]:
    """What a module defines at its top, by name; the tests of a class as `Class::test`."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found[node.name] = node
            inner = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{node.name}::{one.name}": one for one in inner if isinstance(one, ast.FunctionDef)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
            found |= {alias.asname or alias.name: node for alias in node.names}
    return found


@functools.cache
def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def reach(path: Path, name: str, seen: set[tuple[Path, str]]) -> str:
    """The source of a test, and of the helpers, fixtures and constants that it uses, in its module and in others of ours."""
    defined = module(path)
    if name not in defined or (path, name) in seen:
        return ""
    seen.add((path, name))
    node = defined[name]
    if isinstance(node, ast.ImportFrom):
        (alias,) = [alias for alias in node.names if (alias.asname or alias.name) == name]
        there = ROOT / (node.module or "").replace(".", "/")
        if (whole := (there / alias.name).with_suffix(".py")).exists():
            return "".join(reach(whole, one, seen) for one in module(whole) if "::" not in one)
        return reach(there.with_suffix(".py"), alias.name, seen)
    text = "\n".join(lines(path)[node.lineno - 1 : node.end_lineno])
    used = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    used |= {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}
    return "\n".join([text, *(reach(path, one, seen) for one in sorted(used))])


@functools.cache
def examples() -> list[tuple[str, str]]:
    """Every example with its page: each command of a console, and each other block as a whole."""
    found = []
    for block in blocks():
        texts = commands(block.text) if block.language == "console" else [block.text]
        found += [(block.page, text) for text in texts]
    return found


@pytest.mark.parametrize(("page", "example"), examples(), ids=lambda text: text[:30].strip())
def test_every_example_is_run_by_somebody(page: str, example: str) -> None:
    """No example stands in a page that no test runs: the test that is named is there, and runs just that."""
    row = next((row for row in COVERED if page.startswith(row.page) and row.words in example), None)
    assert row is not None, f"{page}: no test runs\n{example}"
    path, _, name = row.test.partition("::")
    if not name:
        assert " " in row.test, f"{row}: a reason is a sentence"
        return
    assert name in module(ROOT / path), f"{path} has no {name}"
    assert row.runs in reach(ROOT / path, name, set()), f"{row.test} does not run {row.runs}"


def test_a_row_of_which_no_test_runs_anything_is_found() -> None:
    """The check of the rows sees through: a word that stands elsewhere in the module is not in a test's reach."""
    here = Path(__file__)
    assert "sts.user()" in reach(here, "test_the_readme_word_by_word", set())
    assert "sts.user()" not in reach(here, "test_commands_in_backticks_exist", set())
    assert "class Agent" in reach(here, "test_the_readme_word_by_word", set())


@pytest.mark.parametrize("row", COVERED, ids=lambda row: f"{row.page}:{row.words}")
def test_no_row_is_left_over(row: Row) -> None:
    """A row whose example is gone goes too."""
    assert any(page.startswith(row.page) and row.words in example for page, example in examples())


def test_each_proof_of_the_security_page_is_a_test() -> None:
    """What holds against somebody is held by a test that is there: a file with tests, or one of them by its name."""
    page = (ROOT / "agent/SECURITY.md").read_text().partition("## Who attacks, what holds")[2].partition("\n## ")[0]
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    wrong = [row for row in rows if not re.search(r"`tests/[\w/]+\.py", row)]
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::([\w:]+))?`", page):
        if not (ROOT / path).exists() or (name and name not in module(ROOT / path)):
            wrong.append(f"{path}::{name}")
    assert len(rows) > 20
    assert wrong == []


def test_each_check_of_doctor_has_its_paragraph() -> None:
    """Whoever reads a word of doctor's finds it on the operator's page, and each symptom leads to words that are there."""
    page = (ROOT / "systemd/OPERATIONS.md").read_text()
    told = page.partition("\n## What each check finds\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", told, re.MULTILINE) == list(CHECKS)
    linked = re.findall(r"\[`(\w+)`\]\(#(\w+)\)", page)
    assert {word for word, _ in linked} <= CHECKS.keys()
    assert [word for word, anchor in linked if word != anchor] == []


def test_what_waits_for_a_bundle_is_started_when_there_is_one() -> None:
    """The page of the container puts a bundle in place before it starts what does not start without one."""
    page = (ROOT / "packer/container/README.md").read_text()
    assert page.index(" site/bundle/bundle.jose\n") < page.index(" up --detach\n")


def test_what_other_tools_are_told_to_run_is_there() -> None:
    """Examples for other tools are YAML, and give the install script no option that it does not know."""
    script = (ROOT / "packer/install.sh").read_text()
    given = []
    for block in blocks():
        if block.language == "yaml":
            told = yaml.safe_load(block.text)
            tasks = told if isinstance(told, list) else [{"argv": line} for line in told["runcmd"]]
            argvs = [
                one["argv"]
                for task in tasks
                for one in (task, *task.values())
                if isinstance(one, dict) and "argv" in one
            ]
            given += [
                word for argv in argvs if argv[0].endswith("install.sh") for word in argv if word.startswith("--")
            ]
    assert given
    assert [option for option in given if f"#   {option} " not in script] == []


# Commands ---------------------------------------------------------------------------------------------------------------

COMMANDS = cli.list_commands(click.Context(cli))
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
            if words[0] not in COMMANDS:
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
        if word not in COMMANDS
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
        for module in re.findall(r"python -m ((?:tests|agent)[a-z_.]*)", text):
            place = ROOT / module.replace(".", "/")
            if not place.with_suffix(".py").exists() and not (place / "__main__.py").exists():
                wrong.append(f"{path.relative_to(ROOT)}: python -m {module}")
    assert wrong == []


# Configurations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "toml"], ids=lambda block: block.page)
def test_every_configuration_is_accepted(block: Block) -> None:
    """Every TOML block is a configuration, or a piece of one."""
    config.parse(block.text, origin=block.page)


def test_no_example_waits_for_what_nobody_can_have_sealed() -> None:
    """User-data is written before the machine boots: no page shows it as the way to a key that is made at boot only."""
    for block in blocks():
        if block.language == "toml":
            found = config.parse(block.text, origin=block.page)
            before_boot = any(isinstance(source, config.Ec2UserDataEntry) for source in found.sources)
            made_at_boot = found.keys and all(isinstance(key, config.EphemeralKey) for key in found.keys)
            assert not (before_boot and made_at_boot), block


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


def worker_units() -> dict[str, str]:
    """Every unit of a worker that a page or an example shows, by where it stands."""
    files = {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "systemd/examples").iterdir())}
    shown = {f"{b.page}: {b.text.splitlines()[0]}": b.text for b in blocks() if "EnvironmentFile=" in b.text}
    return {where: text for where, text in {**files, **shown}.items() if "Slice=credential-agent-workers.slice" in text}


def test_every_example_of_a_worker_begins_with_the_right_identity() -> None:
    """After the agent is ready, the grace included, and when a bundle's identity is served: not with the machine's."""
    units = worker_units()
    assert len(units) >= 2
    for where, text in units.items():
        after = {word for line in re.findall(r"^After=(.*)$", text, re.MULTILINE) for word in line.split()}
        assert "credential-agent.target" in after, where
        assert re.search(r"^Wants=.*credential-agent\.target", text, re.MULTILINE), where
        waits = re.search(r"^ExecStartPre=\S+/credential-agent wait --bundle --timeout (\d+)$", text, re.MULTILINE)
        assert waits, where
        limit = re.search(r"^TimeoutStartSec=(\d+)s$", text, re.MULTILINE)
        assert limit, where
        assert int(limit[1]) > int(waits[1]), f"{where}: systemd would end the wait, and its reason would not be told"


def test_whoever_orders_after_the_agent_waits_for_its_grace() -> None:
    """The target that workers order themselves after is there when the agent has said that it is ready, and no sooner."""
    target = (ROOT / "systemd/credential-agent.target").read_text()
    assert re.search(r"^After=.*credential-agent\.service", target, re.MULTILINE)
    assert re.search(r"^Type=notify$", (ROOT / "systemd/credential-agent.service").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "heading", "words"),
    [
        (
            "tests/matrix/README.md",
            "Who is not in it, and cannot be led by variables",
            "Ruby, s3cmd, rust-s3, minio-js, s3fs-fuse, googleauth, google-auth-library 5, boto 2, IMDSv1, the redirect",
        ),
        (
            "systemd/README.md",
            "Containers",
            "Docker, Podman, nerdctl, LXD, libvirt, --network host, slirp4netns, pasta, gvisor-tap-vsock, macvlan, ipvlan",
        ),
        ("README.md", "Seal an identity", "20 minutes before its end"),
    ],
    ids=["clients", "containers", "successor"],
)
def test_what_the_tests_cannot_run_is_said(page: str, heading: str, words: str) -> None:
    """Clients that no variable leads, how each engine and mode gets there, when a successor is due: each is named."""
    text = " ".join((ROOT / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0].split())
    assert [word for word in words.split(", ") if word not in text] == []


@pytest.mark.parametrize("path", ["packer/container/Containerfile", "packer/container/compose.yaml"])
def test_an_agent_in_a_container_is_healthy_with_a_bundle(path: str) -> None:
    """What begins when it is healthy begins with a bundle's identity, not with the machine's."""
    checks = [
        line for line in (ROOT / path).read_text().splitlines() if re.search(r"(CMD|test:) .*credential-agent", line)
    ]
    assert checks
    assert all('"wait", "--bundle"' in line for line in checks)


def section(page: str, heading: str, language: str) -> str:
    """The first block of that language under a heading."""
    text = (ROOT / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page}: {heading}: no {language}"
    return found[1]


class Reader:
    """Somebody who follows the README: the sender's desk and the worker's directories, below one place."""

    def __init__(self, place: Path, environ: dict[str, str]) -> None:
        self.desk, self.etc, self.run = place / "desk", place / "etc", place / "run"
        for directory in (self.desk, self.etc / "signers", self.run, place / "bin"):
            directory.mkdir(parents=True)
        program = place / "bin" / "credential-agent"
        program.write_text(
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)} -m agent "$@"\n'
        )
        program.chmod(0o755)
        self.environ = {"PATH": f"{program.parent}:{os.defpath}", "HOME": str(self.desk), **environ}

    def does(self, line: str) -> str:
        """Type one line, where it is said: what only an installation has is put in its place."""
        line = line.replace("/etc/credential-agent", str(self.etc)).replace(
            "-o root -g credential-agent -m 0640", "-m 0600"
        )
        if re.match(r"credential-agent (check|wait|status|push)\b", line):
            line += f" --config {self.etc}/config.toml"
        done = subprocess.run(
            ["sh", "-c", line], cwd=self.desk, env=self.environ, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        return done.stdout


def changes_a_key(reader: Reader, agent: Agent, sts: FakeSts) -> None:
    """What "Change a key" says: a bundle to the new key is taken beside the old one, and without it; nothing ends."""
    *lines, reload = commands(section("systemd/OPERATIONS.md", "Change a key", "console"))
    for line in lines:
        reader.does(line)
    assert reload == "systemctl reload credential-agent"

    def reloaded() -> None:
        mark = agent.mark
        agent.signal(signal.SIGHUP)
        agent.wait_for("reload.applied", after=mark)

    reloaded()
    seal = commands(section("README.md", "Seal an identity", "console"))[-1]
    with serving(sts) as url:
        reader.environ["AWS_ENDPOINT_URL_STS"] = url
        reader.does(seal.replace("worker.pub.jwk", "worker-2.pub.jwk"))
    assert reader.does("credential-agent push bundle.jose").startswith("accepted: ")
    file = reader.etc / "config.toml"
    text = file.read_text()
    first, _, rest = text.partition("[[keys]]")
    file.write_text(first + rest[rest.index("[[signers]]") :])
    (reader.etc / "worker.jwk").unlink()
    reloaded()
    assert agent.status()["clouds"]["aws"]["origin"] == "bundle"
    assert not agent.events("bundle.revoked")
    file.write_text(text)  # the page that is followed next seals to the first key
    shutil.copy(reader.desk / "worker.jwk", reader.etc / "worker.jwk")
    (reader.etc / "worker.jwk").chmod(0o600)
    reloaded()


def test_no_page_has_a_key_written_by_the_shell() -> None:
    """`keygen > FILE` empties what was there before it says why it made nothing."""
    assert not [text for _, text in examples() if re.match(r"credential-agent keygen .*>", text)]


def test_the_readme_word_by_word(tmp_path: Path) -> None:
    """What "Seal" makes, put where "Configure" says, is accepted when it is delivered as "Deliver" says, and served."""
    sts = FakeSts(lambda: datetime.now(UTC))
    key, secret = sts.user()
    page = " ".join((ROOT / "README.md").read_text().split())
    with serving(sts) as url:
        names = ("AWS_ENDPOINT_URL_STS", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
        reader = Reader(tmp_path, dict(zip(names, (url, key, secret, "eu-west-1"), strict=True)))
        for line in commands(section("README.md", "Seal an identity", "console")):
            reader.does(line)
    options = re.search(r"with `(--key [^`]+)` also what is inside", page)
    assert options, "README.md does not say how one looks inside"
    seen = reader.does(f"credential-agent inspect bundle.jose {options[1]}")
    assert '"issuer": "laptop:' in seen
    assert secret not in seen
    run, etc = reader.run, reader.etc
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]  # a known one, since `wait` reads it in the configuration
    installed = (
        f'[listen]\nhttp = ["127.0.0.1:{port}"]\ncontrol = "{run}/control"\n'
        f'[environment]\nfile = "{run}/env"\nshell_file = "{run}/env.sh"\ntoken_file = "{run}/token"\n'
        f'container_file = "{run}/container.env"\n'
        f'[state]\ndirectory = "{run}"\n[upstream]\nec2 = "off"\ngce = "off"\n[log]\nformat = "json"\n'
    )
    added = section("README.md", "Configure", "toml").replace("/etc/credential-agent", str(etc))
    (etc / "config.toml").write_text(installed + added)
    *placed, restart = commands(section("README.md", "Configure", "console"))
    for line in placed:
        reader.does(line)
    assert restart == "systemctl restart credential-agent"
    with Agent(etc / "config.toml") as agent:
        agent.wait_for("agent.started")  # ready it is when the first bundle is there, or the grace is over
        *delivered, status = commands(section("README.md", "Deliver", "console"))
        for line in delivered:
            reader.does(line)
        assert agent.status()["clouds"]["aws"]["origin"] == "bundle"
        assert status == commands(section("README.md", "Operate", "console"))[0]
        assert "from the bundle" in reader.does(status)
        (scrape,) = commands(section("systemd/OPERATIONS.md", "Alerts", "console"))
        scrape = scrape.replace("/run/credential-agent/control.sock", f"{run}/control")
        metrics = reader.does(scrape) if shutil.which("curl") else agent.operate("/metrics").body.decode()
        assert f"--unix-socket {run}/control http://agent/metrics" in scrape
        assert 'credential_agent_state{cloud="aws",state="live"} 1.0' in metrics
        push = re.search(r"`(credential-agent push [^`]+)`", page)
        assert push, "README.md does not say how one hands a bundle in"
        assert reader.does(push[1]).startswith("same: seq ")
        changes_a_key(reader, agent, sts)
        for line in commands(section("agent/SECURITY.md", "Something was stolen", "console")):
            reader.does(line)
        assert reader.does("credential-agent push withdrawal.jose").startswith("accepted: ")
        assert agent.status()["clouds"]["aws"]["state"] != "live"
