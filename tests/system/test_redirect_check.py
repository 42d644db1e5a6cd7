"""``redirect check`` asks as a worker: what it asks by is not the worker's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.host import nft, ranges
from tests.system import lab
from tests.system.lab import AGENT_PORT, AGENT_UID, REPOSITORY, Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(lab.missing() is not None, reason=lab.missing() or ""),
    pytest.mark.xdist_group("lab"),
]

# Looks for processes of its own user that have a certain file open, and says so.
REACHING = """
import os, sys
print("up", flush=True)
while True:
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid():
            try:
                found = os.readlink(f"/proc/{pid}/fd/0")
            except OSError:
                continue
            if found == sys.argv[1]:
                print("reached", flush=True)
                sys.exit()
"""


@pytest.mark.parametrize("uid", [1000, 60578])
def test_whoever_is_asked_as_gets_nothing_of_who_asks(tmp_path: Path, uid: int) -> None:
    """A process of a worker's could be traced by any other: it would say what he likes, and give him root's terminal."""
    (tmp_path / "config.toml").write_text("")
    reader, writer = os.pipe()
    with Lab() as net:
        net.serve_agent_that_answers()
        net.at(net.host, "ip", "address", "add", "169.254.171.2/32", "dev", "lo", "scope", "host")
        workers = nft.Workers(uids=ranges.parse_uids(["1000-4294967293"]))
        net.nft(nft.ruleset(workers, port=AGENT_PORT, agent_uid=AGENT_UID))
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        terminal = str(Path(f"/proc/self/fd/{reader}").readlink())
        thief = net.start(net.host, *become, sys.executable, "-I", "-S", "-c", REACHING, terminal)
        assert thief.stdout is not None
        assert thief.stdout.readline() == "up\n"
        command = [sys.executable, "-m", "agent", "redirect", "check", "--config", str(tmp_path / "config.toml")]
        done = subprocess.run(
            ["ip", "netns", "exec", net.host, *command],
            stdin=reader, capture_output=True, text=True, check=False, cwd=REPOSITORY,
        )  # fmt: skip
        assert "asks 169.254.169.254: the agent answers" in done.stdout
        assert "no worker, asks the agent's endpoint: refused" in done.stdout
        net.kill(thief)
        assert thief.stdout.read() == ""
    os.close(reader)
    os.close(writer)
