"""The real units under a real systemd, on a machine whose 169.254.169.254 is a fake cloud.

One machine is booted for all tests of a class, in the order of the file; each test leaves it as it found it. What ends a
machine (a reboot, an uninstall) has a machine of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent import bundle
from agent.core.model import AwsSession, GcpToken
from agent.core.secret import Secret
from tests.system import machine as m
from tests.system.machine import Disk, Machine, python

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("boot")]

image = m.image

AUDIENCE = bundle.audience_cluster("boot")
ISSUER = "https://control.example"
METADATA = "169.254.169.254"
AUDIT = "[audit]\nseconds = 1.0\n"
OTHER_GCE = '[[sources]]\nkind = "gce-attribute"\n'
OTHER_EC2 = '[[sources]]\nkind = "ec2-user-data"\n'


class Sender:
    """A control plane: it pins its key and the worker's into a machine's disk, and seals."""

    def __init__(self) -> None:
        self.signer = bundle.SigningKey.generate("Ed25519")
        self.key = bundle.OpeningKey.generate("P-256")
        self.recipient = bundle.RecipientKey.parse(json.dumps(self.key.public_jwk()))

    def configure(self, root: Path, *, source: str, upstream: str, extra: str = "") -> None:
        """What an operator puts into an image, and the key that reaches it on another way."""
        etc = root / "etc/credential-agent"
        (etc / "signers/control.pub.jwk").write_text(json.dumps(self.signer.public_jwk()))
        store = root / "etc/credstore"
        store.mkdir(mode=0o700, exist_ok=True)
        (store / "credential-agent.key").write_text(json.dumps(self.key.private_jwk()))
        (store / "credential-agent.key").chmod(0o600)
        (etc / "config.toml").write_text(
            f"""
[[keys]]
kind = "credential"
name = "credential-agent.key"
[[signers]]
key = "/etc/credential-agent/signers/control.pub.jwk"
issuers = ["{ISSUER}"]
[[sources]]
kind = "{source}"
[identity]
audience = ["{AUDIENCE}"]
grace_seconds = 20
[upstream]
{upstream}
[environment]
group = "credential-workers"
{extra}
"""
        )

    def seal(self, *, seq: int = 1, key: str = m.USER_KEY, hours: float = 6) -> bytes:
        from datetime import UTC, datetime, timedelta

        now = datetime.now(UTC)
        until = int((now + timedelta(hours=hours)).timestamp())
        session = AwsSession(
            id="aws",
            access_key_id=key,
            secret_access_key=Secret("s" * 40),
            session_token=Secret("t" * 80),
            expires_at=until,
            region="eu-west-1",
        )
        google = GcpToken(
            id="gcp",
            access_token=Secret(m.USER_TOKEN),
            expires_at=until,
            email="user@project.iam.gserviceaccount.com",
            project_id="user-project",
        )
        return bundle.seal(
            signer=self.signer,
            recipients=[self.recipient],
            issuer=ISSUER,
            subject="user:alice",
            audiences=[AUDIENCE],
            now=now,
            grants=[session, google],
            seq=seq,
        )


EC2 = 'ec2 = "http://169.254.169.254"\ngce = "off"'
BOTH = 'ec2 = "http://169.254.169.254"\ngce = "http://169.254.169.254"'
"""An image for both clouds: one of the two services is at the address."""


@pytest.fixture(scope="module")
def sender() -> Sender:
    return Sender()


def aws_key(machine: Machine, *, uid: int) -> str:
    """The access key id that unmodified boto3 finds, with no environment at all."""
    return machine.run(*python(m.AWS), uid=uid).strip()


@pytest.fixture(scope="module")
def ec2_worker(image: Sequence[Path], sender: Sender, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with a sealed bundle in its user-data."""
    with closing(Disk(tmp_path_factory.mktemp("ec2"), image)) as disk, m.ec2() as cloud:
        # A minute, which is the default, would be slept to its end before a reload of it counts.
        sender.configure(disk.root, source="ec2-user-data", upstream=BOTH, extra=AUDIT + OTHER_GCE)
        cloud.set_user_data(sender.seal())
        with Machine(disk, cloud) as machine:
            yield machine


