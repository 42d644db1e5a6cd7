"""Whoever waits for what cannot come is told so at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.harness import REPOSITORY, toml

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be no worker")

#: A machine whose rules lead workers, as the process that holds them says it, and refuse root.
LED = """
mount -t tmpfs none /run
mkdir /run/credential-agent-redirect
printf '{"state": "led", "why": null, "notes": [], "beat": %s}' "$(cut -d ' ' -f 1 /proc/uptime)" \\
    > /run/credential-agent-redirect/state.json
exec "$@"
"""


def asked(tmp_path: Path, command: list[str], seconds: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """What becomes of ``command``, where nobody answers at the agent's address, or the rules refuse it there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "config.toml"
    config.write_text(f"[listen]\n{toml({'http': [f'127.0.0.1:{port}']})}")
    more = ["--", "true"] if command == ["exec"] else []
    return subprocess.run(
        ["unshare", "-m", "sh", "-ec", before + LED, "sh", sys.executable, "-m", "agent", *command, "--config", config,
         "--timeout", seconds, *more],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", [["wait", "--bundle"], ["wait"], ["exec"]])
def test_root_that_the_rules_refuse(tmp_path: Path, command: list[str]) -> None:
    """It is no worker, and never becomes one: status 71 with what to type, and not its timeout."""
    done = asked(tmp_path, command, "600")
    assert done.returncode == 71, done.stderr
    assert "uid 0 is no worker" in done.stderr
    assert "--workers" in done.stderr


def test_root_in_a_worker_s_slice_waits(tmp_path: Path) -> None:
    """It is a worker, and the agent may come back: status 75 at the timeout."""
    group = tmp_path / "cgroup"
    group.write_text("0::/credential.slice/credential-agent.slice/credential-agent-workers.slice/job.service\n")
    done = asked(tmp_path, ["wait"], "0", f"mount --bind {group} /proc/$$/cgroup\n")
    assert done.returncode == 75, done.stderr
