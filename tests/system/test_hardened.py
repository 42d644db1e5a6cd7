"""Machines as hardening guides leave them, and other firewalls beside us: installed, booted, upgraded and taken off there.

One machine, in the order of the file. What can be executed, read and traced on it is narrowed before anything else
starts, at each boot; the install script is the repository's own, run by a root with a narrow umask from a directory that
nobody else may enter.

(Left out, since a container shares them with its host: ``kernel.yama.ptrace_scope`` and ``user.max_user_namespaces``.
Nobody on the machine can trace at all, and none of our units asks for a user namespace.)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.system import machine as m
from tests.system.machine import Disk, Machine
from tests.system.test_boot import EC2, Sender, aws_key

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("install")]

SOCKETS = (
    "credential-agent.socket",
    "credential-agent-ipv6.socket",
    "credential-agent-control.socket",
    "credential-agent-courier.socket",
)
UNITS = ("credential-agent.service", "credential-agent-redirect.service", "credential-agent-watch.service", *SOCKETS)
INSTALL = "/payload/install.sh --no-packages --platform none"

HARDEN = """#!/bin/sh -e
for place in /tmp /var/tmp /dev/shm /run /home; do
  mountpoint -q $place || mount --bind $place $place
  mount -o remount,bind,noexec,nosuid,nodev $place
done
mount -o remount,hidepid=2 /proc
"""
HARDEN_UNIT = """[Unit]
DefaultDependencies=no
After=systemd-remount-fs.service
Before=local-fs.target systemd-tmpfiles-setup.service credential-agent-closed.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/harden
[Install]
WantedBy=sysinit.target
"""

# As dockerd makes them (iptables-save of Docker 27, shortened): its chains, its policy, a published port.
DOCKER = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
"""

CONTAINER = """cd /; ip netns delete job; ip link delete veth0; ip link delete docker0; set -e
ip netns add job
ip link add docker0 type bridge; ip address add 172.17.0.1/16 dev docker0; ip link set docker0 up
ip link add veth0 type veth peer name eth0 netns job; ip link set veth0 master docker0 up
ip -n job address add 172.17.0.2/16 dev eth0; ip -n job link set eth0 up; ip -n job link set lo up
ip -n job route add default via 172.17.0.1
"""


class Hardened(Machine):
    """Nobody traces on it."""

    options = ("--system-call-filter=~ptrace process_vm_readv process_vm_writev kcmp",)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    reason = m.missing()
    if reason:
        pytest.skip(reason)
    layers = m.with_packages("firewalld", "ufw", "iptables")
    with closing(Disk(tmp_path_factory.mktemp("hardened"), layers)) as disk, m.ec2() as cloud:
        root = disk.root
        for package in m.sdk():
            shutil.copytree(package, root / "opt/sdk" / package.name)
        shutil.copytree(m.payload(), root / "payload", dirs_exist_ok=True)
        (root / "usr/local/sbin/harden").write_text(HARDEN)
        (root / "usr/local/sbin/harden").chmod(0o755)
        (root / "etc/systemd/system/harden.service").write_text(HARDEN_UNIT)
        m.call("chroot", root, "systemctl", "enable", "--quiet", "harden.service")
        # The configuration, where root may look alone.
        given = root / "root/given"
        for directory in (given, given / "etc/credential-agent/signers", root / "etc/credstore"):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        sender = Sender()
        sender.configure(given, source="ec2-user-data", upstream=EC2)
        shutil.copytree(given / "etc/credstore", root / "etc/credstore", dirs_exist_ok=True)
        cloud.set_user_data(sender.seal())
        with Hardened(disk, cloud) as machine:
            yield machine


LISTED = """cd /; find etc opt usr/local var/lib -xdev -printf '%p %M %U %G %l\\n' | sort \\
| grep -vE '^(etc/(passwd|group|shadow|gshadow)-|etc/.pwd.lock|etc/subuid-|etc/subgid-) |^var/lib/(systemd|private)/'
"""


def listed(machine: Machine) -> set[str]:
    """What an installation may write: names, modes and owners."""
    return set(machine.run("sh", "-c", LISTED).splitlines())


