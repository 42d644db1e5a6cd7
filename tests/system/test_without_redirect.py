"""Without the redirection, as `install.sh --no-redirect` leaves a machine: what starts there, and how one comes and goes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.system import machine as m
from tests.system.machine import Disk, Machine
from tests.system.test_boot import EC2, Sender, aws_key
from tests.system.test_rollback import INSTALL, break_release

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("install")]

image = m.image

LEADING = (
    "credential-agent-redirect*",
    "credential-agent-closed*",
    "credential-agent-watch*",
    "credential-agent-gate@*",
)
IN_ENVIRONMENT = ("runuser", "-u", "alice", "--", "credential-agent", "exec", "--", *m.python(m.AWS))


@pytest.fixture(scope="module")
def machine(image: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    sender = Sender()
    with closing(Disk(tmp_path_factory.mktemp("without"), image)) as disk, m.ec2() as cloud:
        sender.configure(disk.root, source="ec2-user-data", upstream=EC2)
        cloud.set_user_data(sender.seal())
        shutil.copytree(m.payload(), disk.root / "payload", dirs_exist_ok=True)
        with Machine(disk, cloud) as machine:
            machine.run("usermod", "-aG", "credential-workers", "alice")
            yield machine


def led(machine: Machine) -> None:
    """Workers have the bundle's identity without a word of anybody's."""
    machine.until(lambda: aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY, what="an answer")
    machine.until(lambda: machine.in_slice(*m.python(m.AWS)).strip() == m.USER_KEY, what="the slice's answer")


def left_alone(machine: Machine) -> None:
    """Nothing of the redirection starts or is there, whatever starts; the agent is found by the environment."""
    machine.run("systemctl", "start", "credential-agent.target", "credential-agent-workers.slice")
    assert machine.in_slice(*m.python(m.AWS)).strip() == m.MACHINE_KEY
    assert aws_key(machine, uid=m.WORKER_UID) == m.MACHINE_KEY
    assert machine.run(*IN_ENVIRONMENT).strip() == m.USER_KEY
    states = "--state=active,activating,deactivating,reloading,failed"
    assert machine.run("systemctl", "list-units", "--all", states, "--plain", "--no-legend", *LEADING).strip() == ""
    wanted = machine.run(
        "systemctl", "list-dependencies", "--all", "--plain", "multi-user.target", "credential-agent-workers.slice"
    )
    assert "credential-agent.service" in wanted
    assert [line for line in wanted.split() if line.startswith(tuple(name.rstrip("*") for name in LEADING))] == []
    assert "credential_agent" not in machine.run("nft", "list", "tables")
    assert machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "credential*").strip() == ""
    machine.succeeds("credential-agent", "status")


def test_an_upgrade_without_it_leaves_no_rule_and_starts_none(machine: Machine) -> None:
    """On a machine whose workers were led: at once, after a start of everything, and after a boot."""
    led(machine)
    machine.run("sh", "-c", f"{INSTALL} --no-redirect", seconds=170)
    left_alone(machine)
    machine.shut_down()
    machine.boot()
    left_alone(machine)


def test_a_release_that_would_lead_and_does_not_start_leaves_none_either(machine: Machine) -> None:
    """Its rules were loaded when its agent failed: they are gone again."""
    machine.run("sh", "-c", f"{INSTALL} --no-redirect", seconds=170)
    done = machine.result("sh", "-c", f"{INSTALL} --wheel {break_release(machine, 'the agent exits')}", seconds=170)
    assert done.returncode == 1
    assert "the release before runs again" in done.stderr
    left_alone(machine)


def test_an_upgrade_with_it_leads_again(machine: Machine) -> None:
    """Also where a former release said in files of its own that there is none."""
    machine.run("sh", "-c", f"{INSTALL} --no-redirect", seconds=170)
    for unit in ("credential-agent.target", "credential-agent-workers.slice"):
        machine.run("sh", "-c", f"cd /etc/systemd/system; mkdir {unit}.d; echo [Unit] > {unit}.d/50-no-redirect.conf")
    machine.run("sh", "-c", INSTALL, seconds=170)
    led(machine)
    machine.shut_down()
    machine.boot()
    led(machine)
