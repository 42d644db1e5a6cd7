"""A machine without IPv6: the same answers, at rest, and no unit of ours that failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.system import machine as m
from tests.system.machine import Disk, Machine, call
from tests.system.test_boot import EC2, Sender, aws_key

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("boot")]

image = m.image

SOCKETS = (
    "credential-agent.socket",
    "credential-agent-ipv6.socket",
    "credential-agent-control.socket",
    "credential-agent-courier.socket",
)
UNITS = ("credential-agent.service", "credential-agent-redirect.service", *SOCKETS)


class Bare(Machine):
    """A machine on whose interfaces no IPv6 is from the first moment on."""

    def wipe(self) -> None:
        """Switched on for as long as the network is put back to what the kernel has."""
        self._disable(0)
        super().wipe()
        self._disable(1)

    def _disable(self, switch: int) -> None:
        script = f"for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo {switch} > $f; done"
        call("ip", "netns", "exec", self.cloud.there, "sh", "-c", script)


@pytest.fixture(scope="module")
def bare(image: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    sender = Sender()
    with closing(Disk(tmp_path_factory.mktemp("bare"), image)) as disk, m.ec2() as cloud:
        sender.configure(disk.root, source="ec2-user-data", upstream=EC2)
        cloud.set_user_data(sender.seal())
        with Bare(disk, cloud) as machine:
            yield machine


def states(machine: Machine, *units: str) -> list[str]:
    return machine.result("systemctl", "is-active", *units).stdout.split()


def settled(machine: Machine, expected: Sequence[str], *units: str) -> None:
    """The units come to these states; the redirection is reloading for as long as it reads its configuration."""
    machine.until(lambda: states(machine, *units) == expected, what=f"{expected} of {units}")


def answered(machine: Machine) -> None:
    """A worker has the bundle's identity, by uid and by slice, and nothing of ours failed."""
    machine.until(lambda: aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY, what="an answer")
    failed = machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "credential*")
    assert failed.strip() == ""


def test_a_machine_whose_ipv6_is_disabled_answers(bare: Machine) -> None:
    """With disable_ipv6 on every interface there is no [::1] to bind, and workers are led and answered on IPv4."""
    assert bare.run("cat", "/proc/net/if_inet6") == ""
    answered(bare)
    settled(bare, ["active"] * len(UNITS), *UNITS)
    assert bare.result("credential-agent", "status").returncode == 0


def test_a_machine_without_an_ipv6_family_answers(bare: Machine) -> None:
    """Where the kernel has no IPv6 at all its socket unit is left out, and the daemon starts without the family."""
    for name in ("credential-agent", "credential-agent-redirect"):
        place = f"/run/systemd/system/{name}.service.d"
        families = "AF_UNIX AF_INET AF_NETLINK" if name.endswith("redirect") else "AF_UNIX AF_INET"
        text = f"[Service]\nRestrictAddressFamilies=\nRestrictAddressFamilies={families}\n"
        bare.run("sh", "-c", f"mkdir -p {place}; cat > {place}/90-no-ipv6.conf", text=text)
    bare.run("systemctl", "daemon-reload")
    bare.run("systemctl", "stop", "credential-agent.service", "credential-agent-redirect.service", *SOCKETS)
    # What PID 1 sees there, without if_inet6.
    bare.run("mount", "-t", "tmpfs", "tmpfs", "/proc/1/net")
    try:
        bare.run("systemctl", "start", "credential-agent.target")
        answered(bare)
        settled(bare, ["active", "active", "active", "inactive", "active", "active"], *UNITS)
        bare.run("systemctl", "restart", "credential-agent.service", "credential-agent.socket")
        answered(bare)
    finally:
        bare.run("umount", "/proc/1/net")
        bare.run("sh", "-c", "rm /run/systemd/system/*/90-no-ipv6.conf; systemctl daemon-reload")
        bare.run("systemctl", "restart", "credential-agent-ipv6.socket", "credential-agent-redirect.service")
    answered(bare)
