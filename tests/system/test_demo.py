"""``make demo`` as a user sees it, and that it can fail."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 240
"""A shared machine may be slow; the demonstration itself takes half a minute."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (Path(sys.executable).parent / "credential-agent").exists(),
        reason="credential-agent is not installed beside this python; make test installs it",
    ),
]


class Demo:
    """A running demonstration and what it has said."""

    def __init__(self, out: Path, *options: str) -> None:
        self.out = out
        # A shell starts what it puts into the background with SIGINT ignored, and every child inherits that.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with out.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.demo", *options],
                cwd=ROOT,
                # What a caller's shell may hold must neither break it nor be used.
                env={**os.environ, "AWS_PROFILE": "nobody", "HTTP_PROXY": "http://127.0.0.1:9", "COLUMNS": "80"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.out.read_text()

    def until(self, text: str) -> None:
        """Wait for it to say ``text``."""
        wait_for(lambda: text in self.said or self.process.poll() is not None)
        assert text in self.said, self.said

    def children(self) -> dict[int, str]:
        """The processes it started, with their command lines."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                command = stat.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if parent == self.process.pid:
                found[int(stat.parent.name)] = command
        return found

    def end(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture(params=[[]], ids=["whole"])
def demo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Demo]:
    started = Demo(tmp_path / "said", *request.param)
    yield started
    if started.process.poll() is None:
        started.process.terminate()
        started.end()
    # A demonstration that failed leaves its logs to be read; here nobody will.
    if kept := re.search(r"^ logs and files: (.+)$", started.said, re.MULTILINE):
        shutil.rmtree(kept[1])


LATER = pytest.mark.parametrize("demo", [["--without-cluster"]], ids=["without the cluster"], indirect=True)


def test_every_step_goes_as_said(demo: Demo) -> None:
    """The whole story: exit 0, every step done, the private texts read, no colour off a terminal, nobody left behind."""
    demo.until("   ✓ an AWS")
    children = demo.children()
    assert len(children) >= 3
    assert demo.end() == 0, demo.said
    said = demo.said
    assert "every step went as said" in said
    assert [line[3] for line in said.splitlines() if line.startswith(" ✓ ")] == list("0abcdefg")
    assert "Hello from David's private bucket." in said
    assert "Hello from David's bucket at Google." in said
    assert "AccessDenied" in said
    assert "\x1b" not in said
    assert not any(alive(pid) for pid in children)


@LATER
def test_it_fails_when_the_agent_dies(demo: Demo) -> None:
    """An agent that is killed in the middle is a failure at once, with its name, and everything else is stopped."""
    demo.until("has taken over")
    children = demo.children()
    (agent,) = [pid for pid, command in children.items() if "credential-agent run" in command]
    os.kill(agent, signal.SIGKILL)
    assert demo.end() == 1
    assert "credential-agent was killed by SIGKILL" in demo.said
    assert "the demonstration FAILED" in demo.said
    assert " ✗ f" in demo.said
    assert not any(alive(pid) for pid in children)


@LATER
def test_it_fails_when_a_cloud_dies(demo: Demo) -> None:
    """The demo fails when its cloud goes away: what is told comes from it."""
    demo.until("a  no bundle")
    (aws,) = [pid for pid, command in demo.children().items() if "tests.demo.aws_cloud" in command]
    os.kill(aws, signal.SIGKILL)
    assert demo.end() == 1
    assert "every step went as said" not in demo.said


@LATER
def test_ctrl_c_ends_it_and_leaves_nothing(demo: Demo) -> None:
    """Interrupted: exit 130, no process and no file stays."""
    demo.until("a  no bundle")
    children = demo.children()
    (config,) = [command.split()[-1] for command in children.values() if "credential-agent run" in command] or [""]
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 130
    assert not any(alive(pid) for pid in children)
    if config:
        assert not Path(config).exists()