@pytest.fixture
def disks() -> Iterator[ExitStack]:
    """Unmounts what is entered into it: a mount that is left over is in the way of the next runs' cleaning up."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def machine(ec2_worker: Machine) -> Machine:
    """Switched on once, for all that leave it as they found it."""
    return ec2_worker


class TestEc2Worker:
    """A machine with a sealed bundle in its user-data."""

    def test_an_unprivileged_users_boto3_gets_the_users_identity(self, machine: Machine) -> None:
        """A worker's unmodified boto3 finds the bundle's identity through 169.254.169.254."""
        assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY

    def test_an_unprivileged_users_google_auth_gets_the_users_identity(self, machine: Machine) -> None:
        """An unprivileged user's google-auth gets the user's identity, on a machine that is not Google's."""
        assert machine.run(*python(m.GOOGLE), uid=m.WORKER_UID).strip() == m.USER_TOKEN

    def test_system_services_keep_the_machines_identity(self, machine: Machine) -> None:
        """Root outside the workers' slice, and a system user, still get the instance profile."""
        assert aws_key(machine, uid=0) == m.MACHINE_KEY
        assert aws_key(machine, uid=m.SYSTEM_UID) == m.MACHINE_KEY

    def test_a_job_of_root_in_the_slice_is_a_worker(self, machine: Machine) -> None:
        """The control group decides for root's jobs; another slice beside it does not."""
        assert machine.in_slice(*python(m.AWS)).strip() == m.USER_KEY
        assert machine.in_slice(*python(m.AWS), name="system.slice").strip() == m.MACHINE_KEY

    def test_a_stranger_is_refused_at_the_listener(self, machine: Machine) -> None:
        """The agent's endpoint is for workers: a system user, and root too, are refused by the kernel."""
        for address in ("127.0.0.1", "::1"):
            ask = [*python(m.CONNECT), address, str(m.PORT)]
            assert machine.run(*ask, uid=m.SYSTEM_UID).strip() == "ConnectionRefusedError"
            assert machine.run(*ask, uid=0).strip() == "ConnectionRefusedError"
            assert machine.run(*ask, uid=m.WORKER_UID).strip() == "agent"

    def test_the_kernel_names_the_owner_of_a_connection_in_the_sandbox(self, machine: Machine) -> None:
        """The service may make no netlink socket, and asks on the one that systemd made for it."""
        started = machine.run("journalctl", "--no-pager", "-o", "cat", "-u", "credential-agent", "-g", "agent.started")
        assert "by socket" in started
        assert machine.run("systemctl", "is-active", "credential-agent-control.socket").strip() == "active"

    def test_ipv6_is_led_to_the_agent_too(self, machine: Machine) -> None:
        """Neither cloud's IPv6 address is a way around."""
        for address in ("fd00:ec2::254", "fd20:ce::254"):
            assert machine.run(*python(m.CONNECT), address, "80", uid=m.WORKER_UID).strip() == "agent"
            assert machine.run(*python(m.CONNECT), address, "80", uid=0).strip() == "other"

    def test_no_other_port_is_a_way_around(self, machine: Machine) -> None:
        """What is not port 80 is rejected for workers, and open for the machine."""
        ask = [*python(m.CONNECT), METADATA, "443"]
        assert machine.run(*ask, uid=m.WORKER_UID).strip() != "other"
        assert machine.run(*ask, uid=0).strip() == "other"

    def test_multipath_tcp_is_no_way_around(self, machine: Machine) -> None:
        """A socket whose owner the packet filter may not see is treated as a worker's."""
        ipproto_mptcp = "262"
        answer = machine.run(*python(m.CONNECT), METADATA, "80", ipproto_mptcp, uid=m.WORKER_UID).strip()
        assert answer in {"agent", "OSError", "ConnectionRefusedError"}

    def test_a_container_on_a_bridge_is_a_worker(self, machine: Machine) -> None:
        """Requests that come through a bridge of containers arrive at the agent, and nothing else of theirs passes."""
        machine.run(
            "sh", "-ec", """
            ip netns add job
            ip link add docker0 type bridge; ip address add 172.17.0.1/16 dev docker0; ip link set docker0 up
            ip link add veth0 type veth peer name eth0 netns job; ip link set veth0 master docker0 up
            ip -n job address add 172.17.0.2/16 dev eth0; ip -n job link set eth0 up; ip -n job link set lo up
            ip -n job route add default via 172.17.0.1
            """,
        )  # fmt: skip
        try:
            inside = ["ip", "netns", "exec", "job"]
            assert machine.run(*inside, *python(m.AWS)).strip() == m.USER_KEY
            assert machine.run(*inside, *python(m.CONNECT), METADATA, "443").strip() != "other"
        finally:
            machine.run("sh", "-c", "ip netns delete job; ip link delete docker0")

    def test_a_user_namespace_is_no_way_around(self, machine: Machine) -> None:
        """Root of a namespace of one's own is still the user outside, and a subordinate uid is no system user."""
        ask = [*python(m.CONNECT), METADATA, "80"]
        inside = ["unshare", "--user", "--map-root-user"]
        assert machine.run(*inside, "id", "-u", uid=m.WORKER_UID).strip() == "0"
        assert machine.run(*inside, *ask, uid=m.WORKER_UID).strip() == "agent"
        first_of_subuid = 100_000
        assert machine.run(*ask, uid=first_of_subuid).strip() == "agent"

    def test_nobody_outside_reaches_the_listener(self, machine: Machine) -> None:
        """The listener's addresses are for this machine: a neighbour on the network is dropped, even with a route."""
        cloud = machine.cloud.here
        m.call("ip", "-n", cloud, "route", "add", "169.254.171.2/32", "via", "10.77.0.2")
        probe = [sys.executable, "-c", m.CONNECT, "169.254.171.2", str(m.PORT)]
        assert m.call("ip", "netns", "exec", cloud, *probe).strip() == "TimeoutError"

    def test_the_check_command_agrees(self, machine: Machine) -> None:
        """The end-to-end self-test asks as a worker and as others, and finds all well."""
        said = machine.run("credential-agent", "redirect", "check")
        assert "FAIL" not in said
        assert said.count("the agent answers") == 2

    def test_the_commands_of_the_pages_work(self, machine: Machine) -> None:
        """What an operator is told to type, word by word and as root, who is no worker, on a worker with its rules."""
        pages = ["README.md", "systemd/README.md", "systemd/OPERATIONS.md"]
        text = "\n".join((m.REPOSITORY / page).read_text() for page in pages)
        typed = dict.fromkeys(re.findall(r"^# ((?:credential-agent|systemctl|journalctl) .*)$", text, re.MULTILINE))
        assert len(typed) >= 8
        for line in typed:
            assert machine.run("sh", "-c", line) or line.startswith(("systemctl restart", "systemctl reload")), line

    def test_a_scraper_is_let_in_as_the_page_says(self, machine: Machine) -> None:
        """Word by word: Debian's node_exporter, as its own user, has our metrics; no worker can read them."""
        fetched = m.REPOSITORY / "tests/conformance/prometheus/.build"
        if not (fetched / "usr/bin/prometheus-node-exporter").exists():
            pytest.skip("run tests/conformance/prometheus/setup (needs apt)")
        for path in ("usr/bin/prometheus-node-exporter", "lib/systemd/system/prometheus-node-exporter.service"):
            machine.run("install", "-d", f"/{Path(path).parent}")
            shutil.copy(fetched / path, machine.root / path)
        (machine.root / "etc/default/prometheus-node-exporter").write_text(
            'ARGS="--web.listen-address=127.0.0.1:9100"\n'
        )
        machine.run("useradd", "--system", "prometheus")  # as the package does
        machine.run("install", "-d", "/var/lib/prometheus/node-exporter")
        page = (m.REPOSITORY / "systemd/monitoring/README.md").read_text()
        (written,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        with (machine.root / "etc/credential-agent/config.toml").open("a") as file:
            file.write(written)
        typed = re.findall(r"^# (.*)$", page, re.MULTILINE)[1:]  # the first is the title
        assert len(typed) == 4
        for line in typed:
            machine.run("sh", "-ec", line)
        get = (
            "import urllib.request as u; "
            "print(u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:9100/metrics').read().decode())"
        )

        def scraped() -> str:
            done = machine.result(*python(get))
            return done.stdout if "credential_agent_" in done.stdout else ""

        text = machine.until(scraped, seconds=60, what="a scrape")
        assert 'credential_agent_state{cloud="aws",state="live"} 1' in text
        assert 'credential_agent_redirect_state{state="led"} 1' in text
        assert m.USER_KEY not in text
        machine.run("usermod", "-aG", "credential-workers", "alice")
        for command in (
            ["runuser", "-u", "alice", "--"],
            ["setpriv", f"--reuid={m.WORKER_UID}", "--clear-groups", "--"],
        ):
            refused = machine.result(*command, "cat", "/run/credential-agent/metrics.prom")
            assert "Permission denied" in refused.stderr
        # Taken out of the configuration again, it is gone.
        machine.run("sed", "-i", "/^.metrics.$/,$d", "/etc/credential-agent/config.toml")
        machine.run("systemctl", "reload", "credential-agent")
        gone = partial(machine.result, "test", "!", "-e", "/run/credential-agent/metrics.prom")
        machine.until(lambda: gone().returncode == 0, seconds=60, what="its end")

    def test_the_audit_names_the_job_that_asked(self, machine: Machine) -> None:
        """In the sandbox too: uid and control group of whoever got a credential, the last four of its key, and no more."""
        config = machine.root / "etc/credential-agent/config.toml"
        before = config.read_text()
        written = "/var/lib/credential-agent/audit.jsonl"
        config.write_text(before.replace(AUDIT, f'{AUDIT}file = "{written}"\n'))
        machine.run("systemctl", "reload", "credential-agent")
        unit = "audited.service"
        machine.run(
            "systemd-run",
            "--quiet",
            "--wait",
            f"--unit={unit}",
            "--slice=credential-agent-workers.slice",
            *python(m.AWS),
        )
        assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY

        def told() -> list[dict[str, Any]]:
            done = machine.result("cat", written)
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            return lines if {0, m.WORKER_UID} <= {line["uid"] for line in lines} else []

        lines = machine.until(told, what="the lines")
        (job,) = [line for line in lines if line["uid"] == 0]
        assert job["cgroup"].endswith(f"credential-agent-workers.slice/{unit}") or job["cgroup"].startswith("id ")
        assert {line["access_key_id"] for line in lines} == {f"...{m.USER_KEY[-4:]}"}
        assert machine.run("stat", "-c", "%a %U", written).split() == ["600", "credential-agent"]
        refused = machine.result("cat", written, uid=m.WORKER_UID)
        assert "Permission denied" in refused.stderr
        config.write_text(before)
        machine.run("systemctl", "reload", "credential-agent")
        machine.run("rm", written)

    def test_who_waits_asks_as_its_own_programs_would(self, machine: Machine) -> None:
        """Whom the rules alone lead finds an identity; who is no worker is told so, and what to do, and not only "no"."""
        wait = ("credential-agent", "wait", "--bundle", "--for", "aws", "--timeout")
        assert "an identity from the bundle" in machine.run(*wait, "20", uid=m.WORKER_UID)
        assert "an identity from the bundle" in machine.in_slice(*wait, "20")
        root = machine.result(*wait, "600")
        assert root.returncode == 71
        assert "uid 0 is no worker" in root.stderr
        assert "--workers" in root.stderr

    def test_the_environment_is_for_the_workers_group(self, machine: Machine) -> None:
        """The file leads to the agent; whoever is not in the group cannot read the token."""
        machine.run("usermod", "-aG", "credential-workers", "alice")
        as_alice = ["runuser", "-u", "alice", "--"]
        assert "AWS_CONTAINER_CREDENTIALS_FULL_URI" in machine.run(*as_alice, "credential-agent", "env")
        login = machine.run(*as_alice, "bash", "-lc", "env")
        traced = (*as_alice, "bash", "-lxc", "id")
        assert "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=/run/credential-agent/token" in login, machine.result(*traced)
        stranger = machine.result("cat", "/run/credential-agent/env", uid=1001)
        assert stranger.returncode != 0
        assert "Permission denied" in stranger.stderr

    def test_exec_and_credential_process_give_the_identity(self, machine: Machine) -> None:
        """The commands for programs: run with it, or print it."""
        machine.run("usermod", "-aG", "credential-workers", "alice")
        as_alice = ["runuser", "-u", "alice", "--", "env", "AWS_ACCESS_KEY_ID=AKIASTALE", "AWS_SECRET_ACCESS_KEY=x"]
        assert machine.run(*as_alice, "credential-agent", "exec", "--", *python(m.AWS)).strip() == m.USER_KEY
        printed = json.loads(machine.run(*as_alice, "credential-agent", "credential-process"))
        assert printed["AccessKeyId"] == m.USER_KEY
        assert machine.result(*as_alice, "credential-agent", "exec", "sh", "-c", "exit 7").returncode == 7

    @pytest.mark.parametrize("blow", ["kill", "restart"])
    def test_an_agent_that_comes_back_failed_no_call(self, machine: Machine, blow: str) -> None:
        """Callers wait in the socket's queue while systemd starts the agent again, and get the same credential.

        The clients are fresh boto3 sessions, one after the other, with the environment file of a worker's unit: what a
        killed process had accepted and not answered is asked again by them.
        """
        loop = """
import sys, time, boto3
end, done = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end:
    key = boto3.Session().get_credentials()
    assert key is not None and key.access_key == sys.argv[2], key
    done += 1
print(done)
"""
        job = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--slice=credential-agent-workers.slice",
               "--property=EnvironmentFile=/run/credential-agent/env"]  # fmt: skip
        clients = [
            subprocess.Popen(
                [*machine.enter(), *job, *python(loop), "8", m.USER_KEY],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        started = set()
        for _ in range(2):
            time.sleep(2.5)
            started.add(machine.run("systemctl", "show", "-P", "MainPID", "credential-agent"))
            if blow == "kill":
                machine.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "credential-agent")
            else:
                machine.run("systemctl", "restart", "credential-agent")
        for client in clients:
            out, err = client.communicate(timeout=60)
            assert client.returncode == 0, f"{err[-1500:]}\n{machine.log()}"
            assert int(out) > 0
        assert len(started) == 2

    def test_a_stopped_agent_leads_nowhere_else(self, machine: Machine) -> None:
        """With the agent off, a worker waits or fails; it never gets the machine's identity."""
        machine.run(
            "systemctl",
            "stop",
            "credential-agent.service",
            "credential-agent.socket",
            "credential-agent-ipv6.socket",
            "credential-agent-control.socket",
            "credential-agent-courier.socket",
        )
        try:
            assert aws_key(machine, uid=m.WORKER_UID) == "none"
        finally:
            machine.run("systemctl", "start", "credential-agent.target")
        assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY

    def test_a_slice_that_is_made_anew_is_led_too(self, machine: Machine) -> None:
        """The first job of a slice that was stopped and made anew is refused at worst, and the next ones are led."""
        for _ in range(20):
            machine.run("systemctl", "stop", "credential-agent-workers.slice")
            assert machine.in_slice(*python(m.CONNECT), METADATA, "80").strip() in {"agent", "ConnectionRefusedError"}
        machine.until(lambda: machine.in_slice(*python(m.AWS)).strip() == m.USER_KEY, seconds=20, what="the new slice")
        machine.run("systemctl", "start", "credential-agent.target")

    def test_a_stopped_redirect_closes(self, machine: Machine) -> None:
        """Without the redirect no worker gets the machine's identity; the machine keeps its own."""
        machine.run("systemctl", "stop", "credential-agent-redirect")
        try:
            assert aws_key(machine, uid=m.WORKER_UID) == "none"
            assert machine.in_slice(*python(m.AWS)).strip() == "none"
            assert aws_key(machine, uid=0) == m.MACHINE_KEY
        finally:
            machine.run("systemctl", "start", "credential-agent.target")
        assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY

    @pytest.mark.parametrize("verb", ["restart", "stop", "start"])
    def test_a_firewall_that_flushes_everything_does_not_open(self, machine: Machine, verb: str) -> None:
        """nftables.service flushes every table; ours is put back."""
        machine.run("systemctl", verb, "nftables")
        machine.until(
            lambda: machine.result("credential-agent", "redirect", "show").returncode == 0, what="our table to be back"
        )
        assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY

    def test_others_rules_are_untouched(self, machine: Machine) -> None:
        """Applying, applying again and closing leave other tables alone."""
        machine.run("nft", "add", "table", "inet", "theirs")
        before = machine.run("nft", "list", "table", "inet", "theirs")
        for _ in range(2):
            machine.run("credential-agent", "redirect", "apply")
        machine.run("credential-agent", "redirect", "close")
        machine.run("credential-agent", "redirect", "apply")
        assert machine.run("nft", "list", "table", "inet", "theirs") == before
        assert machine.run("nft", "list", "tables").count("credential_agent") == 4

    def test_what_an_operator_has_closed_no_start_of_a_worker_opens(self, machine: Machine) -> None:
        """A gate of workers and nftables.service have the rules loaded anew: only the command and a start open again."""
        machine.run("credential-agent", "redirect", "close")
        try:
            machine.run("systemctl", "start", "credential-agent-gate@credential-agent-workers.slice.service")
            machine.run("systemctl", "restart", "nftables")
            machine.run("systemctl", "reload", "credential-agent-redirect")  # after what these two have asked for
            assert aws_key(machine, uid=m.WORKER_UID) == "none"
            assert machine.in_slice(*python(m.AWS)).strip() == "none"
        finally:
            machine.run("credential-agent", "redirect", "apply")
        assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY

    def test_the_daemon_is_alone_with_its_memory(self, machine: Machine) -> None:
        """No capability, no new privileges, not dumpable, no core file; a filter of system calls is on."""
        pid = machine.run("systemctl", "show", "-P", "MainPID", "credential-agent").strip()
        status = dict(
            line.split(":\t", 1) for line in machine.run("cat", f"/proc/{pid}/status").splitlines() if ":\t" in line
        )
        assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert "Max core file size        0                    0" in machine.run("cat", f"/proc/{pid}/limits")
        assert machine.run("stat", "-c", "%U", f"/proc/{pid}/mem").strip() == "root"  # of an undumpable process


def test_a_machine_without_a_bundle_serves_its_own_identity(
    image: Sequence[Path], tmp_path: Path, sender: Sender, disks: ExitStack
) -> None:
    """The instance profile until a bundle comes; then the user's, also after a reboot; a copy of the disk begins clean.

    And taking the agent off leaves nothing.
    """
    disk = disks.enter_context(closing(Disk(tmp_path / "first", image)))
    sender.configure(disk.root, source="ec2-user-data", upstream=EC2)
    (disk.root / "etc/credential-agent/config.toml").write_text(
        (disk.root / "etc/credential-agent/config.toml").read_text().replace("grace_seconds = 20", "grace_seconds = 0")
    )
    with m.ec2() as cloud:
        machine = Machine(disk, cloud).boot()
        try:
            assert aws_key(machine, uid=m.WORKER_UID) == m.MACHINE_KEY
            sealed = sender.seal(hours=0.01)  # 36 s
            assert "accepted" in machine.run("sh", "-c", "base64 -d | credential-agent push -", text=_base64(sealed))
            assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY
        finally:
            machine.shut_down()

        # It boots again: the bundle that was accepted, and no other identity once that has ended.
        machine = Machine(disk, cloud).boot()
        try:
            assert aws_key(machine, uid=m.WORKER_UID) in {m.USER_KEY, "none"}
            machine.until(lambda: aws_key(machine, uid=m.WORKER_UID) == "none", seconds=100, what="the end")
            assert machine.status()["sticky"] == ["aws", "gcp"]
            assert aws_key(machine, uid=0) == m.MACHINE_KEY
        finally:
            machine.shut_down()

    # An image is made of it, and another machine boots from that.
    copy = disks.enter_context(closing(disk.clone(tmp_path / "copy")))
    with m.ec2(instance_id="'i-0fedcba9876543210'") as cloud:
        machine = Machine(copy, cloud).boot()
        try:
            assert aws_key(machine, uid=m.WORKER_UID) == m.MACHINE_KEY
            assert machine.status()["sticky"] == []
            _uninstall(machine)
        finally:
            machine.shut_down()
    copy.close()
    disk.close()


def _uninstall(machine: Machine) -> None:
    script = (m.payload() / "install.sh").read_text()
    machine.run("bash", "-s", "uninstall", "--purge", text=script)
    assert machine.run("nft", "list", "ruleset").strip() == ""
    assert "169.254.171.2" not in machine.run("ip", "address")
    assert aws_key_of_system_python(machine) == "no python of ours"
    left = machine.run(
        "find", "/", "-xdev", "-name", "*credential-agent*", "-not", "-path", "/proc/*", "-not", "-path", "/var/log/*",
        "-not", "-path", "/etc/credstore/*", "-not", "-path", f"{m.cache()}*",  # where the wheelhouse was mounted
    )  # fmt: skip
    assert left.strip() == ""
    assert "credential" not in machine.run("sh", "-c", "getent passwd; getent group; cat /etc/hosts")
    assert "credential" not in machine.run(
        "systemctl", "list-units", "--state=active,failed,activating", "--plain", "--no-legend", "credential*"
    )


def aws_key_of_system_python(machine: Machine) -> str:
    return "ours" if machine.result("test", "-e", m.PYTHON).returncode == 0 else "no python of ours"


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def test_a_gce_worker_takes_the_bundle_of_its_attribute(
    image: Sequence[Path], tmp_path: Path, sender: Sender, disks: ExitStack
) -> None:
    """On Google: a worker's google-auth gets the user's token, root the machine's; a new attribute is taken at once."""
    disk = disks.enter_context(closing(Disk(tmp_path / "gce", image)))
    sender.configure(disk.root, source="gce-attribute", upstream=BOTH, extra=OTHER_EC2)
    attribute = json.dumps({"credential-bundle": sender.seal().decode()})
    with m.gce(attributes=repr(json.loads(attribute))) as cloud, Machine(disk, cloud) as machine:
        assert machine.run(*python(m.GOOGLE), uid=m.WORKER_UID).strip() == m.USER_TOKEN
        assert machine.in_slice(*python(m.GOOGLE)).strip() == m.USER_TOKEN
        assert machine.run(*python(m.GOOGLE), uid=0).strip() not in {m.USER_TOKEN, ""}
        assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY
        cloud.admin(
            "attribute", {"key": "credential-bundle", "value": sender.seal(seq=2, key="ASIASECOND0000000000").decode()}
        )
        machine.until(
            lambda: aws_key(machine, uid=m.WORKER_UID) == "ASIASECOND0000000000", what="the second bundle to be served"
        )
