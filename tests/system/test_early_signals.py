"""Signals in the first moments of a program: a wish waits, what means nothing is nothing, an end is one without a traceback.

Each is sent by the program to itself as it begins to load a module, so the moment is a place in its code and not a time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.system.harness import DEADLINE_SECONDS, REPOSITORY, World

MOMENTS: Final = (
    "agent.cli", "click", "agent.cli.run", "agent.server.spawn", "asyncio", "agent.daemon", "agent.controller", "msgspec",
    "agent.host.loop",
)  # fmt: skip
"""Modules of the start, in the order in which they are loaded."""

SENDING: Final = (
    "import importlib.abc, os, signal, sys\n"
    "class At(importlib.abc.MetaPathFinder):\n"
    "    def find_spec(self, name, path, target=None):\n"
    "        if name in {moments!r}:\n"
    "            for number in {numbers!r}: os.kill(os.getpid(), number)\n"
    "sys.meta_path.insert(0, At())\n"
)


def sending(moments: tuple[str, ...], *numbers: signal.Signals) -> str:
    """What makes a program send itself those signals at those moments."""
    return SENDING.format(moments=moments, numbers=tuple(map(int, numbers)))


def test_a_wish_waits_and_what_means_nothing_is_nothing(tmp_path: Path) -> None:
    """SIGHUP at every moment of the start is one reload after it; SIGUSR1 and its like end nobody."""
    (tmp_path / "w").mkdir()
    world = World(tmp_path / "w")
    key = "ASIAUSER000000000001"
    strange = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGRTMIN)
    with world.agent(prelude=sending(MOMENTS, *strange)) as agent:
        agent.ready()
        agent.wait_for("reload.applied")
        assert agent.push(world.seal(world.session(key)))["outcome"] == "accepted"
        assert agent.access_key() == key
        assert agent.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS[::2])
def test_an_early_end_is_no_traceback(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    """Whoever types Ctrl-C at once, or stops the unit at once, sees no traceback, and nothing stays behind."""
    (tmp_path / "w").mkdir()
    world = World(tmp_path / "w")
    with world.agent(prelude=sending((moment,), number)) as agent:
        status = agent.wait()
    assert status in {-number, 130}
    assert "Traceback" not in agent.stderr
    assert "KeyboardInterrupt" not in agent.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM])
@pytest.mark.parametrize("moment", ["agent.core.errors", "agent.server.starting", "socket"])
def test_the_program_that_answers_hears_nothing_early(moment: str, number: signal.Signals) -> None:
    """What a terminal sends to all of us, and what means nothing, does not end the one that is to answer workers."""
    code = f"{sending((moment,), number)}import runpy\nrunpy.run_module('agent.server', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, timeout=DEADLINE_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 1  # there are no sockets for it
    assert b"systemctl start credential-agent-serve" in done.stderr
