"""The .rpm, installed, upgraded, refused, downgraded and erased by rpm itself while workers ask.

rpm hands its scripts other arguments than dpkg, in another order: at an upgrade the new package's run before the files of the
one before are gone. No mirror of an rpm-based distribution can be reached from here, so the machine is a Debian that rpm was
put on: what rpm does is real, what the distribution has (its names of packages, SELinux) is not there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import agent
from tests.system import machine as m
from tests.system.machine import Disk, Machine
from tests.system.test_boot import EC2, Sender
from tests.system.test_packages import BUILD, LOOK, NAME, REPOSITORY, Asking, build, of_this_source, working

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.xdist_group("install"),
    pytest.mark.skipif(m.missing() is not None, reason=str(m.missing())),
    pytest.mark.skipif(not (BUILD / "nfpm").exists(), reason="needs nfpm (make build-tools)"),
]

# What the distribution would have is Debian's here, of which rpm knows nothing.
RPM = ("rpm", "--force-debian", "--nodeps")

# Ends the service, and lets the package be built.
DOES_NOT_START = "import os\nif 'NOTIFY_SOCKET' in os.environ:\n    raise SystemExit(1)\n"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .rpm of this source."""
    (made,) = of_this_source(tmp_path_factory.getbasetemp()).glob("*.rpm")
    return made


def changed(place: Path, version: str, head: str) -> Path:
    """The .rpm of a source that has another version, and ``head`` in front of its `run`."""
    source = place / f"source-{version}"
    keep = shutil.ignore_patterns(".venv*", "build", ".*cache", ".git", "__pycache__", ".hypothesis", "tests")
    shutil.copytree(REPOSITORY, source, ignore=keep)
    init, run = source / "agent/__init__.py", source / "agent/cli/run.py"
    init.write_text(re.sub(r'(?m)^__version__ = ".*"$', f'__version__ = "{version}"', init.read_text()))
    future = "from __future__ import annotations\n"
    run.write_text(run.read_text().replace(future, future + head))
    (made,) = build(place / f"made-{version}", "--format", "rpm", source=source)
    return made


