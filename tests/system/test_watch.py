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


# The owner of the copy reads nothing before it may.
HELD_UP = """#!/bin/sh
case "$1" in -i) echo $$ >"$MAY.pid"; until test -e "$MAY"; do :; done ;; esac
PATH=/usr/sbin:/usr/bin:/sbin:/bin exec nft "$@"
"""
BESIDE = """
closed="inet credential_agent_closed"
soon() { tried=0; until "$@" 2>/dev/null; do tried=$((tried + 1)); test $tried -lt 1000 || exit 1; done; }
gate() {
  nft "add chain $closed slice_$1; delete chain $closed slice_$1; add chain $closed slice_$1"
  grep -qs "slice_$1 " "$KEPT"
}
is_kept() { nft list chain ${closed}_kept "slice_$1" >&2; }
printf %s "$RULES" | nft -f -
$SHELL -c "$WATCH" &
for number in 1 2 3; do soon gate $number; done; echo heard
touch "$MAY"
for number in 1 2 3; do soon is_kept $number; done; echo kept
kill -KILL "$(cat "$MAY.pid")"
another() { gate 4; is_kept 4; }
soon another; echo kept by another
"""

# The first question is never answered; all others are.
HANGS_ONCE = """#!/bin/sh
case "$1" in list) mkdir "$ASKED" 2>/dev/null && exec sleep infinity ;; esac
PATH=/usr/sbin:/usr/bin:/sbin:/bin exec nft "$@"
"""
MENDED = """
printf %s "$RULES" >"$CLOSED"
sh -c "$WATCH" &
until test -e "$ASKED"; do :; done
until nft list table inet credential_agent_closed >&2; do :; done; echo closed
"""
# Who is refused at the next boot, by each that says so.
WATCHED = """
printf %s "$RULES" >"$CLOSED"
sh -c "$WATCH" &
until nft list table inet credential_agent_closed >&2; do :; done
until test -e "$GATES"; do :; done
nft list set inet credential_agent_closed worker_uids | tr -d " \n" | sed -n "s/.*elements={\\([^}]*\\).*/\\1/p"
"""
BOOTED = """
printf %s "$RULES" >"$CLOSED"
sh -c "$WATCH" closed "$MARK"
nft list set inet credential_agent_closed worker_uids | tr -d " \n" | sed -n "s/.*elements={\\([^}]*\\).*/\\1/p"
"""
# In one go, as quickly as can be: who hears of the flush finds the table there.
REPLACED = """
printf %s "$RULES" | nft -f -
sh -c "$WATCH" &
until test -e "$GATES"; do printf 'flush ruleset\n%s' "$RULES" | nft -f -; done
until nft list set inet credential_agent_closed worker_uids | grep -q elements; do :; done
nft list set inet credential_agent_closed worker_uids | tr -d " \n" | sed -n "s/.*elements={\\([^}]*\\).*/\\1/p"
"""
WITHOUT_NFT = """
SERVICE_RESULT=exit-code sh -c "$WATCH" closed "$MARK" >&2
ip rule | sed -n "s/.*to 169.254.169.254 iif lo uidrange \\(.*\\) goto 170.*/\\1/p" | paste -sd , | sed "s/\\b\\([0-9][0-9]*\\)-\\1\\b/\\1/g"
"""


