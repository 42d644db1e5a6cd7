"""The packages on machines that boot: installed, upgraded, refused, downgraded, taken off and purged while workers ask.

They need what makes them (``make build-tools``), and are skipped without it. ``BOOT_SUITE`` names another release than
Debian 12 (tests/README.md): the package is the same.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Self

import click
import pytest

import agent
from tests.system import machine as m
from tests.system.machine import Disk, Machine
from tests.system.test_boot import EC2, Sender, aws_key

REPOSITORY = m.REPOSITORY
BUILD = REPOSITORY / ".venv-build"
NAME = "credential-agent"
BIN = Path(sys.executable).with_name(NAME)
UNITS = ("credential-agent.service", "credential-agent-redirect.service", "credential-agent-watch.service")

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.xdist_group("install"),
    pytest.mark.skipif(m.missing() is not None, reason=str(m.missing())),
    pytest.mark.skipif(not (BUILD / "nfpm").exists(), reason="needs nfpm (make build-tools)"),
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb"),
]


def build(target: Path, *arguments: str, source: Path = REPOSITORY, **environ: str) -> list[Path]:
    """What ``packer/package.sh`` makes of a source tree."""
    target.mkdir(exist_ok=True)
    subprocess.run(
        [source / "packer/package.sh", target, *arguments],
        env={**os.environ, "BUILD": str(BUILD), "NFPM": str(BUILD / "nfpm"), **environ},
        cwd=target,  # not the tree: what is around the script is what it makes
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return sorted(path for path in target.iterdir() if path.suffix in {".deb", ".rpm"})


@functools.cache
def of_this_source(place: Path) -> Path:
    """Where its packages are, made once for every module that installs them; nobody changes or moves them."""
    target = place / "packages-of-this-source"
    build(target)
    return target


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is made of this source."""
    return of_this_source(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def package(packages: Path) -> Path:
    """The .deb."""
    (made,) = packages.glob("*.deb")
    return made


def changed(package: Path, place: Path, version: str, *, module: str = "", text: str = "") -> Path:
    """The same package under another version, in which one module may be another: what the next release is to the last."""
    tree = place / f"tree-{version}"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text()))
    release = tree / "usr/lib/credential-agent/release"
    (release / ".release").write_text(f"credential_agent-{version}-{'0' * 12}\n")
    if module:
        (release / "site-packages" / module).write_text(text)
    made = place / f"{NAME}_{version}.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--build", tree, made], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return made


