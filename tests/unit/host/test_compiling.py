"""What is installed is compiled once, and runs without the text that nothing reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.core.errors import HostError
from agent.host.compiling import main

MODULE = '''"""Of the module."""
from __future__ import annotations

from dataclasses import dataclass


def only():
    """Of what has nothing else."""


async def two():
    """The first."""
    """The second."""


class Plain:
    """Of a class."""

    def own(self):
        """Of a method."""
        return "\\d"


@dataclass
class Made:
    """Of a dataclass."""

    x: int = 1


def checked(x):
    """Of one that asserts."""
    assert x, "kept"
    return x
'''
LOOK = """
import sys
sys.path.insert(0, sys.argv[1])
from agent.cli import run as shown
import plain
print([one.__doc__ for one in (plain, plain.only, plain.two, plain.Plain, plain.Plain.own, plain.checked)])
print(plain.Made.__doc__, shown.only.__doc__, plain.Plain().own(), plain.Made(), plain.checked.__code__.co_firstlineno)
try:
    plain.checked(0)
except AssertionError as error:
    print(error)
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    directory = tmp_path / "agent/cli"
    directory.mkdir(parents=True)
    for file in (directory / "run.py", tmp_path / "plain.py"):
        file.write_text(MODULE)
    for package in (directory.parent, directory):
        (package / "__init__.py").touch()
    return tmp_path


def test_a_daemon_carries_no_docstrings_and_a_command_has_its_help(installed: Path) -> None:
    """Docstrings are gone but those of commands and dataclasses; what a program does, asserts and tells of itself stays."""
    main(installed)
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", LOOK, installed], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        str([None] * 6),
        rf"Of a dataclass. Of what has nothing else. \d Made(x=1) {MODULE[: MODULE.index('def checked')].count(chr(10)) + 1}",
        "kept",
    ]


def test_a_start_reads_no_source(installed: Path) -> None:
    """Byte code is found where the interpreter looks for it, and not compared with a source that has another time or none."""
    main(installed)
    for file in installed.rglob("*.py"):
        file.write_text("raise SystemExit('compiled anew')\n")
    subprocess.run([sys.executable, "-I", "-c", LOOK, installed], stdout=subprocess.DEVNULL, check=True)


@pytest.mark.parametrize("wrong", [b"def", b"x = '\xff'\n", b"# coding: none-such\n"])
def test_what_cannot_be_compiled_is_named(installed: Path, wrong: bytes) -> None:
    """Whoever installs learns which module it is: the daemon would end at it, perhaps hours after its start."""
    (installed / "wrong.py").write_bytes(wrong)
    with pytest.raises(HostError, match=r"wrong\.py: "):
        main(installed)
