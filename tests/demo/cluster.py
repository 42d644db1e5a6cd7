"""The first chapter: one line from a laptop to a cluster. A Dask cluster, each worker with an agent of its own."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.demo import accounts, cloud
from tests.demo.stage import PATH, Agent, Failed, Program, Stage, call
from tests.demo.teller import Teller

PROGRAM = Path(__file__).with_name("cluster_program.py")
JOB = Path(__file__).with_name("cluster_job.py")
LINE = "with forward.dask(client):"


@dataclass
class Cluster:
    """The cluster and what happens on it.

    Attributes:
        stage: where it happens.
        teller: says so.
        clouds: the embedded cloud.
        laptop: David's.
    """

    stage: Stage
    teller: Teller
    clouds: cloud.Clouds
    laptop: cloud.Laptop
    scheduler: str = ""
    programs: list[Program] = field(default_factory=list)

    def tell(self) -> str:
        """Tell it; returns what came of it, in a few words."""
        line = self._start()
        without = self._program("without-the-line", PROGRAM.read_text().replace(LINE, "if True:"))
        self._expect(without.process.returncode != 0, "the program to fail without the line", without.said())
        self._expect("AccessDenied" in without.complained(), "AccessDenied", without.last_words())
        self.teller.done("a program of 15 lines reads a private object on three workers: AccessDenied")
        with_it = self._program("with-the-line", PROGRAM.read_text())
        self._expect(with_it.said().count(accounts.NUMBERS) == 6, "six reads", with_it.last_words())
        self.teller.done(
            f"the same with one line more, {LINE!r}: {self.teller.paint('36', accounts.NUMBERS)}, six times"
        )
        forwarding = self._forward()
        job = self._run("job", [sys.executable, str(JOB), self.scheduler, "--every", "0.3"], HOME=str(self.laptop.home))
        self._until_read(job, 3)
        self.teller.done("credential-agent forward --dask: three workers of the account read, an imposter's does not")
        took = self._fourth(job, line)
        self._imposter()
        lines = len(job.said().splitlines())
        self.stage.stop(forwarding, by=signal.SIGKILL)
        self.stage.until(lambda: len(job.said().splitlines()) >= lines + 3, "the job to read on", seconds=90)
        self._until_read(job, 4)
        self.teller.done("the forwarding program is killed, the laptop closed: the job reads on, to the session's end")
        for program in reversed(self.programs):
            self.stage.stop(program, by=signal.SIGKILL)
        return f"4 workers; a newcomer reads after {took:.1f} s"

    def _start(self) -> str:
        """A scheduler and three workers."""
        line = self._cli("launch-line", "forward", "--launch-line").said().strip()
        file = self.stage.directory / "scheduler.json"
        arguments = [
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--no-jupyter",
            "--scheduler-file",
            str(file),
        ]
        self._run(
            "dask-scheduler",
            [sys.executable, "-m", "distributed.cli.dask_scheduler", *arguments],
            must_run=True,
            HOME=str(self.laptop.home),
        )
        self.stage.until(file.exists, "the scheduler to start", seconds=60)
        self.scheduler = self.stage.until(lambda: _address(file), "its address", seconds=60)
        for name in ("one", "two", "three"):
            self._worker(name, line, self.clouds.ec2_metadata)
        for name in ("one", "two", "three"):
            self._registered(name)
        self.teller.done("a Dask cluster: a scheduler and three workers, each with an agent that believes David's key")
        self.teller.note(f"what the workers were launched with: {line}")
        return line

    def _worker(self, name: str, line: str, metadata: str) -> None:
        """A machine: an agent, and a Dask worker beside it that was told nothing of it but where its metadata is."""
        home = self.stage.directory / f"machine-{name}"
        for part in ("run", "state", "home", "signers"):
            (home / part).mkdir(parents=True)
        key = line.partition("ed25519:")[2]
        (home / "signers/david.jwk").write_text(json.dumps({"kty": "OKP", "crv": "Ed25519", "x": key}))
        endpoint = socket.create_server(("127.0.0.1", 0), backlog=256)
        port = endpoint.getsockname()[1]
        text = json.dumps
        (home / "config.toml").write_text(f"""# A machine of the cluster: no list of keys, no secret in its image.
[listen]
http = ["127.0.0.1:{port}"]
control = {text(f"{home}/run/control.sock")}

[identity]
grace_seconds = 0

[[keys]]
kind = "ephemeral"

[[signers]]
key = {text(f"{home}/signers/david.jwk")}
issuers = ["laptop:*"]
audiences = ["*"]

