"""An upgrade that does not start is undone: the release before works on, as if nobody had tried."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.system import machine as m
from tests.system.machine import Disk, Machine
from tests.system.test_boot import EC2, Sender, aws_key

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("install")]

image = m.image

SOCKETS = (
    "credential-agent.socket",
    "credential-agent-ipv6.socket",
    "credential-agent-control.socket",
    "credential-agent-courier.socket",
)
UNITS = ("credential-agent.service", "credential-agent-redirect.service", "credential-agent-watch.service")
INSTALL = "/payload/install.sh --no-packages --platform none"
ETC = "/etc/credential-agent"

# How a release can fail when its check of the configuration was content: the module, and what it does instead.
BROKEN = {
    "the agent exits": ("agent/cli/run.py", "raise SystemExit(1)"),
    "the agent is killed": ("agent/cli/run.py", "import os\nos.kill(os.getpid(), 9)"),
    "the holder of the rules exits": ("agent/host/hold.py", "raise SystemExit(1)"),
}


@pytest.fixture(scope="module")
def machine(image: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    sender = Sender()
    with closing(Disk(tmp_path_factory.mktemp("rollback"), image)) as disk, m.ec2() as cloud:
        sender.configure(disk.root, source="ec2-user-data", upstream=EC2)
        cloud.set_user_data(sender.seal())
        shutil.copytree(m.payload(), disk.root / "payload", dirs_exist_ok=True)
        with Machine(disk, cloud) as machine:
            yield machine


def break_release(machine: Machine, how: str) -> str:
    """A wheel of the same version, in which one module is another; its name inside."""
    (wheel,) = (machine.root / "payload").glob("credential_agent-*.whl")
    module, text = BROKEN[how]
    broken = machine.root / "root" / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(broken, "w") as new:
        for name in old.namelist():
            new.writestr(name, text.encode() if name == module else old.read(name))
    return f"/root/{wheel.name}"


def seen(machine: Machine) -> str:
    """What an installation writes, with modes, owners and digests."""
    places = f"{ETC} /etc/systemd/system /etc/hosts /opt/credential-agent/current /opt/credential-agent/bin"
    return machine.run(
        "sh", "-c",
        f"cd /; find {places} -printf '%p %M %u %g %l\\n' | sort; find {places} -type f -exec sha256sum {{}} + | sort;"
        " ls /opt/credential-agent/releases",
    )  # fmt: skip


def working(machine: Machine) -> None:
    """Workers have their credential, and no process of a release that is gone is left."""
    machine.until(lambda: aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY, what="an answer")
    machine.until(lambda: machine.in_slice(*m.python(m.AWS)).strip() == m.USER_KEY, what="the slice's answer")
    machine.until(
        lambda: machine.result("systemctl", "is-active", *UNITS, *SOCKETS).stdout.split() == ["active"] * 7,
        what="all units at work",
    )
    assert machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "credential*").strip() == ""
    machine.succeeds("credential-agent", "status")
    maps = machine.run("sh", "-c", "cat /proc/[0-9]*/maps 2>/dev/null; true")
    assert not [line for line in maps.splitlines() if "/opt/credential-agent" in line and "(deleted)" in line]


def handed_over(machine: Machine) -> int:
    """How many times an agent took over what the one before had."""
    log = machine.run("journalctl", "--no-pager", "-o", "cat", "-u", "credential-agent")
    return log.count("credentials.restored")


def with_another_socket(machine: Machine) -> None:
    """At work with a socket that is not the one of the release here."""
    endpoint = "/etc/systemd/system/credential-agent.socket"
    machine.run("sh", "-c", f"sed -i 's/^Backlog=4096/Backlog=4095/' {endpoint}; systemctl daemon-reload")
    machine.run("systemctl", "stop", "credential-agent.service", *SOCKETS)
    machine.run("systemctl", "start", "credential-agent.target")
    working(machine)


@pytest.mark.parametrize("how", BROKEN)
def test_a_release_that_does_not_start_is_undone(machine: Machine, how: str) -> None:
    """Not a byte differs, the configuration that came with it is gone, and workers keep the credential that nobody renews."""
    working(machine)
    before, restored = seen(machine), handed_over(machine)
    machine.run("sh", "-c", f"(cat {ETC}/config.toml; echo '[redirect]'; echo 'units = []') > /root/new.toml")
    wheel = break_release(machine, how)
    inside = ("ip", "netns", "exec", machine.cloud.here, "nft")
    m.call(*inside, "add table inet dark { chain input { type filter hook input priority 0; tcp dport 80 drop; }; }")
    try:
        done = machine.result("sh", "-c", f"{INSTALL} --wheel {wheel} --config /root/new.toml", seconds=170)
        assert done.returncode == 1, done.stderr
        assert "the release before runs again" in done.stderr
        assert seen(machine) == before
        assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY
        assert handed_over(machine) > restored, "what was minted was lost on the way"
    finally:
        m.call(*inside, "delete table inet dark")
    working(machine)


def test_one_whose_sockets_are_others_is_undone(machine: Machine) -> None:
    """Back to the sockets before, which the new ones stood in the way of; and forward again."""
    with_another_socket(machine)
    before = seen(machine)
    wheel = break_release(machine, "the agent exits")
    done = machine.result("sh", "-c", f"{INSTALL} --wheel {wheel}", seconds=170)
    assert done.returncode == 1
    assert "does not start" in done.stderr
    assert seen(machine) == before
    working(machine)
    machine.run("sh", "-c", INSTALL, seconds=170)
    assert seen(machine) != before
    working(machine)


def test_one_whose_unit_was_masked_and_unmasked_is_undone(machine: Machine) -> None:
    """Of what has no unit of that name any more all the rest is at work again, and nothing was opened."""
    unit, kept = "/etc/systemd/system/credential-agent.service", "/root/kept.service"
    wheel = break_release(machine, "the agent exits")
    machine.run("sh", "-c", f"mv {unit} {kept}; systemctl daemon-reload")
    try:
        before = seen(machine)
        done = machine.result("sh", "-c", f"{INSTALL} --wheel {wheel}", seconds=170)
        assert done.returncode == 1
        assert seen(machine) == before
        assert "nothing was installed" not in done.stderr
        assert machine.run(*m.python(m.CONNECT), "169.254.169.254", "80", uid=m.WORKER_UID).strip() != "other"
    finally:
        machine.run("sh", "-c", f"mv {kept} {unit}; systemctl daemon-reload; systemctl start credential-agent.target")
    working(machine)


def test_a_socket_that_could_not_be_made_is_made_by_the_next(machine: Machine) -> None:
    """It hinders no installation: the agent ran without couriers, and beside it their socket could not be made anew."""
    courier, path = SOCKETS[-1], "/run/credential-agent-courier.sock"
    machine.run("sh", "-c", f"systemctl stop credential-agent.service {courier}; mkdir {path}")
    machine.run("sh", "-c", f"systemctl start credential-agent.service; rmdir {path}; systemctl reset-failed {courier}")
    assert machine.result("systemctl", "start", courier).returncode != 0
    machine.run("sh", "-c", INSTALL, seconds=170)
    working(machine)


def test_one_that_was_killed_is_finished_by_the_next(machine: Machine) -> None:
    """It had put its units in place and started nothing: the sockets that the next one leaves are those of the new units."""
    pages, kept = (machine.root / "payload/pages" / name for name in ("pages.py", "kept"))
    listening = ("ss", "-Hltn", "src 127.0.0.1:16925")
    with_another_socket(machine)
    assert machine.run(*listening).split()[2] == "4095"
    pages.rename(kept)
    pages.write_text("import os\nos.kill(os.getppid(), 9)\n")
    try:
        assert machine.result("sh", "-c", INSTALL, seconds=170).returncode == 128 + 9
    finally:
        kept.rename(pages)
    machine.run("sh", "-c", INSTALL, seconds=170)
    working(machine)
    assert machine.run(*listening).split()[2] == "4096"


def test_a_first_installation_that_does_not_start_leaves_nothing_at_work(machine: Machine) -> None:
    """No unit, rule, address or process, and no file but state: the machine is as open as before."""
    machine.run(
        "sh",
        "-c",
        "cp -a /etc/credential-agent/config.toml /etc/credential-agent/signers /root/; /payload/install.sh uninstall --purge",
    )
    wheel = break_release(machine, "the agent exits")
    given = "--config /root/config.toml --signer /root/signers/control.pub.jwk"
    done = machine.result("sh", "-c", f"{INSTALL} {given} --wheel {wheel}", seconds=170)
    assert done.returncode == 1
    assert "does not start" in done.stderr
    assert machine.result("pgrep", "-f", "credential.agent").stdout == ""
    for where in (
        "nft list ruleset",
        "ip address",
        "systemctl list-units --all --plain --no-legend",
        "ls /etc /etc/systemd/system",
    ):
        said = machine.run("sh", "-c", where)
        said = said.replace(r"\x2d", "-")
        assert "credential-agent" not in said, (where, said)
        assert "credential_agent" not in said
        assert "169.254.171.2" not in said
