"""The tests' own machines: two at once do not touch each other, and a killed run leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.system import leftovers
from tests.system import machine as m
from tests.system.machine import REPOSITORY, Disk, Machine

image = m.image

MAKE = """
import subprocess, sys, time
from pathlib import Path
from tests.system import leftovers
name, place = sys.argv[1:]
claims = [leftovers.Claim("netns", name), leftovers.Claim("mount", place), leftovers.group(name)]
subprocess.run(["ip", "netns", "add", name], check=True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
group = Path(claims[2].name)
(group / "inner").mkdir()
sleep = subprocess.Popen(["sh", "-c", f"echo $$ > {group}/inner/cgroup.procs; exec sleep 1000 >&2"])
while "populated 0" in (group / "cgroup.events").read_text():
    time.sleep(0.01)
print(group, flush=True)
sys.stdin.read()
for claim in claims:
    claim.release()
"""


@pytest.mark.root
@pytest.mark.skipif(m.missing() is not None, reason=m.missing() or "")
@pytest.mark.xdist_group("leftovers")
def test_what_a_killed_run_made_goes_with_the_next_and_nothing_else(tmp_path: Path) -> None:
    """By whose lock it is, not by its name or age: what a run that lives has made stays, and goes with its end."""

    def make(name: str) -> tuple[subprocess.Popen[str], Path, Path, Path]:
        place = tmp_path / name
        place.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", MAKE, name, str(place)],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        return process, Path("/run/netns", name), place, Path(process.stdout.readline().strip())

    def there(netns: Path, place: Path, group: Path) -> list[bool]:
        return [netns.exists(), place.is_mount(), group.is_dir()]

    token = tmp_path.name[-8:].replace("_", "")
    dead, *things = make(f"cadead{token}")
    alive, *others = make(f"calive{token}")
    assert there(*things) == [True, True, True]
    try:
        dead.kill()
        dead.communicate(timeout=20)
        assert dead.returncode == -signal.SIGKILL
        leftovers.sweep()
        assert there(*things) == [False, False, False]
        assert there(*others) == [True, True, True]
    finally:
        alive.communicate("", timeout=20)
        leftovers.sweep()
    assert there(*others) == [False, False, False]


@pytest.mark.root
@pytest.mark.skipif(m.missing() is not None, reason=m.missing() or "")
@pytest.mark.xdist_group("leftovers")
def test_a_mount_that_pytest_has_moved_goes_too(tmp_path: Path) -> None:
    """Of a killed run, whose directory a later one has renamed to remove it: its claim says where it was."""
    made, moved = (tmp_path / "pytest-of-root" / name for name in ("pytest-0", "garbage-0"))
    (made / "root").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", made / "root"], check=True)
    made.rename(moved)
    try:
        assert (moved / "root").is_mount()
        leftovers.sweep()
        assert not (moved / "root").is_mount()
    finally:
        subprocess.run(["umount", "--quiet", "--lazy", moved / "root"], check=False)


@pytest.mark.root
@pytest.mark.skipif(m.missing() is not None, reason=m.missing() or "")
def test_what_a_killed_run_left_mounted_fails_no_other_run(tmp_path: Path) -> None:
    """Pytest removes old directories at its end, and finds one busy: a run whose tests passed has passed."""
    old = tmp_path / "pytest-of-root"
    old.mkdir(mode=0o700)
    for number in range(5):
        (old / f"pytest-{number}/root").mkdir(parents=True)
    test = tmp_path / "test_it.py"
    test.write_text("def test_it(tmp_path): pass\n")
    mounted = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs tmpfs "$0"; exec "$@"', str(old / "pytest-0/root")]
    run = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(REPOSITORY / "pyproject.toml"), str(test)]
    done = subprocess.run(
        [*mounted, sys.executable, *run],
        cwd=REPOSITORY, env={**os.environ, "PYTEST_DEBUG_TEMPROOT": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "error removing" in done.stdout + done.stderr


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.xdist_group("boot")
def test_two_machines_at_once_keep_apart(image: Sequence[Path], tmp_path: Path) -> None:
    """Each boots, restarts its units and goes, and the other's processes are the same as before."""
    with ExitStack() as opened:
        machines = []
        for name in ("first", "second"):
            disk = opened.enter_context(closing(Disk(tmp_path / name, image)))
            cloud = opened.enter_context(m.ec2())
            machines.append(opened.enter_context(Machine(disk, cloud)))
        first, second = machines
        show = ("systemctl", "show", "-P", "MainPID", "credential-agent", "dbus", "systemd-journald")
        before = second.run(*show)
        first.run("systemctl", "restart", "systemd-journald", "credential-agent.target", "credential-agent.service")
        first.run("systemctl", "daemon-reexec", check=False)
        first.shut_down()
        assert second.run(*show) == before
        assert second.run("sh", "-c", "cat /proc/1/cgroup").strip().endswith("::/init.scope")