def ask(machine: Machine, who: str, port: str = "80") -> str:
    """Who answers a uid, or a container, at the metadata address."""
    question = [*m.python(m.CONNECT), "169.254.169.254", port]
    if who == "container":
        return machine.run("ip", "netns", "exec", "job", *question).strip()
    return machine.run(*question, uid=int(who)).strip()


def never_the_machine(machine: Machine) -> None:
    """Whatever else becomes of it, no worker gets to the real service, and the machine's own programs do."""
    said = {(who, port): ask(machine, who, port) for who in ("1000", "container") for port in ("80", "443")}
    assert "other" not in said.values(), said
    assert ask(machine, "0") == ask(machine, "1") == "other"


def answered(machine: Machine, *, contained: bool = True) -> None:
    """By uid, as root in the slice and from a container: the bundle's identity; nothing failed; every word of us is right."""
    machine.until(lambda: aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY, what="an answer")
    machine.until(
        lambda: machine.result("systemctl", "is-active", *UNITS).stdout.split() == ["active"] * len(UNITS),
        what=f"{UNITS} at work",
    )
    machine.until(lambda: machine.in_slice(*m.python(m.AWS)).strip() == m.USER_KEY, what="the slice's answer")
    if contained:
        machine.until(lambda: ask(machine, "container") == "agent", what="a container's answer")
    never_the_machine(machine)
    assert machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "credential*").strip() == ""
    machine.succeeds("credential-agent", "status")
    machine.succeeds("credential-agent", "redirect", "check")
    machine.run("runuser", "-u", "alice", "--", "credential-agent", "wait", "--bundle", "--timeout", "20")


def test_it_is_installed_and_repeated(machine: Machine) -> None:
    """By a root with a umask of 077 from a directory of its own, with relative names; and of 027, where nothing is any more."""
    before = listed(machine)
    machine.run("sh", "-c", f"{LISTED} > /root/before")
    machine.run("sh", "-c", CONTAINER, text="")
    machine.run("iptables-restore", text=DOCKER)
    given = "--config etc/credential-agent/config.toml --signer etc/credential-agent/signers/control.pub.jwk"
    machine.run("sh", "-c", f"umask 077; cd /root/given; exec {INSTALL} {given} --worker alice", seconds=170)
    answered(machine)
    first = listed(machine)
    machine.run("sh", "-c", f"umask 027; mkdir /tmp/gone; cd /tmp/gone; rmdir /tmp/gone; exec {INSTALL}", seconds=170)
    assert listed(machine) == first
    assert first > before
    answered(machine)


def test_a_narrowed_machine_boots_and_serves(machine: Machine) -> None:
    """With everything narrowed before the first of our units starts."""
    machine.shut_down()
    machine.boot()
    mounts = machine.run("cat", "/proc/mounts").splitlines()
    for place in ("/tmp", "/var/tmp", "/dev/shm", "/run"):
        (found,) = [line for line in mounts if line.split()[1] == place][-1:]
        assert "noexec" in found, place
    assert "hidepid" in next(line for line in mounts if line.startswith("proc /proc "))
    machine.run("sh", "-c", CONTAINER, text="")
    machine.run("iptables-restore", text=DOCKER)
    answered(machine)


def test_immutable_files_are_no_trouble_and_a_refused_upgrade_leaves_them(machine: Machine) -> None:
    """An upgrade rewrites nothing that is right already; one that is refused puts back what it can, and that is all."""
    etc = "/etc/credential-agent"
    machine.run("chattr", "+i", f"{etc}/config.toml", f"{etc}/signers/control.pub.jwk")
    try:
        before = listed(machine)
        machine.run("sh", "-c", INSTALL, seconds=170)
        assert listed(machine) == before
        machine.run("sh", "-c", "echo '[nonsense]' > /root/bad.toml")
        for given in ("--config /root/bad.toml", f"--config {etc}/config.toml"):  # refused by us, and by the kernel
            done = machine.result("sh", "-c", f"{INSTALL} --signer /root/bad.toml {given}", seconds=170)
            assert done.returncode != 0
            assert listed(machine) == before
        answered(machine)
    finally:
        machine.run("chattr", "-i", f"{etc}/config.toml", f"{etc}/signers/control.pub.jwk")


