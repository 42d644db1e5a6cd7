"""From the release before, in which one unit answered workers and had the keys, and back to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.system import machine as m
from tests.system.looping import PROGRAM
from tests.system.machine import Disk, Machine
from tests.system.test_boot import EC2, Sender
from tests.system.test_rollback import INSTALL, break_release, working
from tests.system.test_serve_boot import AGENT, NO_BOUND, SERVE, clients

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("install")]

image = m.image
FORMER = m.REPOSITORY / "tests/vectors/units"
"""The units that have changed, as they were."""
UNITS = "/etc/systemd/system"
WAY = "credential-agent-serve.socket"


@pytest.fixture(scope="module")
def machine(image: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    sender = Sender()
    with closing(Disk(tmp_path_factory.mktemp("former"), image)) as disk, m.ec2() as cloud:
        sender.configure(disk.root, source="ec2-user-data", upstream=EC2, extra=NO_BOUND)
        cloud.set_user_data(sender.seal())
        shutil.copytree(m.payload(), disk.root / "payload", dirs_exist_ok=True)
        shutil.copytree(FORMER, disk.root / "root/former")
        shutil.copy(PROGRAM, disk.root / "opt/loop.py")
        shutil.copytree(FORMER, disk.root / UNITS.lstrip("/"), dirs_exist_ok=True)
        for name in (SERVE, WAY, f"{SERVE}.d"):
            path = disk.root / UNITS.lstrip("/") / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with Machine(disk, cloud) as machine:
            yield machine


def answer_in(machine: Machine, unit: str) -> None:
    """Who answers, and who stands by, are of that unit."""

    def groups() -> list[str]:
        servers = machine.status()["servers"]
        return [machine.run("cat", f"/proc/{one['pid']}/cgroup").strip() for one in servers if len(servers) == 2]

    found = machine.until(groups, what="one that answers, and one that stands by")
    assert all(group.endswith(f"/{unit}") for group in found), found


def is_one_unit(machine: Machine) -> None:
    """The agent answers, and nothing runs beside it."""
    assert machine.result("systemctl", "is-active", AGENT, SERVE).stdout.split() == ["active", "inactive"]
    assert machine.result("pgrep", "-u", "credential-agent-serve").stdout == ""
    answer_in(machine, AGENT)


def are_two_units(machine: Machine) -> None:
    """The agent has the keys, and the other answers."""
    assert machine.result("systemctl", "is-active", AGENT, SERVE).stdout.split() == ["active", "active"]
    answer_in(machine, SERVE)


def test_an_upgrade_that_does_not_start_leaves_nothing_of_the_new_unit(machine: Machine) -> None:
    """The one unit answers again, with the sockets that it had; of the other there is no file and no process."""
    working(machine)
    is_one_unit(machine)
    done = machine.result("sh", "-c", f"{INSTALL} --wheel {break_release(machine, 'the agent exits')}", seconds=170)
    assert done.returncode == 1
    assert "the release before runs again" in done.stderr
    working(machine)
    is_one_unit(machine)
    assert "serve" not in machine.run("ls", "-R", UNITS)


def test_an_upgrade_loses_no_request(machine: Machine) -> None:
    """Under 32 clients: not one call fails, of those neither that try nothing twice; nobody has another identity."""
    sockets = machine.run("ss", "-Hltne", "sport = :16925")
    with clients(machine) as ends:
        machine.run("sh", "-c", INSTALL, seconds=170)
    for kind, end in ends:
        assert set(end["keys"]) == {m.USER_KEY}, (kind, end)
        assert end["failed"] == {}, (kind, end)
    working(machine)
    are_two_units(machine)
    numbers = [sorted(word for line in said.splitlines() for word in line.split() if word.startswith("ino:"))
               for said in (sockets, machine.run("ss", "-Hltne", "sport = :16925"))]  # fmt: skip
    assert numbers[0] == numbers[1], "the sockets are the same"


def test_a_downgrade_works_and_so_does_the_next_boot(machine: Machine) -> None:
    """As the install script of that release does it, which knows nothing of the new unit: the one unit answers again."""
    changed = [path.name for path in FORMER.iterdir() if path.suffix == ".socket"]
    machine.run("sh", "-c", f"cp /root/former/* {UNITS}/; systemctl daemon-reload")
    machine.run("systemctl", "restart", "credential-agent-redirect.service")
    for name in changed:
        # Our new unit ends with a socket; an agent that has not heard of its own stop yet asks for that at once, and systemd
        # gives up the stop for it. That script says it once; who is at the machine says it again.
        if machine.result("systemctl", "stop", AGENT, name).returncode:
            machine.run("systemctl", "stop", AGENT, name)
    machine.run("systemctl", "start", "credential-agent-courier.socket", *changed)
    machine.run("systemctl", "restart", AGENT)
    machine.run("systemctl", "start", "credential-agent.target")
    working(machine)
    is_one_unit(machine)
    machine.shut_down()
    machine.boot()
    working(machine)
    is_one_unit(machine)


def test_and_forward_again(machine: Machine) -> None:
    """What the downgrade has left is in nobody's way."""
    machine.run("sh", "-c", INSTALL, seconds=170)
    working(machine)
    are_two_units(machine)
    machine.run("sh", "-c", f"{INSTALL.split(maxsplit=1)[0]} uninstall --purge")
    assert "credential-agent" not in machine.run("sh", "-c", "getent passwd; getent group; ls /etc/systemd/system /run")
