"""Whatever the agent inherits from whoever began it: it serves, keeps its wall, replaces what ends, and ends when told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.system.harness import DEADLINE_SECONDS, REPOSITORY, World, until

MANY: Final = 1100
"""More than select(2) knows."""

#: What the process does before it becomes the agent: execve(2) hands all of it on.
INHERITED: Final = {
    "children that nobody waits for": "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "every signal blocked": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "every end ignored": "import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 15)]",
    "more descriptors than select knows": (
        "import os, resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
        f"[os.open('/dev/null', os.O_RDONLY) for _ in range({MANY})]"
    ),
    "a working directory that is gone": "import os, tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)",
    "a umask that hides everything": "import os; os.umask(0o777)",
    "a child of somebody else's": "import os\nif os.fork() == 0: os._exit(3)",
}


@pytest.mark.parametrize("prelude", INHERITED.values(), ids=INHERITED)
def test_what_began_it_changes_nothing(tmp_path: Path, prelude: str) -> None:
    """A bundle is taken, a server that is killed has a successor behind the same wall, and SIGTERM is heard."""
    (tmp_path / "w").mkdir()
    world = World(tmp_path / "w")
    key = "ASIAUSER000000000001"
    with world.agent(prelude=prelude) as agent:
        agent.ready()
        assert agent.push(world.seal(world.session(key), world.variables(WHO=key)))["durable"]
        assert world.env()["WHO"] == key
        *others, second, server = agent.every_process()
        os.kill(server, signal.SIGKILL)
        until(lambda: server not in agent.processes, what="its end")
        *same, third, answers = agent.every_process()
        assert (same, answers) == (others, second)
        assert third not in {server, second}
        assert agent.access_key() == key
        agent.signal(signal.SIGHUP)
        agent.wait_for("reload.applied")
        assert not agent.events("server.gone")
        assert agent.stop() == 0


STRANGE: Final = [
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR,
    signal.SIGRTMIN, signal.SIGRTMAX, signal.SIGPIPE, signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT,
]  # fmt: skip


def test_a_signal_that_means_nothing_ends_nobody(tmp_path: Path) -> None:
    """Sent by mistake, by a timer or by a power supply, to any of the processes: all are there, and serve."""
    (tmp_path / "w").mkdir()
    world = World(tmp_path / "w")
    key = "ASIAUSER000000000001"
    with world.agent() as agent:
        agent.ready()
        assert agent.push(world.seal(world.session(key)))["outcome"] == "accepted"
        before = agent.every_process()
        for pid in before:
            for number in STRANGE:
                os.kill(pid, number)
        agent.signal(signal.SIGHUP)
        agent.wait_for("reload.applied")
        assert agent.access_key() == key
        assert agent.processes == before
        assert agent.stop() == 0


@pytest.mark.parametrize(("command", "status"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_a_command_run_where_children_are_ignored_has_its_status(tmp_path: Path, command: str, status: int) -> None:
    """``exec`` below a shell that ignores the ends of its children hears of its own."""
    (tmp_path / "w").mkdir()
    world = World(tmp_path / "w")
    with world.agent({"identity": {"grace_seconds": 0.0}}) as agent:
        agent.ready()
        agent.push(world.seal(world.session()))
        port = agent.address[1]
        config = world.write_config({"listen": {"http": [f"127.0.0.1:{port}"]}}, "worker.toml")
        ours = f"{sys.executable} -m agent exec --config {config} -- sh -c '{command}'"
        done = subprocess.run(
            ["sh", "-c", f"trap '' CHLD; exec {ours}"],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
            timeout=2 * DEADLINE_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == status
        assert agent.stop() == 0