[upstream]
ec2 = {text(metadata)}
gce = "off"

[mint]
sts_endpoint = {text(self.clouds.aws)}

[state]
directory = {text(f"{home}/state")}
""")
        agent = Agent(self.stage, home / "config.toml", home / "run/control.sock", endpoint, name=f"agent-{name}")
        agent.start()
        self.programs.append(agent.program)
        endpoint.close()
        worker = [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            self.scheduler,
            "--host",
            "127.0.0.1",
            "--name",
            name,
        ]
        self._run(
            f"dask-{name}",
            [*worker, "--no-nanny", "--no-dashboard", "--nthreads", "1", "--local-directory", str(home / "home")],
            must_run=True,
            HOME=str(home / "home"),
            AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://127.0.0.1:{port}",
            AWS_ENDPOINT_URL_S3=self.clouds.aws,
            AWS_DEFAULT_REGION=accounts.REGION,
            CREDENTIAL_AGENT_COURIER=f"{home}/run/courier.sock",
        )

    def _registered(self, name: str) -> float:
        """Wait until the worker is up; when that was, by our clock."""
        program = next(one for one in self.programs if one.name == f"dask-{name}")
        self.stage.until(lambda: "Registered to" in program.complained(), f"worker {name} to be up", seconds=60)
        return time.monotonic()

    def _forward(self) -> Program:
        # An imposter: a machine of somebody else's account, in David's cluster.
        metadata = self.stage.services(("imposter-metadata", "tests.fakes.ec2_metadata"))[0]
        call(f"{metadata}/_admin/attach", self.clouds.imposter)
        self._worker("imposter", self._cli("launch-line", "forward", "--launch-line").said().strip(), metadata)
        self._registered("imposter")
        executable = str(Path(sys.executable).parent / "credential-agent")
        return self._run("forward", [executable, "forward", "--dask", self.scheduler], env=self._as_david())

    def _fourth(self, job: Program, line: str) -> float:
        self._worker("four", line, self.clouds.ec2_metadata)
        up = self._registered("four")
        self._until_read(job, 4)
        took = time.monotonic() - up
        self.teller.done("a fourth worker joins: it is served before its first task, and reads")
        return took

    def _imposter(self) -> None:
        forwarding = next(one for one in self.programs if one.name == "forward")
        self.stage.until(
            lambda: accounts.IMPOSTER_ACCOUNT in forwarding.complained(), "the imposter to be refused", seconds=90
        )
        said = next(text for text in forwarding.complained().splitlines() if accounts.IMPOSTER_ACCOUNT in text)
        self.teller.done("an imposter's machine proves that it is of another account, and gets nothing")
        self.teller.note(re.sub(r"^credential-agent:\s*", "", said)[:150])

    def _until_read(self, job: Program, count: int) -> None:
        def read() -> bool:
            lines = job.said().splitlines()
            return bool(lines) and json.loads(lines[-1])["read"] == count

        self.stage.until(read, f"{count} workers to read", seconds=90, every=0.05)

    def _program(self, name: str, text: str) -> Program:
        path = self.stage.directory / f"{name}.py"
        path.write_text(text)
        return self.stage.run(name, [sys.executable, str(path), self.scheduler], env=self._as_david(), seconds=60)

    def _as_david(self) -> dict[str, str]:
        return {
            "PATH": PATH,
            "HOME": str(self.laptop.home),
            # Where evidence is verified here; elsewhere it is AWS itself.
            "AWS_ENDPOINT_URL_STS": self.clouds.aws,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_GCE_CHECK": "true",
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.laptop.home / "none"),
        }

    def _cli(self, name: str, *arguments: str) -> Program:
        executable = str(Path(sys.executable).parent / "credential-agent")
        program = self.stage.run(name, [executable, *arguments], env=self._as_david())
        self._expect(program.process.returncode == 0, f"credential-agent {arguments[0]}", program.last_words())
        return program

    def _run(
        self, name: str, argv: list[str], *, must_run: bool = False, env: dict[str, str] | None = None, **more: str
    ) -> Program:
        program = self.stage.start(name, argv, env={"PATH": PATH, **(env or {}), **more}, must_run=must_run)
        self.programs.append(program)
        return program

    def _expect(self, holds: bool, expected: str, got: object) -> None:
        self.stage.check()
        if not holds:
            raise Failed(f"expected {expected}, got {got}")


def _address(file: Path) -> str | None:
    try:
        found: Any = json.loads(file.read_text())
    except ValueError:
        return None
    address: str = found["address"]
    return address
