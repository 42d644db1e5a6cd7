"""A restart under a real systemd loses nothing, whatever is away meanwhile: unmodified clients never see it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from agent import bundle
from tests.system import machine as m
from tests.system.machine import Disk, Machine, python
from tests.system.test_boot import EC2, Sender

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("boot")]

image = m.image
STATE = "/var/lib/credential-agent"
MUTE = "10.77.0.1:9443"
"""Where a key service would be: connections are accepted there, and nothing is said."""

LOOP = """
import sys, boto3
print("begun", flush=True)
done = 0
while not sys.stdin.readable() or not __import__("select").select([sys.stdin], [], [], 0)[0]:
    key = boto3.Session().get_credentials()
    assert key is not None and key.access_key == sys.argv[1], key
    done += 1
print(done)
"""


EPHEMERAL = """
[[keys]]
kind = "ephemeral"
"""
KMS = f"""kind = "aws-kms"
key_id = "arn:aws:kms:eu-west-1:111122223333:key/00000000-0000-4000-8000-000000000000"
public_key = "/etc/credential-agent/worker.pub.jwk"
region = "eu-west-1"
endpoint = "http://{MUTE}"
"""
KEYS = """
import http.client, socket
connection = http.client.HTTPConnection("agent")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect("/run/credential-agent-control.sock")
connection.request("GET", "/v1/keys")
print(connection.getresponse().read().decode())
"""


@pytest.fixture(scope="module")
def sender() -> Sender:
    return Sender()


@pytest.fixture(scope="module")
def worker(image: Sequence[Path], sender: Sender, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with closing(Disk(tmp_path_factory.mktemp("restart"), image)) as disk, m.ec2() as cloud:
        sender.configure(disk.root, source="ec2-user-data", upstream=EC2, extra=EPHEMERAL)
        (disk.root / "etc/credential-agent/worker.pub.jwk").write_text(json.dumps(sender.key.public_jwk()))
        cloud.set_user_data(sender.seal())
        with Machine(disk, cloud) as machine:
            yield machine


@contextmanager
def clients(machine: Machine, key: str) -> Iterator[None]:
    """Fresh sessions one after the other, as a worker's unit has them; none fails, and none gets another identity."""
    job = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--slice=credential-agent-workers.slice",
           "--property=EnvironmentFile=/run/credential-agent/env"]  # fmt: skip
    client = subprocess.Popen(
        [*machine.enter(), *job, *python(LOOP), key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    try:
        assert client.stdout.readline() == "begun\n"
        yield
    finally:
        out, err = client.communicate("end\n", timeout=60)
    assert client.returncode == 0, f"{err[-1500:]}\n{machine.log()}"
    assert int(out) > 0


def main_pid(machine: Machine) -> str:
    return machine.run("systemctl", "show", "-P", "MainPID", "credential-agent").strip()


@contextmanager
def silent_metadata(machine: Machine) -> Iterator[None]:
    for process in machine.cloud._processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in machine.cloud._processes:
            process.send_signal(signal.SIGCONT)


@contextmanager
def read_only_state(machine: Machine) -> Iterator[None]:
    machine.run("mount", "--bind", STATE, STATE)
    machine.run("mount", "-o", "remount,bind,ro", STATE)
    try:
        yield
    finally:
        machine.run("umount", "--lazy", STATE)
        machine.run("systemctl", "restart", "credential-agent")  # its own view of the directory stayed as it was


@contextmanager
def stopped_journal(machine: Machine) -> Iterator[None]:
    machine.run("systemctl", "kill", "--signal=STOP", "systemd-journald.service")
    try:
        yield
    finally:
        machine.run("systemctl", "kill", "--signal=CONT", "systemd-journald.service")


@contextmanager
def restarted_journal(machine: Machine) -> Iterator[None]:
    machine.run("systemctl", "restart", "systemd-journald.service")
    yield


@contextmanager
def no_key(machine: Machine) -> Iterator[None]:
    machine.run("mv", "/etc/credstore/credential-agent.key", "/etc/credstore/away")
    try:
        yield
    finally:
        machine.run("mv", "/etc/credstore/away", "/etc/credstore/credential-agent.key")


@contextmanager
def silent_key_service(machine: Machine) -> Iterator[None]:
    """The same key lies in a key service, which accepts connections and says nothing."""
    config = machine.root / "etc/credential-agent/config.toml"
    before = config.read_text()
    code = "import socket, sys; s = socket.create_server(sys.argv[1:]); print(flush=True); sys.stdin.read()"
    host, port = MUTE.split(":")
    code = code.replace("sys.argv[1:]", f"({host!r}, {port})")
    listener = subprocess.Popen(
        ["ip", "netns", "exec", machine.cloud.here, sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert listener.stdout is not None
    listener.stdout.readline()
    config.write_text(before.replace('kind = "credential"\nname = "credential-agent.key"\n', KMS))
    try:
        yield
    finally:
        config.write_text(before)
        listener.communicate(b"")
        machine.run("systemctl", "restart", "credential-agent")


@contextmanager
def nothing(_: Machine) -> Iterator[None]:
    yield


TROUBLES: dict[str, Callable[[Machine], AbstractContextManager[None]]] = {
    "nothing": nothing,
    "metadata": silent_metadata,
    "state": read_only_state,
    "journal": stopped_journal,
    "journal-anew": restarted_journal,
    "key": no_key,
    "key-service": silent_key_service,
}


def told(machine: Machine) -> dict[str, object] | None:
    """What it says of AWS; nothing while it starts."""
    done = machine.result("credential-agent", "status", "--json")
    return json.loads(done.stdout)["clouds"]["aws"] if done.returncode == 0 else None


@pytest.mark.parametrize(
    ("trouble", "blow"), [("nothing", "kill"), ("metadata", "kill"), *((name, "restart") for name in TROUBLES)]
)
def test_no_client_sees_it(worker: Machine, trouble: str, blow: str) -> None:
    """Whatever is away while the agent is restarted or killed, each call is answered with what was served before."""
    before = main_pid(worker)
    with clients(worker, m.USER_KEY), TROUBLES[trouble](worker):
        if blow == "kill":
            worker.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "credential-agent")
            worker.until(lambda: main_pid(worker) not in ("0", before), what="another process")
        else:
            worker.run("systemctl", "restart", "credential-agent")
        aws = worker.until(lambda: told(worker), what="an answer")
        assert aws["origin"] == "bundle"
    assert main_pid(worker) != before


def test_a_key_that_is_nowhere_else(worker: Machine, sender: Sender) -> None:
    """A bundle for the key that was made at the start is served over a restart, and the next one is opened after it."""
    keys = json.loads(worker.run(*python(KEYS)))["keys"]
    (public,) = [key for key in keys if key["x"] != sender.key.public_jwk()["x"]]
    here = Sender()
    here.signer, here.recipient = sender.signer, bundle.RecipientKey.parse(json.dumps(public))
    for seq, key in ((2, "ASIAUSER000000000002"), (3, "ASIAUSER000000000003")):
        (worker.root / "root/bundle").write_bytes(here.seal(seq=seq, key=key))
        worker.run("credential-agent", "push", "/root/bundle")
        with clients(worker, key), silent_metadata(worker), read_only_state(worker):
            worker.run("systemctl", "restart", "credential-agent")


def test_the_grace_is_had_once(worker: Machine) -> None:
    """Where no bundle came the machine's own identity is served over a restart at once, without another grace."""
    worker.run("systemctl", "stop", "credential-agent")
    worker.run("sh", "-c", f"rm -f {STATE}/* /run/credential-agent/*.json")
    worker.cloud.set_user_data(None)
    worker.run("systemctl", "start", "credential-agent")
    with clients(worker, m.MACHINE_KEY), silent_metadata(worker):
        worker.run("systemctl", "restart", "credential-agent")
        aws = worker.until(lambda: told(worker), what="an answer")
        assert aws["origin"] == "fallback"
