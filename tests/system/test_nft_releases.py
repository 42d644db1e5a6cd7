"""Our rules by the nft of each Debian release that we name, which CI's own may be older or newer than."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent.host import enforcing, nft, nft_text, ranges
from agent.host.bounds import Bounds
from tests.system import machine as m

RELEASES = ("bookworm", "trixie")
WORKERS = nft.Workers(((1000, 1999), (3000, ranges.MAX_UID - 1)), (), ("docker0", "br-*"), ("lxdbr0", "v*"))
RULES: Mapping[str, str] = {
    "closed": nft.refusal(),
    "led": nft.ruleset(WORKERS, port=16925, agent_uid=998, bounds=Bounds(1024, 50)),
    "led by nothing": nft.refusal() + nft_text.emptied(nft.TABLE, enforcing.LEADING),
    "refused": nft.ruleset(WORKERS, port=16926, agent_uid=998, closed=True),
    "removed": nft.removal(),
}

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(m.missing() is not None, reason=str(m.missing())),
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (util-linux)"),
]


def root_with_nft(suite: str) -> Path:
    """A directory with that release's nft and what it links against; nothing is booted or configured."""
    root = m.cache() / f"nft-and-sed-{suite}"
    if (root / ".complete").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    for name in ("lists/partial", "archives/partial", "root"):
        (root / name).mkdir(parents=True)
    release = m.RELEASES[suite]
    mirror = m.mirror(release.keyring) or "http://deb.debian.org/debian"
    (root / "sources").write_text(f"deb [signed-by={release.keyring}] {mirror} {suite} main\n")
    (root / "status").touch()
    apt = ["apt-get", "--quiet", "--yes", "-o", "APT::Sandbox::User=root", "-o", f"Dir::State::lists={root}/lists",
           "-o", f"Dir::State::status={root}/status", "-o", f"Dir::Cache::archives={root}/archives",
           "-o", f"Dir::Cache::pkgcache={root}/p.bin", "-o", f"Dir::Cache::srcpkgcache={root}/s.bin",
           "-o", f"Dir::Etc::sourcelist={root}/sources", "-o", "Dir::Etc::sourceparts=-"]  # fmt: skip
    m.call(*apt, "update")
    m.call(*apt, "install", "--download-only", "--no-install-recommends", "nftables", "dash", "coreutils", "sed")
    for package in (root / "archives").glob("*.deb"):
        tree = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
        # Into links that lead elsewhere below it (/lib to /usr/lib), not over them.
        subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", root / "root"], input=tree, check=True)
    for name in ("lib", "lib64", "bin", "sbin"):  # no base-files was asked to merge them
        usual = root / "root" / name
        if not usual.exists() and (root / "root/usr" / name).exists():
            usual.symlink_to(f"usr/{name}")
    (root / "root/dev").mkdir(exist_ok=True)
    (root / "root/dev/null").touch()  # what the shell's jobs read
    (root / ".complete").touch()
    return root


@pytest.mark.parametrize("suite", RELEASES)
def test_the_nft_of_every_release_takes_our_rules(suite: str) -> None:
    """Whatever was there before, each script loads, ours and the copy that its loader owns; and what the watch asks is known."""
    root = root_with_nft(suite) / "root"
    inside = ("unshare", "--net", "chroot", root, "sh", "-ec")
    for first in RULES.values():
        for then in RULES.values():
            # One process for each nft: tables with an owner are gone with it, as when the holder is killed.
            for script in (then, nft.held(then)) if then != RULES["removed"] else (then,):
                m.call(*inside, 'printf %s "$1" | nft -f -; printf %s "$2" | nft -f -; printf %s "$2" | nft -f -',
                       "sh", first, script)  # fmt: skip
    unit = (m.REPOSITORY / "systemd/credential-agent-watch.service").read_text()
    (watch,) = re.findall(r"(nft monitor [a-z ]+?) 2>", unit)
    changing = f"{watch} & watch=$!; while kill -0 $watch; do nft 'add table inet x; add chain inet x y'; nft delete table inet x; done"
    with subprocess.Popen([*inside, changing], stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith("delete chain inet x y") for line in process.stdout)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


#: What credential-agent-watch.service does to have a copy of the closed table, in the same words.
KEEPS = """
printf %s "$1" | nft -f -
copy() {
  { echo "add table inet credential_agent_closed_kept { flags owner; }"; echo "delete table inet credential_agent_closed_kept"
    echo "table inet credential_agent_closed_kept {"; echo "flags owner;"
    nft -s list table inet credential_agent_closed | sed "1d; /cgroupv2 level [0-9]* [0-9]/d"; } > /kept.nft
  echo 'include "/kept.nft"' >&3; }
rm -f /kept; mkfifo /kept; exec 3<>/kept
nft -i </kept >/dev/null 2>&1 3>&- &
copy
tried=0
until nft list table inet credential_agent_closed_kept >/dev/null 2>&1; do tried=$((tried + 1)); test $tried -lt 1000; done
nft add chain inet credential_agent_closed later
copy
until nft list chain inet credential_agent_closed_kept later >/dev/null 2>&1; do tried=$((tried + 1)); test $tried -lt 2000; done
nft flush ruleset; nft list ruleset
exec 3>&-; wait
echo then:; nft list tables
"""


@pytest.mark.parametrize("suite", RELEASES)
def test_the_nft_of_every_release_keeps_a_copy_that_it_is_told_of(suite: str) -> None:
    """It takes commands from a pipe, reads its own listing, puts a copy in the place of its own, and that outlives a flush, and not itself."""
    root = root_with_nft(suite) / "root"
    said = m.call("unshare", "--net", "chroot", root, "sh", "-ec", KEEPS, "sh", RULES["refused"])
    kept, _, after = said.partition("then:")
    assert "table inet credential_agent_closed_kept" in kept
    assert "2000-2999" in kept  # what the configuration exempts
    assert "reject with tcp reset" in kept
    assert "kept" not in after
