"""A cluster of machines that booted, and somebody who forwards to it from outside.

On one bridge (:mod:`tests.system.town`): AWS and Google, whose certificates and signatures verify; a host with a Dask
scheduler; a laptop; and machines in containers, each with a metadata service of its own, installed and configured as
``packer/README.md`` has it for those who forward, with the redirect on. Scheduler, workers and senders are
unprivileged users, and the workers' Python has Dask and the SDKs and nothing of ours.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.demo import accounts
from tests.demo.stage import PATH, Program, Stage, call
from tests.fakes.https_store import private_ca
from tests.fakes.relay import Change, Relay
from tests.system import machine as m
from tests.system.machine import Cloud, Disk, Machine
from tests.system.town import Town, at, within

AWS, SCHEDULER_HOST, LAPTOP, GOOGLE = (f"10.88.0.{last}" for last in (1, 2, 3, 4))
SCHEDULER = f"tcp://{SCHEDULER_HOST}:8786"
DASK_UID, DAVID_UID = 4001, 4002
ADDRESSES = {"one": "10.88.0.11", "two": "10.88.0.12", "imposter": "10.88.0.13", "google": "10.88.0.14"}
"""Of the machines."""
NAMES = {
    AWS: ["sts.us-east-1.amazonaws.com", "sts.amazonaws.com"],
    GOOGLE: ["oauth2.googleapis.com", "www.googleapis.com"],
}
"""Who has which names, at a laptop."""

SITE = sysconfig.get_path("purelib")
"""Packages for the workers' Python. A folder on its path, and no environment: nothing installed as editable is found."""

PROGRAM = m.REPOSITORY / "tests/demo/cluster_program.py"


def configuration(upstream: str, kind: str) -> str:
    """The page's own, for an image of workers that people forward to; and where the metadata service is."""
    page = (m.REPOSITORY / "packer/README.md").read_text()
    (written,) = [one for one in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if 'kind = "ephemeral"' in one]
    return f"{written.replace('ec2-user-data', kind)}\n[upstream]\n{upstream}\n"


@dataclass
class Worker:
    """A machine of the cluster.

    Attributes:
        name: what it is called here.
        address: on the bridge.
    """

    name: str
    address: str
    machine: Machine
    started: int = 0

    def key(self) -> str:
        """The access key id that an unprivileged user's unmodified boto3 finds."""
        return self.machine.run(*m.python(m.AWS), uid=m.WORKER_UID).strip()

    @contextmanager
    def job(self, *command: str, **variables: str) -> Iterator[str]:
        """A job of an unprivileged user of the workers' group, for as long as the block lasts; gives its unit."""
        self.started += 1
        unit = f"job-{self.started}"
        given = {"PYTHONPATH": "/opt/jobs", "PYTHONUNBUFFERED": "1", **variables}
        self.machine.run(
            "systemd-run", "--quiet", f"--unit={unit}", "--slice=credential-agent-workers.slice", "--uid=alice",
            "--working-directory=/home/alice", *(f"--setenv={name}={value}" for name, value in given.items()), *command,
        )  # fmt: skip
        try:
            yield unit
        finally:
            self.machine.run("sh", "-c", f"systemctl stop {unit}; systemctl reset-failed {unit} 2>/dev/null; true")

    @contextmanager
    def joined(self, *more: str, **variables: str) -> Iterator[str]:
        """A Dask worker, up, for as long as the block lasts; gives its unit."""
        command = [
            "python3", "-P", "-m", "distributed.cli.dask_worker", SCHEDULER, "--host", self.address, "--no-dashboard",
            "--name", f"{self.name}-{self.started}", "--nthreads", "1", "--local-directory", "/home/alice",
            *(more or ("--no-nanny",)),
        ]  # fmt: skip
        known = {
            "AWS_DEFAULT_REGION": accounts.REGION,
            "AWS_ENDPOINT_URL_S3": f"http://{AWS}",
            "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__GIL__ENABLED": "false",
        }
        with self.job(*command, **known, **variables) as unit:
            self.machine.until(lambda: "Registered to" in self.said(unit), seconds=60, what=f"{unit} of {self.name}")
            yield unit

    def said(self, unit: str) -> str:
        """The journal of a unit."""
        return self.machine.run("journalctl", "--no-pager", "-o", "cat", "-u", unit)


@dataclass
class Sender:
    """A program that forwards (:mod:`tests.system.sender`), until its block is left."""

    stage: Stage
    program: Program

    def now(self) -> dict[str, Any]:
        """What it said last; empty: nothing yet."""
        lines = self.program.said().splitlines()
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return found

    def until(self, **states: str) -> dict[str, Any]:
        """Wait until there are exactly these workers, by machine, each in its state (or one of several, ``a|b``).

        Returns:
            Its word then.
        """

        def stands() -> dict[str, Any] | None:
            if not self.program.running:
                raise AssertionError(self.program.complained())
            told = self.now()
            found = {one["host"]: one["state"] for one in told.get("workers", {}).values()}
            well = found.keys() == states.keys() and all(found[name] in states[name].split("|") for name in states)
            return told if told and well else None

        try:
            said: dict[str, Any] = self.stage.until(stands, str(states), seconds=90, every=0.1)
        except Exception as error:
            error.add_note(json.dumps(self.now().get("workers"), indent=1))
            raise
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stage.stop(self.program, seconds=60)


