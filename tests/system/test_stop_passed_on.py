"""A stop of the agent by hand ends what answers workers too; no other end of it does."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.system.harness import REPOSITORY

UNIT = REPOSITORY / "systemd" / "credential-agent.service"
SYSTEMCTL = """#!/bin/sh
case $1 in list-jobs) echo "$JOBS" ;; *) echo "$@" >>"$CALLS" ;; esac
"""


def passes_on(root: Path, result: str, job: str) -> bool:
    """Run what the unit runs after such an end, while systemd has this job for it; whether the other is stopped."""
    text = re.sub(r"\\\n", "", UNIT.read_text())
    (command,) = [line for line in text.splitlines() if line.startswith("ExecStopPost=") and "list-jobs" in line]
    words = shlex.split(command.partition("=")[2].lstrip("-+"))
    systemctl, calls = root / "systemctl", root / "calls"
    systemctl.write_text(SYSTEMCTL)
    systemctl.chmod(0o755)
    jobs = f" 412 credential-agent.service {job} running" if job else ""
    environ = {"PATH": f"{root}:/usr/bin:/bin", "SERVICE_RESULT": result, "JOBS": jobs, "CALLS": str(calls)}
    subprocess.run(words, env=environ, check=True, timeout=60)
    return calls.exists() and "stop credential-agent-serve.service" in calls.read_text()


@pytest.mark.parametrize("result", ["success", "timeout", "exit-code"])
def test_a_stop_by_hand_is_passed_on(result: str, tmp_path: Path) -> None:
    """Also by somebody whose agent does not start, for a mistake in its configuration: workers are to have nothing."""
    assert passes_on(tmp_path, result, "stop")


@pytest.mark.parametrize("result", ["success", "exit-code", "signal", "watchdog", "oom-kill"])
@pytest.mark.parametrize("job", ["", "restart", "start", "try-restart"])
def test_nothing_else_is_passed_on(result: str, job: str, tmp_path: Path) -> None:
    """After a crash, a restart, or a mistake in the configuration, workers are served with what there was."""
    assert not passes_on(tmp_path, result, job)
