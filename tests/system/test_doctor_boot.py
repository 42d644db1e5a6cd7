"""A booted worker is broken in one way after another, and `doctor` is asked: cause and next command at one look.

One machine for all of them: each mends what it broke.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import pytest

from tests.system import machine as m
from tests.system.machine import Disk, Machine
from tests.system.test_boot import EC2, Sender

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("boot")]

image = m.image
ETC = "/etc/credential-agent"
KEY = f"{ETC}/worker.jwk"


@pytest.fixture(scope="module")
def sender() -> Sender:
    return Sender()


@pytest.fixture(scope="module")
def machine(image: Sequence[Any], sender: Sender, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """An EC2 worker with a bundle in its user-data, whose key is a file."""
    with closing(Disk(tmp_path_factory.mktemp("doctor"), image)) as disk, m.ec2() as cloud:
        sender.configure(disk.root, source="ec2-user-data", upstream=EC2, extra='[redirect]\nusers = ["alice"]\n')
        etc = disk.root / ETC.lstrip("/")
        (etc / "worker.jwk").write_text(json.dumps(sender.key.private_jwk()))
        config = etc / "config.toml"
        config.write_text(
            config.read_text().replace(
                'kind = "credential"\nname = "credential-agent.key"', f'kind = "file"\npath = "{KEY}"'
            )
        )
        m.call("chroot", disk.root, "sh", "-c", f"chown root:credential-agent {KEY} && chmod 0640 {KEY}")
        cloud.set_user_data(sender.seal())
        with Machine(disk, cloud) as machine:
            yield machine


class Broken(NamedTuple):
    """One way to break a worker.

    Attributes:
        break_: a shell command. ``mend``: another that undoes it.
        check, cause, next: what the findings must have.
    """

    name: str
    break_: str
    mend: str
    check: str
    cause: str
    next: str


SERVICE = "credential-agent"
RESTART = f"systemctl restart {SERVICE}"
CONFIG = f"{ETC}/config.toml"
SOCKETS = " ".join(f"{SERVICE}{name}.socket" for name in ("", "-ipv6", "-control", "-courier"))
UNIT = f"/etc/systemd/system/{SERVICE}.service"
STATE = "/var/lib/credential-agent"


def edited(expression: str) -> str:
    return f"cp -p {CONFIG} {CONFIG}.good && sed -i {expression!r} {CONFIG}"


TYPO = edited("s/^kind = .file./knid = 7/")
WITH_GOOD = f"mv {CONFIG}.good {CONFIG}"
BROKEN = [
    # Its sockets too: a worker's request, or the probe of the process that holds the rules, would start it again.
    Broken("stopped", f"systemctl stop {SERVICE} {SOCKETS}", f"systemctl start {SOCKETS} {SERVICE}", "daemon", "is stopped", "systemctl start"),
    Broken("masked", f"systemctl stop {SERVICE} {SOCKETS}; mv {UNIT} {UNIT}.away; ln -s /dev/null {UNIT}; systemctl daemon-reload",
           f"mv {UNIT}.away {UNIT}; systemctl daemon-reload; systemctl start {SOCKETS} {SERVICE}", "daemon", "masked", "systemctl unmask"),
    Broken("not installed", f"systemctl stop {SERVICE} {SOCKETS}; mv {UNIT} {UNIT}.away; systemctl daemon-reload",
           f"mv {UNIT}.away {UNIT}; systemctl daemon-reload; systemctl start {SOCKETS} {SERVICE}", "daemon", "not installed", "credential-agent run"),
    Broken("hangs", f"kill -STOP $(systemctl show -P MainPID {SERVICE})", f"kill -CONT $(systemctl show -P MainPID {SERVICE})",
           "daemon", "SIGSTOP", "kill -CONT"),
    Broken("frozen", f"systemctl freeze {SERVICE}", f"systemctl thaw {SERVICE}", "daemon", "systemctl freeze", "systemctl thaw"),
    Broken("a drop-in that cannot be", f"printf '[Service]\\nExecStart=x\\n' > {UNIT}.d/99-x.conf; systemctl daemon-reload",
           f"rm {UNIT}.d/99-x.conf; systemctl daemon-reload", "daemon", "would not be started again", "systemd-analyze verify"),
    Broken("a watch that is stopped", f"systemctl stop {SERVICE}-watch", f"systemctl start {SERVICE}-watch", "daemon", "it is stopped", "systemctl start"),
    Broken("no name of the control socket", "rm /run/credential-agent/control.sock", f"systemctl restart {SERVICE}-control.socket {SERVICE}.service",
           "daemon", "does not listen", f"systemctl restart {SERVICE}-control.socket {SERVICE}.service"),
    Broken("a filter", "nft 'add table inet other; add chain inet other o { type filter hook output priority 300; };"
           " add rule inet other o tcp dport 16925 drop'", "nft delete table inet other", "redirect", "something filters it", "nft list ruleset"),
    Broken("a closed directory", f"chmod 0700 {ETC}", f"chmod 0755 {ETC}", "configuration", f"may not look into {ETC}", f"chmod o+x {ETC}"),
    Broken("a typo", f"{TYPO}; {RESTART}; true", f"{WITH_GOOD}; {RESTART}", "configuration", "keys[0].kind", "credential-agent check"),
    Broken("no configuration for the service", f"chmod 0600 {CONFIG}", f"chmod 0640 {CONFIG}", "configuration", "permission denied", "chown root:credential-agent"),
    Broken("no key", f"mv {KEY} {KEY}.away", f"mv {KEY}.away {KEY}", "key", "not there", "keygen"),
    Broken("a key for root alone", f"chmod 0600 {KEY}", f"chmod 0640 {KEY}", "key", "may not read", "chmod 0640"),
    Broken("a key for everybody", f"chmod 0644 {KEY}", f"chmod 0640 {KEY}", "key", "others may read", "chmod 0640"),
    Broken("a directory for a key", f"mv {KEY} {KEY}.away; mkdir {KEY}", f"rmdir {KEY}; mv {KEY}.away {KEY}", "key", "a directory", "ls -ld"),
    Broken("another's state", f"chown root:root {STATE} && chmod 0700 {STATE}", f"chown {SERVICE}:{SERVICE} {STATE}", "disk", "belongs to root", "chown -R"),
    Broken("a full disk", f"systemctl stop {SERVICE}; mount -t tmpfs -o size=64k,uid=$(id -u {SERVICE}) none {STATE}; fallocate -l 60k {STATE}/x; true",
           f"umount {STATE}; systemctl start {SERVICE}", "disk", "full", "df -h"),
    Broken("a read-only disk", f"systemctl stop {SERVICE}; mount -t tmpfs -o ro none {STATE}; true", f"umount {STATE}; systemctl start {SERVICE}",
           "disk", "read-only", "findmnt"),
    Broken("flushed", "systemctl kill -s STOP credential-agent-redirect; nft flush ruleset", "systemctl kill -s CONT credential-agent-redirect",
           "redirect", "not in the kernel", "systemctl restart credential-agent-redirect"),
    Broken("an unknown worker", f"{edited('s/alice/bob/')}", WITH_GOOD, "redirect", "bob", "getent passwd bob"),
    # The process that holds the rules has the addresses reserved (agent/host/ports.py): another can only have taken them before it.
    Broken("another has the port",
           f"systemctl stop {SERVICE} {SOCKETS} {SERVICE}-redirect; systemd-run --quiet --unit=thief /usr/bin/python3 -m http.server --bind 127.0.0.1 16925;"
           f" sleep 2; systemctl start {SERVICE}.socket",
           f"systemctl stop thief; systemctl reset-failed; systemctl start {SOCKETS} {SERVICE} {SERVICE}-redirect",
           "port", "another program has it", "ps -o"),
    Broken("no signer", f"mv {ETC}/signers/control.pub.jwk {ETC}/signers/away", f"mv {ETC}/signers/away {ETC}/signers/control.pub.jwk",
           "configuration", "signers[0].key", "credential-agent check"),
]  # fmt: skip


def examined(machine: Machine, *, uid: int = 0) -> list[dict[str, Any]]:
    done = machine.result("credential-agent", "doctor", "--json", uid=uid)
    findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    return findings


def settled(machine: Machine) -> None:
    """Wait until what was broken before is mended: workers are served, and led."""

    def well() -> bool:
        done = machine.result("credential-agent", "status", "--json")
        document = json.loads(done.stdout) if done.returncode == 0 else {}
        return bool(document) and document["redirect"]["arrives"] and document["clouds"]["aws"]["state"] == "live"

    machine.until(well, seconds=60, what="a healthy worker")


class TestBrokenWorker:
    def test_a_healthy_worker_has_no_failure(self, machine: Machine) -> None:
        """Beside a fake cloud without a way out, nothing of the worker itself is said to be broken."""
        settled(machine)
        found = examined(machine)
        assert [one for one in found if one["level"] == "fail"] == []
        told = {one["check"] for one in found if one["level"] == "ok"}
        assert {"daemon", "configuration", "key", "signers", "source", "bundle", "metadata", "identity", "redirect", "disk",
                "memory", "port", "version"} <= told, found  # fmt: skip
        assert any("uid 1000 asked just now" in one["said"] for one in found if one["check"] == "redirect"), found

    @pytest.mark.parametrize("way", BROKEN, ids=lambda way: way.name)
    def test_each_way_to_break_it_is_told_at_one_look(self, machine: Machine, way: Broken) -> None:
        """The finding is there, with the cause and the next command, in one call of `doctor`."""
        settled(machine)
        machine.result("sh", "-c", way.break_)

        def told() -> bool:
            trouble = [
                one for one in examined(machine) if one["check"] == way.check and one["level"] in {"fail", "warn"}
            ]
            return any(way.cause in one["said"] and way.next in one["next"] for one in trouble)

        try:
            machine.until(told, what=f"a finding of {way.check}")
        finally:
            machine.run("sh", "-c", way.mend)

    def test_a_worker_sees_its_identity_and_no_secret(self, machine: Machine, sender: Sender) -> None:
        """An ordinary worker gets the redacted look: no key, no bundle, no configuration, and who sees more."""
        settled(machine)
        found = examined(machine, uid=m.WORKER_UID)
        text = json.dumps(found)
        assert "su --command 'credential-agent doctor'" in text  # the image has no sudo
        assert json.loads(json.dumps(sender.key.private_jwk()))["d"] not in text
        assert [one["level"] for one in found if one["check"] == "key"] == ["skipped"]
        assert any(one["check"] == "redirect" and one["level"] == "ok" for one in found), found