@dataclass
class Cluster:
    """All of it.

    Attributes:
        directory: everything written is below it; others may look into it.
        secrets: what David has and nobody may learn.
        workers: the machines, by name.
    """

    image: Sequence[Path]
    directory: Path
    stage: Stage
    stack: ExitStack = field(default_factory=ExitStack)
    town: Town = field(default_factory=Town)
    workers: dict[str, Worker] = field(default_factory=dict)
    sessions: dict[str, dict[str, str]] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    line: str = ""
    scheduler: Program | None = None
    senders: int = 0

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stage.clear()
        self.stack.close()

    def _build(self) -> None:
        # To the kernel a thread is a parent: what it started ends with it.
        self.pool = self.stack.enter_context(ThreadPoolExecutor(len(ADDRESSES)))
        self.stack.enter_context(self.town)
        self.cloud, self.host, self.laptop = (
            self.town.host(letter, *addresses)
            for letter, addresses in (("c", (AWS, GOOGLE)), ("s", (SCHEDULER_HOST,)), ("l", (LAPTOP,)))
        )
        self.authority, _ = private_ca(self.directory, *(name for names in NAMES.values() for name in names))
        self.hosts = self.directory / "hosts"
        self.hosts.write_text(
            "127.0.0.1 localhost\n" + "".join(f"{address} {' '.join(names)}\n" for address, names in NAMES.items())
        )
        for module, address in (("tests.demo.aws_cloud", AWS), ("tests.fakes.google_cloud", GOOGLE)):
            certificate = str(self.directory / "server.pem")
            serve = [sys.executable, "-m", module, "--host", address, "--port", "80", "--certificate", certificate]
            self.stage.start(module, [*at(self.cloud, 0), *serve], env={"PATH": PATH}, must_run=True)
        self._scheduler()
        for module in ("tests.demo.aws_cloud", "tests.fakes.google_cloud"):
            self.stage.until((self.directory / f"{module}.out").read_text, module, seconds=60)
        self._people()

    def _scheduler(self) -> None:
        home = self._home("dask", DASK_UID)
        serve = ["-S", "-P", "-m", "distributed.cli.dask_scheduler", "--host", SCHEDULER_HOST, "--port", "8786"]
        self.scheduler = self.stage.start(
            "scheduler",
            [*at(self.host, DASK_UID), sys.executable, *serve, "--no-dashboard", "--no-jupyter"],
            env={"PATH": PATH, "HOME": str(home), "PYTHONPATH": SITE},
            cwd=home,
            must_run=True,
        )

    def _people(self) -> None:
        """Accounts, and David with his laptop. From then on AWS believes signatures alone."""
        others = f"arn:aws:iam::{accounts.IMPOSTER_ACCOUNT}:role/worker-role"
        google = accounts.google_user()
        with within(self.cloud):
            made = accounts.Accounts(f"http://{AWS}")
            keys = made.furnish()
            for name, instance, role in (
                ("one", "i-0000000000000001a", accounts.MACHINE_ROLE),
                ("two", "i-0000000000000002b", accounts.MACHINE_ROLE),
                ("imposter", "i-0fedcba9876543210", others),
            ):
                self.sessions[name] = {"instance": instance, **made.machine(instance, role)}
            made.close()
            accounts.open_bucket(f"http://{GOOGLE}", google)
        self.home = self._home("david", DAVID_UID)
        accounts.sign_on(self.home, keys)
        accounts.sign_on_at_google(self.home, google)
        for path in self.home.rglob("*"):
            shutil.chown(path, DAVID_UID, DAVID_UID)
        self.secrets = {"key": keys["SecretAccessKey"], **google}
        self.line = self.cli("forward", "--launch-line").said().strip()

    def _home(self, name: str, uid: int) -> Path:
        home = self.directory / name
        home.mkdir(mode=0o755)
        shutil.chown(home, uid, uid)
        return home

    # -- machines

    def boot(self, *names: str) -> None:
        """Switch machines on that are not, beside each other: ``google`` is one of Google's, the others are of EC2."""
        for worker in self.pool.map(self._boot, [name for name in names if name not in self.workers]):
            self.workers[worker.name] = worker

    def _boot(self, name: str) -> Worker:
        address = ADDRESSES[name]
        here = 'http://169.254.169.254"'
        if name == "google":
            attributes = {"credential-agent-signer": self.line}
            cloud = m.gce(project_id=repr(accounts.PROJECT), name=repr(name), attributes=repr(attributes))
            config = configuration(f'ec2 = "off"\ngce = "{here}', "gce-attribute")
        else:
            cloud = m.ec2(account_id=repr("0" * 12), instance_id=repr(self.sessions[name]["instance"]))
            config = configuration(f'gce = "off"\nec2 = "{here}', "ec2-user-data")
        self.stack.enter_context(cloud)
        if name != "google":
            cloud.admin("attach", self.sessions[name])
            cloud.set_user_data(f"#!/bin/sh\n{self.line}\n".encode())
        self.town.plug(cloud.there, address)
        disk = self.stack.enter_context(closing(Disk(self.directory / f"disk-{name}", self.image)))
        (disk.root / "etc/credential-agent/config.toml").write_text(config)
        (disk.root / "etc/hostname").write_text(f"{name}\n")
        machine = Machine(disk, cloud)
        machine.options = [f"--bind-ro={SITE}:/opt/jobs", f"--bind-ro={self.authority}:/opt/authority.pem"]
        self.stack.callback(machine.shut_down)
        machine.boot()
        machine.run("usermod", "-aG", "credential-workers", "alice")
        shutil.copy(m.REPOSITORY / "tests/system/forger.py", disk.root / "opt/forger.py")
        return Worker(name, address, machine)

    # -- people

    def cli(self, *arguments: str) -> Program:
        """Run a command of David's to its end."""
        executable = str(Path(sys.executable).parent / "credential-agent")
        return self.run("cli", [executable, *arguments])

    def run(self, name: str, argv: Sequence[str]) -> Program:
        """Run a program of David's on his laptop to its end."""
        program = self.start(name, argv)
        self.stage.until(lambda: not program.running, f"{name} to end", seconds=90)
        return program

    def forward(self, scheduler: str = SCHEDULER, **wanted: Any) -> Sender:
        """Start to forward from David's laptop."""
        self.senders += 1
        script = m.REPOSITORY / "tests/system/sender.py"
        options = {"gcp": None, "progress": False, **wanted}
        program = self.start(
            f"sender-{self.senders}", [sys.executable, "-P", str(script), scheduler, json.dumps(options)]
        )
        return Sender(self.stage, program)

    def start(self, name: str, argv: Sequence[str]) -> Program:
        """Start a program of David's on his laptop."""
        env = {
            "PATH": PATH,
            "HOME": str(self.home),
            "LOGNAME": "david",
            "AWS_CA_BUNDLE": str(self.authority),
            "REQUESTS_CA_BUNDLE": str(self.authority),
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_GCE_CHECK": "true",
            "GOOGLE_CLOUD_PROJECT": accounts.PROJECT,
        }
        return self.stage.start(name, [*at(self.laptop, DAVID_UID, self.hosts), *argv], env=env, cwd=self.home)

    def program(self, name: str, text: str) -> list[str]:
        """The command of a program against the cluster: the one of fifteen lines, or another."""
        path = self.home / f"{name}.py"
        path.write_text(text)
        return [sys.executable, str(path), SCHEDULER]

    def davids_sessions(self) -> list[dict[str, Any]]:
        """The sessions that STS gave David."""
        with within(self.cloud):
            return accounts.sessions(f"http://{AWS}", accounts.LAPTOP_ROLE)

    def recognized(self, key: str) -> bool:
        """Whether it is the access key id of a session of David's."""
        return key in {session["access_key_id"] for session in self.davids_sessions()}

    def reads(self) -> list[dict[str, Any]]:
        """Every attempt to read his numbers, as AWS saw it."""
        with within(self.cloud):
            return accounts.reads(f"http://{AWS}", accounts.NUMBERS_BUCKET, accounts.NUMBERS_KEY)

    def certificates(self) -> None:
        """Google publishes the keys that its metadata servers sign with."""
        cloud: Cloud = self.workers["google"].machine.cloud
        with within(cloud.here):
            found = call("http://10.77.0.1/_admin/certificates", {})
        with within(self.cloud):
            call(f"http://{GOOGLE}/_admin/certificates", found)

    def between(self, change: Change = lambda message: message) -> Relay:
        """Somebody between the laptop and the scheduler, on the laptop's own network."""
        target = SCHEDULER.removeprefix("tcp://").split(":")
        return Relay((target[0], int(target[1])), change, host=LAPTOP, within=lambda: within(self.laptop))

    def memory_of_the_scheduler(self) -> bytes:
        """All that it has."""
        assert self.scheduler is not None
        where = Path(f"/proc/{self.scheduler.process.pid}")
        found = []
        with (where / "mem").open("rb", buffering=0) as memory:
            for line in (where / "maps").read_text().splitlines():
                ends, access, *_ = line.split()
                if access.startswith("rw"):
                    begin, end = (int(one, 16) for one in ends.split("-"))
                    with contextlib.suppress(OSError):
                        memory.seek(begin)
                        found.append(memory.read(end - begin))
        return b"".join(found)
