"""What ``credential-agent-watch.service`` keeps while nobody holds the rules: its own words, without a service manager."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.host import nft
from tests.system import leftovers

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces, control groups"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft (apt-get install nftables)"),
    pytest.mark.skipif(leftovers.unified() is None, reason="needs control groups of version 2"),
]

# Rules, what watches, and a group. A gate is what credential-agent-gate@.service loads, and comes again until it is heard:
# who watches may not listen yet.
SCRIPT = """
mount -t cgroup2 none /sys/fs/cgroup
closed="inet credential_agent_closed"
gate() {
  nft "add chain $closed slice_1 { type filter hook output priority 10; policy accept; }; flush chain $closed slice_1;
    add rule $closed slice_1 socket cgroupv2 level 2 \\"$GROUP\\" ip daddr @metadata_ip jump worker"
}
soon() { tried=0; until "$@" 2>/dev/null; do tried=$((tried + 1)); test $tried -lt 300 || exit 1; done; }
is_kept() { nft list table ${closed}_kept >&2; }
names_the_group() { gate; nft list table ${closed}_kept | grep -q "\\"$GROUP\\""; }
made_anew() { rmdir "/sys/fs/cgroup/$GROUP"; mkdir "/sys/fs/cgroup/$GROUP"; }
printf %s "$RULES" | nft -f -
gate
rmdir "/sys/fs/cgroup/$GROUP"
sh -c "$WATCH" &
soon is_kept; echo kept without a group
mkdir "/sys/fs/cgroup/$GROUP"
soon names_the_group; echo kept with it
made_anew
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do gate; is_kept; done; echo kept all the while
soon names_the_group; echo kept with another of that name
"""


def test_what_is_kept_refuses_whatever_became_of_a_slice(tmp_path: Path) -> None:
    """A slice that was stopped hinders no copy, and one that is made anew is refused in it by its new number."""
    unit = (ROOT / "systemd/credential-agent-watch.service").read_text()
    (words,) = re.findall(r"^ExecStart=/bin/sh -c '(.*?)'$", unit, re.MULTILINE | re.DOTALL)
    for written, meant in (
        ("\\\n", " "),
        ("\\\\", "\\"),
        ("$$", "$"),
        ("%%", "%"),
        ("/run/credential-agent-redirect", str(tmp_path)),
    ):
        words = words.replace(written, meant)
    manager = tmp_path / "systemctl"
    manager.write_text("#!/bin/sh\n")
    manager.chmod(0o755)
    unified = leftovers.unified()
    assert unified is not None
    with leftovers.group(f"watched{os.getpid()}.slice") as group:
        done = subprocess.run(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", SCRIPT],
            env={"PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin", "GROUP": str(Path(group.name).relative_to(unified)), "RULES": nft.refusal(), "WATCH": words},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    said = ["kept without a group", "kept with it", "kept all the while", "kept with another of that name"]
    assert done.stdout.splitlines() == said, done.stderr