def _said(
    directory: Path, script: str, *, patience: int = 10, unit: str = "watch", line: str = "ExecStart=", **env: str
) -> subprocess.CompletedProcess[str]:
    """What the script says beside what watches, or with another unit's words."""
    text = (ROOT / f"systemd/credential-agent-{unit}.service").read_text()
    (words,) = re.findall(rf"^{re.escape(line)}/bin/sh -c '(.*?)'[^']*$", text, re.MULTILINE | re.DOTALL)
    for written, meant in (
        ("\\\n", " "),
        ("\\\\", "\\"),
        ("$$", "$"),
        ("%%", "%"),
        ("/run/credential-agent-redirect", str(directory)),
        ("/etc/credential-agent/closed.nft", str(directory / "closed.nft")),
        ("/etc/credential-agent/closed.d/workers", str(directory / "workers")),
        ("timeout -k 1 10", f"timeout -k 1 {patience}"),
    ):
        words = words.replace(written, meant)
    manager = directory / "systemctl"
    manager.write_text('#!/bin/sh\ntouch "$GATES"\n')
    manager.chmod(0o755)
    path = f"{directory}:/usr/sbin:/usr/bin:/sbin:/bin"
    return subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", script],
        env={
            "PATH": path,
            "RULES": nft.refusal(),
            "WATCH": words,
            "CLOSED": str(directory / "closed.nft"),
            "GATES": str(directory / "gates"),
            "MARK": str(directory / "unroutable"),
            **env,
        },
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.skipif(leftovers.unified() is None, reason="needs control groups of version 2")
def test_what_is_kept_refuses_whatever_became_of_a_slice(tmp_path: Path) -> None:
    """A slice that was stopped hinders no copy, and one that is made anew is refused in it by its new number."""
    unified = leftovers.unified()
    assert unified is not None
    with leftovers.group(f"watched{os.getpid()}.slice") as group:
        done = _said(tmp_path, SCRIPT, GROUP=str(Path(group.name).relative_to(unified)))
    said = ["kept without a group", "kept with it", "kept all the while", "kept with another of that name"]
    assert done.stdout.splitlines() == said, done.stderr


@pytest.mark.parametrize("shell", ["sh", "bash --posix"])
def test_gates_that_come_before_the_copy_is_there_wait_for_nothing(tmp_path: Path, shell: str) -> None:
    """Whoever owns it may be slow to load it, or hang: the next gate ends it only where it has ended itself."""
    slow = tmp_path / "nft"
    slow.write_text(HELD_UP)
    slow.chmod(0o755)
    done = _said(tmp_path, BESIDE, MAY=str(tmp_path / "may"), KEPT=str(tmp_path / "kept.nft"), SHELL=shell)
    assert done.stdout.splitlines() == ["heard", "kept", "kept by another"], done.stderr


def test_an_nft_that_hangs_is_not_waited_for_when_another_can_be_used(tmp_path: Path) -> None:
    """What watches asks anew after a while: nobody refuses workers while it waits."""
    hung = tmp_path / "nft"
    hung.write_text(HANGS_ONCE)
    hung.chmod(0o755)
    done = _said(tmp_path, MENDED, patience=1, ASKED=str(tmp_path / "asked"))
    assert done.stdout.splitlines() == ["closed"], done.stderr


@pytest.mark.parametrize(
    "by",
    [(WATCHED, "watch", "ExecStart="), (BOOTED, "closed", "ExecStart="), (WITHOUT_NFT, "closed", "ExecStopPost=+")],
    ids=["watch", "boot", "without nft"],
)
@pytest.mark.parametrize(
    ("written", "refused"),
    [
        *((None, ""), ("", ""), ("700\n33-34\nnonsense\n", "33-34,700")),
        *((Path("/proc/self/mem"), "1-999,4294967294"), (Path("workers"), "1-999,4294967294")),
    ],
    ids=["absent", "empty", "some", "refused", "not found out"],
)
def test_who_was_a_worker_is_anybody_where_the_disk_does_not_say_it(
    tmp_path: Path, by: tuple[str, str, str], written: str | Path | None, refused: str
) -> None:
    """A file that is not there names nobody; one that cannot be read may name any user of the system's."""
    if isinstance(written, Path):
        (tmp_path / "workers").symlink_to(written)  # its first page cannot be read (EIO); it leads to itself (ELOOP)
    elif written is not None:
        (tmp_path / "workers").write_text(written)
    script, unit, line = by
    done = _said(tmp_path, script, unit=unit, line=line)
    assert sorted(done.stdout.strip().split(",")) == sorted(refused.split(",")), done.stderr


def test_what_a_flush_took_is_put_back_where_another_has_loaded_the_table_again(tmp_path: Path) -> None:
    """The drop-in of nftables.service may be first, or the file that it loads: the gates and who was a worker are not in that."""
    (tmp_path / "workers").write_text("700\n")
    (tmp_path / "closed.nft").write_text(nft.refusal())
    assert _said(tmp_path, REPLACED).stdout.strip() == "700"
