"""Faults of the machine below a worker: no network at boot, a systemd that hangs, a journal that is gone, a full /run...

One machine, and a worker that asks all the time. In each fault it gets what the last acknowledged bundle says or nothing,
never the machine's identity; what is acknowledged is so; and when the cause goes, all is as before, by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import pytest

from tests.system import machine as m
from tests.system.machine import Cloud, Disk, Machine, python
from tests.system.test_boot import EC2, Sender
from tests.system.test_serve_boot import withdrawal

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("boot")]

image = m.image

# One line for each answer: the access key, or what came in its place.
ASKS = """
import http.client, json, select, sys
def ask(method, path, **headers):
    connection = http.client.HTTPConnection("169.254.169.254", timeout=3)
    try:
        connection.request(method, "/latest/" + path, headers={"X-aws-ec2-metadata-" + k: v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
def key():
    token = ask("PUT", "api/token", **{"token-ttl-seconds": "60"})[1]
    status, role = ask("GET", "meta-data/iam/security-credentials/", token=token)
    if status != 200:
        return str(status)
    return json.loads(ask("GET", "meta-data/iam/security-credentials/" + role, token=token)[1])["AccessKeyId"]
while not select.select([sys.stdin], [], [], 0.1)[0]:
    try:
        print(key(), flush=True)
    except (OSError, http.client.HTTPException) as error:
        print(type(error).__name__, flush=True)
"""


STARVED = "TimeoutError"
"""What a machine that has too much to do says: nobody was refused."""


class Asking:
    """A worker that asks all the time."""

    def __init__(self, machine: Machine) -> None:
        command = [*machine.enter(m.WORKER_UID), *python(ASKS)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answers: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.answers.append(line.strip())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # nsenter(1) may be killed; what it began would live on
        self._reader.join()
        self._process.stdout.close()
        self._process.wait()

    @property
    def keys(self) -> set[str]:
        """Those that it got so far."""
        return {answer for answer in self.answers if answer.startswith("ASIA")}


class Worker:
    """The machine, what asks there, and a sender."""

    def __init__(self, machine: Machine, sender: Sender) -> None:
        self.machine, self.sender = machine, sender
        self.asking = Asking(machine)
        self.seq = 1
        self.key = m.USER_KEY

    def close(self) -> None:
        self.asking.close()

    def push(self, *, withdraw: bool = False) -> int:
        """Push the next bundle; how that ended."""
        self.seq += 1
        key = f"ASIAUSER{self.seq:012}"
        sealed = withdrawal(self.sender, self.seq) if withdraw else self.sender.seal(seq=self.seq, key=key)
        done = self.machine.result(
            "sh", "-c", "base64 -d | credential-agent push -", text=b64encode(sealed).decode(), seconds=120
        )
        if done.returncode == 0 or "not confirmed" in done.stderr:
            self.key = "" if withdraw else key
        return done.returncode

    def gets(self, key: str) -> None:
        """Wait until that is what it gets from now on: a key, or an answer with none."""
        before = len(self.asking.answers)

        def settled() -> bool:
            last = self.asking.answers[before:][-3:]
            return len(last) == 3 and set(last) == {key or "503"}

        try:
            self.machine.until(settled, seconds=90, what=key or "nothing")
        except AssertionError as error:
            error.add_note(str(self.asking.answers[-20:]))
            raise


@contextmanager
def unplugged(cloud: Cloud) -> Iterator[Callable[[], None]]:
    """The machine's cable; gives what plugs it in."""
    m.call("ip", "-n", cloud.there, "link", "set", "eth0", "down")

    def plug() -> None:
        m.call("ip", "-n", cloud.there, "link", "set", "eth0", "up")
        m.call("ip", "-n", cloud.there, "route", "replace", "default", "via", "10.77.0.1")

    yield plug


@pytest.fixture(scope="module")
def sender() -> Sender:
    return Sender()


class Boot(NamedTuple):
    """A machine that has booted without network, and what plugs it in."""

    worker: Worker
    plug: Callable[[], None]


@pytest.fixture(scope="module")
def boot(image: Sequence[Any], sender: Sender, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boot]:
    with closing(Disk(tmp_path_factory.mktemp("faults"), image)) as disk, m.ec2() as cloud, unplugged(cloud) as plug:
        sender.configure(disk.root, source="ec2-user-data", upstream=EC2)
        config = disk.root / "etc/credential-agent/config.toml"
        config.write_text(config.read_text().replace("grace_seconds = 20", "grace_seconds = 1"))
        cloud.set_user_data(sender.seal())
        machine = Machine(disk, cloud)
        try:
            with closing(Worker(machine.boot(healthy=False), sender)) as worker:
                yield Boot(worker, plug)
        finally:
            machine.shut_down()


def test_a_network_that_comes_after_the_grace_makes_nobody_the_machine(boot: Boot) -> None:
    """The machine's credential can be had as soon as user-data can; whoever asks in that moment waits for the latter."""
    aws = boot.worker.machine.status()["clouds"]["aws"]
    assert aws["state"] == "pending"
    assert "ec2-user-data does not answer" in aws["why"]
    boot.plug()
    boot.worker.gets(m.USER_KEY)
    assert boot.worker.asking.keys == {m.USER_KEY}


@pytest.fixture
def worker(boot: Boot) -> Worker:
    """With a network, and served, whichever test was before."""
    boot.plug()
    boot.worker.gets(boot.worker.key)
    return boot.worker


@contextmanager
def systemd_hangs(worker: Worker) -> Iterator[None]:
    os.kill(worker.machine.leader, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker.machine.leader, signal.SIGCONT)


def by(break_: str, mend: str) -> Callable[[Worker], Any]:
    """A fault that a shell makes, and one that mends it."""

    @contextmanager
    def fault(worker: Worker) -> Iterator[None]:
        worker.machine.run("sh", "-c", break_)
        try:
            yield
        finally:
            worker.machine.run("sh", "-c", mend)

    return fault


JOURNAL = (
    "systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket systemd-journald.service"
)
RESTART = "systemctl restart credential-agent"
AS_ALWAYS: dict[str, Callable[[Worker], Any]] = {
    "systemd hangs": systemd_hangs,
    "no bus": by(f"systemctl stop dbus.socket dbus.service; {RESTART}", "systemctl start dbus.socket"),
    "no journal": by(f"systemctl stop {JOURNAL}; rm -f /dev/log; {RESTART}", f"systemctl start {JOURNAL}"),
    "a full /run": by(
        f"mount -o remount,size=$(df --output=used /run | tail -1)k /run; {RESTART}", "mount -o remount,size=64m /run"
    ),
}


@pytest.mark.parametrize("fault", AS_ALWAYS.values(), ids=AS_ALWAYS)
def test_bundles_come_and_go_as_always(worker: Worker, fault: Callable[[Worker], Any]) -> None:
    """A worker is served without a gap; a bundle and a withdrawal that are acknowledged are what it gets, at once."""
    before, seen = worker.key, len(worker.asking.answers)
    with fault(worker):
        assert worker.push() == 0
        first = worker.key
        worker.gets(first)
        assert set(worker.asking.answers[seen:]) <= {before, first, STARVED}
        assert worker.push(withdraw=True) == 0
        worker.gets("")
        seen = len(worker.asking.answers)
        assert worker.push() == 0
        worker.gets(worker.key)
    worker.gets(worker.key)
    assert set(worker.asking.answers[seen:]) <= {"503", worker.key, STARVED}
    worker.machine.until(lambda: worker.machine.status()["redirect"]["arrives"], what="all as before")


def test_a_journal_that_is_back_is_heard_again(worker: Worker) -> None:
    """What the agent says after a journal was gone is in it, though the stream that it had is not."""
    worker.machine.run("sh", "-c", f"systemctl stop {JOURNAL}; systemctl start {JOURNAL}")
    assert worker.push() == 0
    said = ["journalctl", "--no-pager", "--output=cat", "--unit=credential-agent", "--grep", f'"seq": {worker.seq}']
    worker.machine.until(lambda: worker.machine.result(*said).stdout, what="the bundle in the journal")


def test_a_frozen_server_is_confirmed_by_nobody(worker: Worker) -> None:
    """While what answers is frozen no withdrawal is acknowledged; when it thaws, the withdrawal is what it answers by."""
    worker.machine.run("systemctl", "freeze", "credential-agent-serve")
    try:
        assert worker.push(withdraw=True) == 71
    finally:
        worker.machine.run("systemctl", "thaw", "credential-agent-serve")
    worker.gets("")
    assert worker.push() == 0
    worker.gets(worker.key)


def test_where_there_is_no_room_for_temporary_files_all_begin_anew(worker: Worker) -> None:
    """Any user can fill /tmp and /var/tmp: no unit of ours needs a place there, and all is as before."""
    units = [f"credential-agent{name}.service" for name in ("", "-serve", "-redirect", "-watch", "-hold")]
    fill = "for place in /tmp /var/tmp; do mount -t tmpfs -o nr_inodes=1,mode=1777 none $place; done"
    with by(fill, "umount --lazy /tmp /var/tmp")(worker):
        assert worker.machine.result("mkdir", "/tmp/one", "/var/tmp/one").stderr.count("No space left") == 2
        worker.machine.run("systemctl", "restart", *units, seconds=120)
        worker.gets(worker.key)
        assert worker.push() == 0
        worker.gets(worker.key)


def test_units_that_are_restarted_as_fast_as_can_be(worker: Worker) -> None:
    """However often and in whatever order: no limit of starts is met, and all is as before."""
    units = " ".join(f"credential-agent{name}" for name in ("", "-serve", "-redirect", "-watch"))
    again = f"for i in $(seq 20); do systemctl restart --no-block {units} nftables; sleep 0.1; done; systemctl daemon-reexec || true"
    worker.machine.run("sh", "-c", again)
    worker.machine.until(
        lambda: worker.machine.result("systemctl", "list-jobs").stdout == "No jobs running.\n", what="rest"
    )
    worker.gets(worker.key)
    assert worker.push() == 0
    worker.gets(worker.key)
    failed = worker.machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "credential*")
    assert failed.strip() == ""


def test_nobody_was_ever_the_machine(worker: Worker) -> None:
    """In none of all these did the worker get the machine's identity."""
    assert m.MACHINE_KEY not in worker.asking.keys