@pytest.mark.parametrize(("place", "how"), [("/etc/credential-agent", "mode=000"), ("/var/lib/credential-agent", "ro")])
def test_a_denied_directory_opens_nothing(machine: Machine, place: str, how: str) -> None:
    """Out of reach, as under a policy: workers get what they had or nothing; without its configuration it says why."""
    if how == "ro":
        machine.run("sh", "-c", f"cd /; mount --bind {place} {place}; mount -o remount,bind,ro {place}")
    else:
        machine.run("mount", "-t", "tmpfs", "-o", how, "tmpfs", place)
    try:
        machine.result("systemctl", "restart", "credential-agent-redirect.service", seconds=100)
        machine.result("systemctl", "restart", "credential-agent.service", seconds=100)
        never_the_machine(machine)
        if place.startswith("/etc"):
            said = machine.result("timeout", "30", "credential-agent", "status")
            assert said.returncode not in {0, 124}, said.stdout
            assert f"{place}/config.toml" in said.stdout + said.stderr
        else:
            machine.until(lambda: aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY, what="an answer")
    finally:
        machine.run("umount", "--lazy", place)
    machine.run("systemctl", "restart", "credential-agent-redirect.service", "credential-agent.service")
    answered(machine)


FIREWALLS = {
    "firewalld": (
        [
            "systemctl start firewalld",
            "firewall-cmd --permanent --zone=trusted --change-interface=docker0 && firewall-cmd --reload",
            "firewall-cmd -q --complete-reload",
            "systemctl restart firewalld",
        ],
        "systemctl stop firewalld",
    ),
    "ufw": (
        [
            "ufw --force enable",
            "ufw allow in on docker0 to 169.254.171.2 port 16925 proto tcp",
            "ufw reload",
            "/usr/lib/ufw/ufw-init flush-all; /usr/lib/ufw/ufw-init force-reload",
        ],
        "ufw --force reset",
    ),
    "iptables": (
        [
            "iptables -F; iptables -t nat -F; iptables -X; iptables -t nat -X",
            "iptables -P FORWARD DROP; iptables -A OUTPUT -p tcp --dport 9999 -j REJECT",
        ],
        "iptables -P FORWARD ACCEPT; iptables -F",
    ),
}


@pytest.mark.parametrize("name", FIREWALLS)
def test_a_firewall_beside_us_opens_nothing(machine: Machine, name: str) -> None:
    """Whatever it does to its tables and chains no worker is the machine; led as its README says they are led."""
    steps, end = FIREWALLS[name]
    try:
        for number, step in enumerate(steps):
            done = machine.result("sh", "-c", f"cd /; {step}")
            assert done.returncode == 0, (step, done.stdout, done.stderr)
            answered(machine, contained=name == "iptables" or number > 0)
    finally:
        machine.result("sh", "-c", f"cd /; {end}")
        machine.run("iptables-restore", text=DOCKER)
    answered(machine)


def test_it_is_taken_off(machine: Machine) -> None:
    """Nothing of ours is left: no file, user, unit, process, rule or address."""
    machine.run("sh", "-c", f"umask 077; cd /root/given; exec {INSTALL.split(maxsplit=1)[0]} uninstall --purge")
    left = {line for line in listed(machine) if "credential" in line and not line.startswith("etc/credstore")}
    assert left == set()
    for where in (
        "getent passwd; getent group",
        "nft list ruleset",
        "ip address",
        "systemctl list-units --plain; systemctl list-unit-files",
    ):
        said = machine.run("sh", "-c", where).replace(r"\x2d", "-").replace("_", "-")
        assert "credential-agent" not in said, where
        assert "169.254.171.2" not in said
    assert machine.result("pgrep", "-f", "credential.agent").stdout == ""
    asked = machine.run("/usr/bin/python3", "-I", "-c", m.CONNECT, "169.254.169.254", "80", uid=m.WORKER_UID)
    assert asked.strip() == "other"
