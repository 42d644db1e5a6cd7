"""While the redirection is stopped: what `credential-agent-watch.service` runs, in a network of its own.

The unit's own text is run; what it needs of systemd (the gates of slices) a machine that boots shows.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host import aliases, nft
from tests.system import lab
from tests.system.lab import AGENT_PORT, AGENT_UID, REPOSITORY, Lab
from tests.system.test_hold import until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(lab.missing() is not None, reason=lab.missing() or ""),
    pytest.mark.xdist_group("lab"),
]

METADATA = "169.254.169.254"
ALICE = 1000
EXEMPT = 2000
FLUSHES = 40
#: Asks again and again until standard input ends; says how often who answered.
ASKS = """
import select, socket, sys
said = {"machine": 0, "refused": 0}
print("up", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    with socket.socket() as s:
        s.settimeout(1)
        try:
            s.connect(("169.254.169.254", 80))
            said["machine"] += 1
        except OSError:
            said["refused"] += 1
print(said["machine"], said["refused"], flush=True)
"""


def watch_script(run: Path) -> str:
    """The unit's command, as systemd hands it to the shell, with the machine's files in another place."""
    text = (REPOSITORY / "systemd/credential-agent-watch.service").read_text()
    found = re.search(r"^ExecStart=/bin/sh -c '(.*?)'$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    script = found.group(1).replace("\\\n", "").replace("\\\\", "\\").replace("$$", "$")
    script = script.replace("/run/credential-agent-redirect", str(run)).replace("systemctl --no-block", "true")
    return script.replace("/etc/credential-agent/closed.nft", str(nft.CLOSED_FILE))


class Stopped:
    """A machine whose redirection was stopped: the rules are closed, and the watch runs."""

    def __init__(self, net: Lab, run: Path) -> None:
        self.net = net
        run.mkdir(exist_ok=True)
        workers = nft.Workers(uids=((1000, 1999), (2001, 60000)))
        self.closed, self.leads = (
            nft.ruleset(workers, port=AGENT_PORT, agent_uid=AGENT_UID, closed=c) for c in (True, False)
        )
        net.nft(self.closed)
        net.at(net.host, "ip", "address", "add", f"{aliases.ALIAS4}/32", "dev", "lo")
        self.watch = net.start(net.host, "setsid", "sh", "-c", watch_script(run))  # its signals are for its group
        until(lambda: nft.KEPT in self.tables(), "the copy of its own")

    def tables(self) -> str:
        return self.net.at(self.net.host, "nft", "list", "tables")


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Stopped]:
    with Lab() as net:
        yield Stopped(net, tmp_path / "run")


def test_no_flush_opens_for_a_moment(stopped: Stopped) -> None:
    """Workers and containers ask without a pause while everything is flushed, again and again: none is the machine."""
    net = stopped.net
    askers = []
    for space, uid in ((net.host, ALICE), (net.job, 0)):
        command = ["ip", "netns", "exec", space, "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        asker = subprocess.Popen(
            [*command, sys.executable, "-I", "-S", "-c", ASKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert asker.stdout is not None
        assert asker.stdout.readline() == "up\n"
        askers.append(asker)
    for _ in range(FLUSHES):
        net.nft("flush ruleset")
        until(lambda: f"{nft.CLOSED}\n" in stopped.tables(), "the closed table")
    said = [tuple(map(int, asker.communicate("")[0].split())) for asker in askers]
    assert [machine for machine, _ in said] == [0, 0], said
    assert all(refused > FLUSHES for _, refused in said), said


def test_what_is_kept_is_what_the_configuration_says(stopped: Stopped) -> None:
    """Who is no worker by the configuration keeps the real service after a flush of the closed table's copy too."""
    net = stopped.net
    assert net.ask(METADATA, uid=EXEMPT) == net.ask(METADATA, uid=0) == "machine"
    assert net.ask(METADATA, uid=ALICE) == net.ask(METADATA, space=net.job) == "refused"
    kept = net.at(net.host, "nft", "list", "table", *nft.KEPT.split())
    assert str(EXEMPT) in kept
    with pytest.raises(AssertionError, match="Operation not permitted"):
        net.nft(f"flush table {nft.KEPT}")


def test_a_slice_that_comes_is_kept_closed_too(stopped: Stopped) -> None:
    """A gate adds its chain to the closed table; the copy has it from then on."""
    chain = f"{nft.CLOSED} slice_7"
    stopped.net.nft(f"add chain {chain} {{ type filter hook output priority 10; }}\nadd rule {chain} meta skuid 4 drop")
    until(
        lambda: "slice_7" in stopped.net.at(stopped.net.host, "nft", "list", "ruleset").partition("_kept")[2],
        "the slice in the copy",
    )


def test_it_gives_way_to_the_redirection_and_comes_back(stopped: Stopped, tmp_path: Path) -> None:
    """While a process holds the rules there is no other copy, and workers are led; when it is gone there is one."""
    net = stopped.net
    net.serve_agent_that_answers()
    script = tmp_path / "held.nft"
    script.write_text(stopped.leads + nft.held(stopped.leads))
    holder = net.start(net.host, "sh", "-c", f"(echo 'include \"{script}\"'; exec sleep 1000) | nft -i")
    until(lambda: nft.KEPT not in stopped.tables(), "its giving way")
    assert net.ask(METADATA, uid=ALICE) == net.ask(METADATA, space=net.job) == "agent"
    net.nft(f"add chain {nft.CLOSED} handover")  # before an orderly end: there is no moment without a copy
    until(lambda: nft.KEPT in stopped.tables(), "a copy beside the other")
    net.nft(f"delete chain {nft.CLOSED} handover")
    net.at(net.host, "pkill", "-P", str(holder.pid))
    net.nft(nft.refusal())  # ExecStopPost=
    until(lambda: nft.KEPT in stopped.tables(), "its coming back")
    assert net.ask(METADATA, uid=ALICE) == "agent"  # what leads is there
    net.nft("flush ruleset")
    assert net.ask(METADATA, uid=ALICE) == "refused"


def test_a_watch_that_ends_leaves_nothing(stopped: Stopped) -> None:
    """Its copy ends with it: whoever takes the agent off stops it first."""
    stopped.net.kill(stopped.watch, signal.SIGTERM)
    until(lambda: nft.KEPT not in stopped.tables(), "the end of the copy")