@pytest.fixture(scope="module")
def machine(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A worker on which the package was installed before its first boot, as an image is built."""
    sender, place = Sender(), tmp_path_factory.mktemp("machine")
    with closing(Disk(place / "disk", [m.base_image()])) as disk, m.ec2() as cloud:
        for name in m.sdk():
            shutil.copytree(name, disk.root / "opt/sdk" / name.name)
        (disk.root / "etc/credential-agent/signers").mkdir(parents=True)
        sender.configure(disk.root, source="ec2-user-data", upstream=EC2)
        cloud.set_user_data(sender.seal())
        debs = disk.root / "root/debs"
        debs.mkdir()
        shutil.copy(package, debs / "now.deb")
        for file, version, module, text in (
            ("next.deb", "9.0", "", ""),
            ("refused.deb", "9.1", "agent/cli/run.py", "raise SystemExit(1)"),
        ):
            shutil.move(changed(package, place, version, module=module, text=text), debs / file)
        m.in_tree(disk.root, "dpkg", "--install", "/root/debs/now.deb")
        with Machine(disk, cloud) as machine:
            yield machine


def version(machine: Machine) -> tuple[str, str]:
    """What dpkg says of it: its state, and its version."""
    state, number = machine.run("dpkg-query", "-W", "-f", "${db:Status-Abbrev};${Version}", NAME).split(";")
    return state.strip(), number


def working(machine: Machine) -> None:
    """Workers have their credential, every unit is at work, and nothing that runs is of a release that is gone."""
    machine.until(lambda: aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY, what="an answer")
    machine.until(
        lambda: machine.result("systemctl", "is-active", *UNITS).stdout.split() == ["active"] * 3, what="the units"
    )
    assert machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "credential*").strip() == ""
    maps = machine.run("sh", "-c", "cat /proc/[0-9]*/maps 2>/dev/null; true")
    assert not [line for line in maps.splitlines() if "/opt/credential-agent" in line and "(deleted)" in line]


# One look, as an SDK's: a token, the role, the credential.
LOOK = """
import json, urllib.request
def look():
    ask = urllib.request.Request("http://169.254.169.254/latest/api/token", method="PUT",
                                 headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    held = {"X-aws-ec2-metadata-token": urllib.request.urlopen(ask, timeout=20).read().decode()}
    base = "http://169.254.169.254/latest/meta-data/iam/security-credentials/"
    name = urllib.request.urlopen(urllib.request.Request(base, headers=held), timeout=20).read().decode()
    return json.load(urllib.request.urlopen(urllib.request.Request(base + name, headers=held), timeout=20))["AccessKeyId"]
"""

ASK = f"""{LOOK}
import collections, pathlib, time
end, seen = pathlib.Path("/tmp/asked-enough"), collections.Counter()
while not end.exists():
    try:
        seen[look()] += 1
    except Exception as error:
        seen[str(time.time()) + " " + repr(error)] += 1
    time.sleep(0.02)
print(json.dumps(seen))
"""


class Asking:
    """A worker that asks again and again while something is done: a token, the role, the credential, without a retry."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._seen: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._machine.run("rm", "-f", "/tmp/asked-enough")
        command = [*self._machine.enter(m.WORKER_UID), *m.python(ASK)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._machine.run("touch", "/tmp/asked-enough")
        self._seen = json.loads(self._process.communicate(timeout=60)[0])

    def missed_nothing(self) -> None:
        """Every answer was the user's credential, and there were some."""
        log = "journalctl --no-pager -o short-unix --since -3min -u 'credential-agent*' | tail -n 60"
        assert set(self._seen) == {m.USER_KEY}, f"{self._seen}\n{self._machine.run('sh', '-c', log)}"
        assert self._seen[m.USER_KEY] > 10


def test_a_machine_boots_with_what_the_package_brought(machine: Machine) -> None:
    """Installed where nothing runs, it is at work after the boot, and everything it brought is the package manager's."""
    working(machine)
    assert version(machine)[0] == "ii"
    assert machine.run("dpkg", "--verify", NAME).strip() == ""
    assert machine.run("credential-agent", "check").strip()
    assert machine.run("readlink", "-f", "/usr/local/bin/credential-agent").startswith(
        "/opt/credential-agent/releases/"
    )


def test_nobody_notices_an_upgrade_or_a_downgrade(machine: Machine) -> None:
    """Every request while one release takes over from another has the user's credential, forward and back."""
    for file, number in (("next.deb", "9.0"), ("now.deb", None)):
        with Asking(machine) as asking:
            machine.run("dpkg", "--force-downgrade", "--install", f"/root/debs/{file}", seconds=170)
            working(machine)
        asking.missed_nothing()
        assert version(machine)[0] == "ii"
        assert number is None or version(machine)[1] == number
        (left,) = machine.run("ls", "/opt/credential-agent/releases").split()
        assert f"-{number or agent.__version__}-" in left


def test_a_file_of_the_version_before_is_not_in_the_next_release(machine: Machine) -> None:
    """An rpm is installed while the former version's files still lie among the new ones: none of them is taken for new."""
    stray = "/usr/lib/credential-agent/release/site-packages/gone"
    machine.run("install", "-D", "/dev/null", f"{stray}/gone.py")
    try:
        for file in ("next.deb", "now.deb"):
            machine.run("dpkg", "--force-downgrade", "--install", f"/root/debs/{file}", seconds=170)
            assert machine.run("find", "/opt/credential-agent", "-name", "gone*").strip() == ""
    finally:
        machine.run("rm", "-r", stray)
    working(machine)


def test_a_release_that_does_not_start_leaves_the_one_before_at_work(machine: Machine) -> None:
    """The package manager fails and says why, workers notice nothing, and a good package afterwards puts everything right."""
    with Asking(machine) as asking:
        done = machine.result("dpkg", "--install", "/root/debs/refused.deb", seconds=170)
        assert done.returncode != 0
        assert "the release before runs again" in done.stderr
        working(machine)
    asking.missed_nothing()
    assert version(machine)[0] == "iF"
    machine.run("dpkg", "--force-downgrade", "--install", "/root/debs/now.deb", seconds=170)
    assert version(machine)[0] == "ii"
    working(machine)


def test_a_configuration_that_is_refused_changes_nothing(machine: Machine) -> None:
    """An upgrade with a mistake in the configuration ends before anything runs anew."""
    config = "/etc/credential-agent/config.toml"
    machine.run("sh", "-c", f"cp -a {config} /root/kept.toml; echo 'nonsense = 1' >> {config}")
    done = machine.result("dpkg", "--install", "/root/debs/next.deb", seconds=170)
    assert done.returncode != 0
    assert "nonsense" in done.stderr
    machine.run("cp", "-a", "/root/kept.toml", config)
    assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY
    machine.run("dpkg", "--configure", NAME, seconds=170)
    assert version(machine) == ("ii", "9.0")
    working(machine)


def test_a_python_that_is_upgraded_is_taken_and_nobody_notices(machine: Machine) -> None:
    """The package manager tells the package of every change of a Python that it can use: the agent runs on what is there now.

    Not on the file that is gone, as a process does that nobody starts again.
    """
    ask = ("systemctl", "show", "--value", "--property=MainPID", "credential-agent.service")
    before, interpreter = machine.run(*ask), machine.run("readlink", "-f", m.PYTHON).strip()
    with Asking(machine) as asking:
        # As the upgrade of Debian's package does: another file under the same name.
        machine.run("sh", "-c", f"cp -a {interpreter} {interpreter}.new && mv {interpreter}.new {interpreter}")
        machine.run("dpkg-trigger", "--by-package=base-files", interpreter)
        machine.run("dpkg", "--triggers-only", "--pending", seconds=170)
        working(machine)
    asking.missed_nothing()
    assert version(machine)[0] == "ii"
    assert machine.run(*ask) != before
    running = machine.run("readlink", f"/proc/{machine.run(*ask).strip()}/exe").strip()
    assert running == interpreter


def test_one_way_of_installing_does_not_undo_the_other(machine: Machine) -> None:
    """Where the package is, the install script by hand says so and changes nothing."""
    shutil.copytree(m.payload(), machine.root / "root/payload", symlinks=False, dirs_exist_ok=True)
    done = machine.result("/root/payload/install.sh", "--no-packages", seconds=170)
    assert done.returncode == 1
    assert "a package has installed it here" in done.stderr
    working(machine)


def test_what_cannot_be_taken_off_is_at_work_again(machine: Machine) -> None:
    """The removal fails in the middle: the package manager says so, and workers have their agent again."""
    held = "/etc/systemd/system-preset/50-credential-agent.preset"
    machine.run("mount", "--bind", held, held)  # nobody can take away what is mounted upon
    try:
        assert machine.result("dpkg", "--remove", NAME, seconds=170).returncode != 0
        working(machine)
        assert version(machine)[0][1] == "i"
    finally:
        machine.run("umount", held)
        machine.run("sh", "-c", f"echo {NAME} install | dpkg --set-selections")


def test_taken_off_it_keeps_what_is_not_its_own_and_purged_it_leaves_nothing(machine: Machine) -> None:
    """Removed: no unit, rule, process or program, but the configuration. Installed again: at work. Purged: nothing."""
    assert "--purge" not in machine.run(
        "sh", "-c", f"dpkg --remove {NAME} 2>&1", seconds=170
    )  # no option of dpkg's remove
    assert machine.run(m.release().python, "-c", f"{LOOK}\nprint(look())", uid=m.WORKER_UID).strip() == m.MACHINE_KEY
    assert machine.run("cat", "/etc/credential-agent/config.toml")
    assert machine.result("pgrep", "-f", "credential.agent").stdout == ""
    # Removed, and installed by hand since: to purge what is left of the package takes nothing from what runs.
    shutil.copytree(m.payload(), machine.root / "root/payload", symlinks=False, dirs_exist_ok=True)
    machine.run("/root/payload/install.sh", "--no-packages", seconds=170)
    machine.run("dpkg", "--purge", NAME, seconds=170)
    assert machine.run("cat", "/etc/credential-agent/config.toml")
    working(machine)
    machine.run("/root/payload/install.sh", "uninstall", seconds=170)
    machine.run("dpkg", "--install", "/root/debs/now.deb", seconds=170)
    working(machine)
    machine.run("dpkg", "--purge", NAME, seconds=170)
    assert machine.run("sh", "-c", "getent group | grep '^credential-' || true").strip() == ""
    for where in ("nft list ruleset", "ip address", "getent group", "getent passwd", "systemctl list-unit-files"):
        said = machine.run("sh", "-c", where)
        assert "credential-agent" not in said, (where, said)
        assert "credential_agent" not in said, (where, said)
    left = machine.run("sh", "-c", "find / -xdev -name '*credential*agent*' -not -path '/root/*' -not -path '/proc/*'")
    # The key is the operator's: it came there on another way than the package.
    kept = ("/var/log/", "/tmp/", "/etc/credstore/")
    assert [line for line in left.splitlines() if not line.startswith(kept)] == []


def test_each_command_has_its_page_and_each_shell_completes(package: Path, tmp_path: Path) -> None:
    """Manual pages that groff reads without a warning, none for a command that is not there; completions that ask for more."""
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    from agent.cli import cli

    there = {path.name.removesuffix(".1.gz") for path in (tmp_path / "usr/share/man/man1").iterdir()}
    assert {f"{NAME}-{name}" for name in cli.list_commands(click.Context(cli))} | {NAME} <= there
    for path in sorted((tmp_path / "usr/share/man/man1").iterdir()):
        text = gzip.decompress(path.read_bytes())
        assert b"..." not in text.split(b".SH SYNOPSIS")[0], path
        if shutil.which("groff"):
            read = subprocess.run(["groff", "-man", "-Tutf8", "-ww"], input=text, capture_output=True, check=True)
            assert read.stderr == b"", path
    bash = (tmp_path / "usr/share/bash-completion/completions/credential-agent").read_text()
    asked = (
        f"{bash}\nCOMP_WORDS=(credential-agent st) COMP_CWORD=1\n_credential_agent_completion {BIN}\necho $COMPREPLY"
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["status"], done.stderr
    assert (tmp_path / "usr/share/zsh/vendor-completions/_credential-agent").read_text().startswith("#compdef")
    assert "complete" in (tmp_path / "usr/share/fish/vendor_completions.d/credential-agent.fish").read_text()


def test_one_source_makes_the_same_bytes(packages: Path, tmp_path: Path) -> None:
    """A copy of the tree elsewhere, at another time, makes the same .deb and .rpm, and the list names what is locked."""
    copy = tmp_path / "elsewhere"
    keep = shutil.ignore_patterns(".venv*", "build", ".*cache", ".git", "__pycache__", ".hypothesis", "tests")
    shutil.copytree(REPOSITORY, copy, ignore=keep)
    asked = ["git", "-C", str(REPOSITORY), "log", "-1", "--format=%ct"]
    epoch = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    again = tmp_path / "made"
    build(again, source=copy, SOURCE_DATE_EPOCH=epoch)
    names = {path.name for path in packages.iterdir()}
    assert {Path(name).suffix for name in names} == {".deb", ".rpm", ".json", ""}
    assert {name for name in names if (packages / name).read_bytes() != (again / name).read_bytes()} == set()
    for line in (packages / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((packages / name).read_bytes()).hexdigest() == digest
    (listed,) = packages.glob("*.cdx.json")
    document = json.loads(listed.read_text())
    assert document["bomFormat"] == "CycloneDX"
    locked = re.findall(r"(?m)^([A-Za-z0-9_.-]+)==([^ ]+)", (REPOSITORY / "requirements/runtime.txt").read_text())
    assert {(c["name"].lower(), c["version"]) for c in document["components"]} >= {(n.lower(), v) for n, v in locked}
