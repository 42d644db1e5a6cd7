"""A stop of the agent by hand ends what answers workers too; no other end of it does."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.system.harness import REPOSITORY

UNITS = REPOSITORY / "systemd"
STOPPED = "credential-agent-stopped.service"
AGAIN = "credential-agent-again@credential-agent-control.socket.service"
SYSTEMCTL = """#!/bin/sh
case $1 in show) echo "$STATE" ;; list-jobs) echo "$JOBS" ;; list-units) printf "$UNITS" ;; *) echo "$@" >>"$CALLS" ;; esac
"""


def passes_on(root: Path, state: str, job: str, units: str = "") -> bool:
    """Run what systemd runs once the agent has come to rest, for what has become of it since; whether the other is stopped."""
    text = re.sub(r"\\\n", "", (UNITS / STOPPED).read_text())
    (command,) = re.findall(r"^ExecStart=-(.*)$", text, re.MULTILINE)
    words = shlex.split(command.replace("$$", "$"))
    systemctl, calls = root / "systemctl", root / "calls"
    systemctl.write_text(SYSTEMCTL)
    systemctl.chmod(0o755)
    jobs = f" 412 credential-agent.service {job} waiting" if job else ""
    environ = {"PATH": f"{root}:/usr/bin:/bin", "STATE": state, "JOBS": jobs, "UNITS": units, "CALLS": str(calls)}
    subprocess.run(words, env=environ, check=False, timeout=60)
    return calls.exists() and calls.read_text() == "--no-block --job-mode=fail stop credential-agent-serve.service\n"


@pytest.mark.parametrize("state", ["inactive", "failed"])
@pytest.mark.parametrize("job", ["", "stop"])
def test_a_stop_by_hand_is_passed_on(state: str, job: str, tmp_path: Path) -> None:
    """However it ended: workers are to have nothing."""
    assert passes_on(tmp_path, state, job)


@pytest.mark.parametrize(
    ("state", "job"),
    [
        *(("inactive", job) for job in ("start", "restart", "try-restart")),
        *((state, "") for state in ("active", "activating", "deactivating", "reloading")),
    ],
)
def test_who_has_started_it_again_meanwhile_keeps_what_answers(state: str, job: str, tmp_path: Path) -> None:
    """By hand, or because a worker asked: then it is served by what there was."""
    assert not passes_on(tmp_path, state, job)


def test_an_agent_that_waits_for_a_socket_is_not_stopped(tmp_path: Path) -> None:
    """Who restarts a socket that cannot be made just now has failed the agent's start: it comes back, and was served till then."""
    assert not passes_on(tmp_path, "inactive", "", f"{AGAIN} loaded active running make it again\n")


def test_those_sockets_are_all_that_it_needs() -> None:
    """One that it does without (on IPv6, say) may be waited for as long as it likes: then a stop is a stop."""
    (needed,) = re.findall(r"^Requires=(.*)$", (UNITS / "credential-agent.service").read_text(), re.MULTILINE)
    asked = re.findall(r"credential-agent-again@(\S+)\.service", (UNITS / STOPPED).read_text())
    assert asked == needed.split()


def test_systemd_asks_whenever_the_agent_has_come_to_rest() -> None:
    """Neither kind of end is left out; nothing of the agent's own runs at a stop between two tries of it."""
    text = (UNITS / "credential-agent.service").read_text()
    for key in ("OnSuccess", "OnFailure"):
        assert re.findall(rf"^{key}=(.*)$", text, re.MULTILINE) == [STOPPED]