@pytest.fixture(scope="module")
def machine(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A worker without the agent, with three packages in /root."""
    sender, place = Sender(), tmp_path_factory.mktemp("machine")
    with closing(Disk(place / "disk", m.with_packages("rpm"))) as disk, m.ec2() as cloud:
        (disk.root / "etc/credential-agent/signers").mkdir(parents=True)
        sender.configure(disk.root, source="ec2-user-data", upstream=EC2)
        cloud.set_user_data(sender.seal())
        rpms = disk.root / "root/rpms"
        rpms.mkdir()
        shutil.copy(package, rpms / "now.rpm")
        for file, version, head in (("next", "9.0.0", ""), ("refused", "9.1.0", DOES_NOT_START)):
            shutil.move(changed(place, version, head), rpms / f"{file}.rpm")
        with Machine(disk, cloud) as machine:
            yield machine


def installed(machine: Machine) -> list[str]:
    """Every version that rpm has of it."""
    return machine.run("rpm", "-q", "--qf", "%{VERSION}\n", NAME, check=False).split()


def releases(machine: Machine) -> str:
    """What is below /opt."""
    return machine.run("ls", "/opt/credential-agent/releases")


def test_installed_on_a_running_machine_it_is_at_work(machine: Machine) -> None:
    """Without a boot: workers have the user's identity, and every file is as it was packed."""
    machine.run(*RPM, "--install", "/root/rpms/now.rpm", seconds=170)
    working(machine)
    assert installed(machine) == [agent.__version__]
    assert machine.run("rpm", "--verify", "--nodeps", NAME).strip() == ""


def test_nobody_notices_an_upgrade_or_a_downgrade(machine: Machine) -> None:
    """The new package's scripts run, then the old one's and the removal of its files: every request has its answer."""
    for file, version in (("next", "9.0.0"), ("now", agent.__version__)):
        with Asking(machine) as asking:
            machine.run(*RPM, "--upgrade", "--oldpackage", f"/root/rpms/{file}.rpm", seconds=170)
            working(machine)
        asking.missed_nothing()
        assert installed(machine) == [version]
        (left,) = releases(machine).split()
        assert f"-{version}-" in left


def test_a_release_that_does_not_start_leaves_the_one_before_at_work(machine: Machine) -> None:
    """The package counts as installed whatever its script says: rpm says so, and workers have the release before.

    The next package that is good puts everything right.
    """
    with Asking(machine) as asking:
        done = machine.result(*RPM, "--upgrade", "/root/rpms/refused.rpm", seconds=170)
        assert "the release before runs again" in done.stderr
        assert "scriptlet failed" in done.stderr
        working(machine)
    asking.missed_nothing()
    assert installed(machine) == ["9.1.0"]
    assert f"-{agent.__version__}-" in releases(machine)
    machine.run(*RPM, "--upgrade", "--oldpackage", "/root/rpms/next.rpm", seconds=170)
    working(machine)
    assert installed(machine) == ["9.0.0"]
    assert "-9.0.0-" in releases(machine)


def test_what_cannot_be_erased_is_at_work_again(machine: Machine) -> None:
    """The removal fails in the middle: rpm says so and keeps the package, and workers have their agent again."""
    held = "/etc/systemd/system-preset/50-credential-agent.preset"
    machine.run("mount", "--bind", held, held)  # nobody can take away what is mounted upon
    try:
        assert machine.result(*RPM, "--erase", NAME, seconds=170).returncode != 0
    finally:
        machine.run("umount", held)
    working(machine)
    assert installed(machine) == ["9.0.0"]


def test_where_the_install_script_was_nothing_is_unpacked(machine: Machine) -> None:
    """The package refuses before a file of it is there, and the removal of what did not come takes nothing off."""
    machine.run(*RPM, "--erase", NAME, seconds=170)
    shutil.copytree(m.payload(), machine.root / "root/payload", symlinks=False, dirs_exist_ok=True)
    machine.run("/root/payload/install.sh", "--no-packages", seconds=170)
    done = machine.result(*RPM, "--install", "/root/rpms/now.rpm", seconds=170)
    assert done.returncode != 0
    assert "install.sh uninstall" in done.stderr
    assert machine.result("rpm", "-q", NAME).returncode != 0
    working(machine)
    machine.run("/root/payload/install.sh", "uninstall", seconds=170)


def test_erased_it_leaves_the_configuration_alone(machine: Machine) -> None:
    """No unit, rule, process or program; what a person wrote stays, and the machine's own identity answers."""
    machine.run(*RPM, "--install", "/root/rpms/now.rpm", seconds=170)
    working(machine)
    machine.run(*RPM, "--erase", NAME, seconds=170)
    look = machine.run(m.release().python, "-c", f"{LOOK}\nprint(look())", uid=m.WORKER_UID)
    assert look.strip() == m.MACHINE_KEY
    assert machine.run("cat", "/etc/credential-agent/config.toml")
    assert machine.result("pgrep", "-f", "credential.agent").stdout == ""
    for where in ("nft list ruleset", "ip address", "systemctl list-unit-files"):
        assert "credential-agent" not in machine.run("sh", "-c", where), where
    assert (
        machine.run("sh", "-c", "ls -d /opt/credential-agent /usr/lib/credential-agent 2>&1 || true").count("No such")
        == 2
    )


STUB = """
name: stub
arch: amd64
version: 1.0.0
description: what a distribution has
maintainer: nobody <nobody@example.invalid>
provides: [nftables, iproute, systemd, util-linux, shadow-utils]
contents:
  - src: /etc/hostname
    dst: /usr/bin/{python}
"""


@pytest.mark.skipif(shutil.which("rpm") is None, reason="needs rpm (apt-get install rpm)")
def test_any_python_that_it_has_modules_for_will_do(package: Path, tmp_path: Path) -> None:
    """The requirement is read as it is meant: one of three programs. Where there is another only, it installs nothing."""
    said = {}
    for python in ("python3.10", "python3.11", "python3.12", "python3.13"):
        root, config = tmp_path / f"root-{python}", tmp_path / f"{python}.yaml"
        root.mkdir()
        config.write_text(STUB.format(python=python))
        stub = tmp_path / f"{python}.rpm"
        subprocess.run(
            [BUILD / "nfpm", "package", "--config", config, "--target", stub], check=True, capture_output=True
        )
        rpm = ["rpm", "--root", str(root), "--force-debian", "--test", "--install", str(stub), str(package)]
        said[python] = subprocess.run(rpm, capture_output=True, text=True, check=False).stderr
    assert "is needed by credential-agent" in said.pop("python3.10")
    assert set(said.values()) == {""}
