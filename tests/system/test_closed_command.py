"""The command of ``credential-agent-closed.service``, as the unit has it, in a network namespace of its own.

What it does at a real boot is in ``test_closed_boot.py``; this is its shell, with nftables and without.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.host import nft

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = ("sh", "ip", "grep", "ls", "rm", "cat")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loads rules in a network namespace of its own"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft (apt-get install nftables)"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (util-linux)"),
]

# Who reaches the service at the metadata address; all that is not refused does.
ASK = """
import os, socket, sys
server = socket.create_server(("169.254.169.254", 80))
for uid in map(int, sys.argv[1:]):
    child = os.fork()
    if child == 0:
        os.setuid(uid)
        with socket.socket() as asking:
            asking.settimeout(5)
            os._exit(asking.connect_ex(("169.254.169.254", 80)) != 0)
    print(uid, "refused" if os.waitpid(child, 0)[1] else "machine")
"""


def command(unit: str, root: Path, *, setting: str = "ExecStart=") -> str:
    """What systemd hands to the shell, with the paths of a test in place of the machine's."""
    text = (REPOSITORY / "systemd" / unit).read_text()
    found: str = re.findall(rf"^{re.escape(setting)}/bin/sh -c '(.*?)'(?: |$)", text, re.DOTALL | re.MULTILINE)[0]
    script = found.replace("\\\n", "").replace("$$", "$").replace("%%", "%").replace("\\\\", "\\")
    return script.replace("/etc/credential-agent", str(root)).replace("/opt/credential-agent", str(root / "opt"))


def programs_of(root: Path, names: tuple[str, ...]) -> Path:
    """A directory with those programs and no others."""
    programs = root / "bin"
    programs.mkdir()
    for name in names:
        (programs / name).symlink_to(str(shutil.which(name)))
    return programs


def asked(root: Path, *uids: int, tools: tuple[str, ...]) -> dict[str, str]:
    """Run the command, then ask as each of the uids."""
    programs = programs_of(root, tools)
    (root / "script").write_text(command("credential-agent-closed.service", root))
    (root / "ask").write_text(ASK)
    run = f"""
    ip link set lo up; ip address add 169.254.169.254 dev lo
    PATH={programs} sh -c "$(cat {root}/script)" closed {root}/mark
    {shutil.which("python3")} -I -S {root}/ask {" ".join(map(str, uids))}
    """
    done = subprocess.run(["unshare", "--net", "sh", "-c", run], capture_output=True, text=True, check=False)
    said = [line.split() for line in done.stdout.splitlines() if line.endswith(("refused", "machine"))]
    assert [int(uid) for uid, _ in said] == list(uids), done
    return dict(said)


def worked(root: Path, workers: str) -> Path:
    """A machine that ran before: with that file of root's."""
    (root / "closed.nft").write_text(nft.CLOSED_FILE.read_text())
    (root / "closed.d").mkdir()
    (root / "closed.d" / "workers").write_text(workers)
    return root


def test_whoever_was_a_worker_is_refused_by_the_closed_table(tmp_path: Path) -> None:
    """A system user by number; the others keep the service; a line that makes no sense changes nothing."""
    root = worked(tmp_path, "105\n; touch x\n700-705\n0x5\n")
    said = asked(root, 0, 1, 104, 105, 106, 700, 705, 706, 1000, tools=(*TOOLS, "nft"))
    assert {uid for uid, word in said.items() if word == "refused"} == {"105", "700", "705", "1000"}
    assert not (root / "mark").exists()


def test_without_a_file_the_usual_workers_are_refused(tmp_path: Path) -> None:
    """A first boot, and a file that nobody could write."""
    (tmp_path / "closed.nft").write_text(nft.CLOSED_FILE.read_text())
    said = asked(tmp_path, 0, 105, 1000, tools=(*TOOLS, "nft"))
    assert said == {"0": "machine", "105": "machine", "1000": "refused"}


def test_rules_of_the_last_resort_name_whoever_was_a_worker(tmp_path: Path) -> None:
    """Where nft cannot be used the routing policy refuses the same users."""
    root = worked(tmp_path, "105\n700-705\n")
    programs = programs_of(root, TOOLS)
    (root / "script").write_text(command("credential-agent-closed.service", root))
    (root / "after").write_text(command("credential-agent-closed.service", root, setting="ExecStopPost=+"))
    run = f"""
    ip link set lo up
    PATH={programs} sh -c "$(cat {root}/script)" closed {root}/mark >&2 && echo it has started
    SERVICE_RESULT=exit-code PATH={programs} sh -c "$(cat {root}/after)" closed {root}/mark >&2
    test -e {root}/mark || echo no mark
    ip route add default dev lo
    for uid in 0 104 105 700 705 706 1000; do
      echo "$uid $(ip route get 169.254.169.254 uid $uid 2>&1 | grep -c unreachable)"
    done
    echo "dns $(ip route get 169.254.169.254 uid 105 ipproto udp dport 53 2>&1 | grep -c unreachable)"
    """
    done = subprocess.run(["unshare", "--net", "sh", "-c", run], capture_output=True, text=True, check=False)
    said = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    assert said == {"0": "0", "104": "0", "105": "1", "700": "1", "705": "1", "706": "0", "1000": "1", "dns": "0"}, done
