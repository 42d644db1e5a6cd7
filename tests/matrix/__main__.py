"""Every client against every state, for real: ``make matrix``.

Each client is a program that its makers' users might have written, started with nothing but what the environment file says
(mode ``env``), or with no environment at all in a network namespace where 169.254.169.254 leads to the agent (mode
``imds``). What is looked at is the object store's diary: as whom did the client come?

The states, and what must be seen:

* ``none``: no bundle ever came: the machine's own identity;
* ``pending``: a bundle is awaited: nobody's identity, and never the machine's;
* ``bundle``: the user's;
* ``renewed``: under a live client object the credential is replaced: no failed call, the new one;
* ``restarted``: it is replaced again, and the agent killed and started anew: no failed call, the new one;
* ``alone``: it is replaced again, and the machine's real metadata services go: no failed call, the new one;
* ``ended``: the bundle's lease is over: nobody's identity, and never the machine's.

In the three states under a live client every credential has so little time left that a client which looks at the clock asks
for another one at each call: so each call is one that needs the agent. Who may go on with the one that it has is said in
``clients.py``, with the reason.

Exit status 0: every cell of every client that is here is as said.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.gce_metadata import GceMetadataServer, Token
from tests.matrix.clients import AWS, PROGRAMS, Client, clients
from tests.matrix.store import ObjectStore
from tests.system.harness import Agent, World, background

STATES = ("none", "pending", "bundle", "renewed", "restarted", "alone", "ended")
MACHINE = {"aws": "ASIAMACHINE000000000", "gcp": "machine-token"}
READ_SECONDS = 60.0
BATCH = 16  # clients that live through one renewal, one restart and one outage together
AWS_LEFT_SECONDS = 270.0  # less than the five minutes from which on most of the SDKs ask anew at each call
GCP_LEFT_SECONDS = 200.0  # google-auth: 225
LINK_LOCAL = "169.254.169.254"


@dataclass
class Cell:
    """What was seen of one client in one state."""

    state: str
    ok: bool
    said: str
    seconds: float = 0.0
    kept: bool = False  # it went on with an earlier credential that was still good


@dataclass
class Row:
    """One client in one mode."""

    client: Client
    mode: str
    cells: dict[str, Cell] = field(default_factory=dict)


class Program:
    """A client as a process of its own: asked to read, it says how it went."""

    def __init__(self, client: Client, store: ObjectStore, env: dict[str, str], home: Path) -> None:
        assert client.argv is not None
        bare = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(home),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "ignore",
            "MATRIX_STORE": f"http://127.0.0.1:{store.port}",
            "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{store.port}",
            "CLOUDSDK_CONFIG": str(home / "gcloud"),
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            # Where programs of the AWS SDKs are told of a region: a person's own choice, not the agent's.
            "AWS_REGION": "us-east-1",
        }
        self.store = store
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            client.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
            env={**bare, **env, **client.env}, cwd=home, start_new_session=True,
        )  # fmt: skip

    def read(self) -> tuple[bool, str, set[str]]:
        """One read: whether it went well, what it said, and as whom it came."""
        before = len(self.store.who)
        answer = self._ask()
        return bool(answer.get("ok")), str(answer.get("error", "")), {who for _, _, who in self.store.who[before:]}

    def _ask(self) -> dict[str, object]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(b"read\n")
            process.stdin.flush()
        except BrokenPipeError:
            return {"ok": False, "error": self._last_words()}
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(READ_SECONDS):
                return {"ok": False, "error": f"no answer in {READ_SECONDS:.0f} s"}
        line = process.stdout.readline()
        if not line:
            return {"ok": False, "error": self._last_words()}
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def _last_words(self) -> str:
        status = self._process.wait(10)
        self._stderr.seek(0)
        return f"ended with {status}: {self._stderr.read()[-300:].decode(errors='replace')}"

    def close(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()


class Stage:
    """A worker with both clouds' metadata services, and everything that happens to it."""

    def __init__(self, mode: str, root: Path, objects: Path, jobs: int) -> None:
        self.mode = mode
        self.root = root
        self.objects = objects
        self.jobs = jobs
        self.number = 0

    def run(self, chosen: list[Client]) -> list[Row]:
        rows = {client.name: Row(client, self.mode) for client in chosen}
        with ExitStack() as stack:
            self._world = World(self.root / "w")
            self._ec2 = Ec2MetadataService()
            self._gce = GceMetadataServer()
            call = stack.enter_context(background(self._ec2, self._gce))
            self._ec2.attach(
                "machine-role", Key(MACHINE["aws"], "s" * 40, "t" * 60, datetime.now(UTC) + timedelta(hours=6))
            )
            self._gce.mint = _machine_token
            port = _free_port()
            self._config = {
                "listen": {"http": [f"127.0.0.1:{port}"]},
                "upstream": {"ec2": self._ec2.url, "gce": self._gce.url},
                "aws": {"region": "us-east-1"},
                "gcp": {"project_id": "p", "numeric_project_id": "1"},
            }
            if self.mode == "imds":
                _lead_here(port)
            agent = stack.enter_context(self._agent())
            agent.ready()
            self._all(rows, chosen, "none")
            agent.stop()

            with self._agent({"identity": {"grace_seconds": 3600.0}}) as waiting:
                waiting.started()
                self._all(rows, chosen, "pending")
                waiting.stop()

            self._current = self._agent()
            try:
                self._current.ready()
                for start in range(0, len(chosen), BATCH):
                    self._under_live_clients(rows, chosen[start : start + BATCH], call)
                self._end()
                self._all(rows, chosen, "ended")
                self._current.stop()
            finally:
                self._current.__exit__(None, None, None)
        return list(rows.values())

    def _agent(self, changes: dict[str, object] | None = None) -> Agent:
        return self._world.agent({**self._config, **(changes or {})})

    def _env(self) -> dict[str, str]:
        return self._world.env() if self.mode == "env" else {}

    def _push(self, *, lease: timedelta | None = None) -> dict[str, str]:
        """Push the next bundle, whose credentials are old; who it makes of us."""
        self.number += 1
        user = {AWS: f"ASIAUSER{self.number:012d}", "gcp": f"user-token-{self.number}"}
        more = {} if lease is None else {"lease_until": datetime.now(UTC) + lease}
        sealed = self._world.seal(
            self._world.session(user[AWS], hours=AWS_LEFT_SECONDS / 3600),
            self._world.google(user["gcp"], hours=GCP_LEFT_SECONDS / 3600),
            **more,
        )
        ack = self._current.push(sealed)
        assert ack["outcome"] == "accepted", ack
        return user

    def _end(self) -> None:
        """Let the lease of the last bundle end."""
        mark = self._current.mark
        self._push(lease=timedelta(seconds=2))
        self._current.wait_for("identity.ended", after=mark, cloud="aws", seconds=20)

    @contextmanager
    def _started(self, client: Client) -> Iterator[Program]:
        home = Path(tempfile.mkdtemp(dir=self.root))
        with ObjectStore(self.objects) as store:
            program = Program(client, store, self._env(), home)
            try:
                yield program
            finally:
                program.close()
        shutil.rmtree(home, ignore_errors=True)

    def _all(self, rows: dict[str, Row], chosen: list[Client], state: str) -> None:
        """One read of a fresh process of each client."""

        def one(client: Client) -> None:
            with self._started(client) as program:
                self._judge(rows[client.name], program, state, [])

        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(one, chosen))

    def _under_live_clients(self, rows: dict[str, Row], batch: list[Client], call: object) -> None:
        with ExitStack() as stack:
            users: list[dict[str, str]] = []
            pairs = [(rows[c.name], stack.enter_context(self._started(c))) for c in batch]

            def each(state: str) -> None:
                with ThreadPoolExecutor(self.jobs) as pool:
                    list(pool.map(lambda pair: self._judge(*pair, state, users), pairs))

            users.append(self._push())
            each("bundle")
            users.append(self._push())
            each("renewed")
            users.append(self._push())
            self._current.kill()
            self._current = self._again()
            self._current.ready()
            each("restarted")
            users.append(self._push())
            call(self._ec2.stop())  # type: ignore[operator]
            call(self._gce.stop())  # type: ignore[operator]
            each("alone")
            call(self._ec2.start())  # type: ignore[operator]
            call(self._gce.start())  # type: ignore[operator]

    def _again(self) -> Agent:
        """The agent started anew in the place of one that was killed."""
        self._current.__exit__(None, None, None)
        return self._agent()

    def _judge(self, row: Row, program: Program, state: str, users: list[dict[str, str]]) -> None:
        began = time.monotonic()
        ok, error, who = program.read()
        cloud, kept = row.client.cloud, False
        if state == "none":
            good = ok and who == {MACHINE[cloud]}
        elif state in ("pending", "ended"):
            # Nobody's: it fails, or (those that do) it asks anonymously; never as the machine, never as the user.
            good = who <= ({"anonymous"} if row.client.unsigned else set()) and (not ok or row.client.unsigned)
        else:
            newest = users[-1][cloud]
            kept = who != {newest}
            mine = {user[cloud] for user in users} if row.mode in row.client.keeps else {newest}
            good = ok and bool(who) and who <= mine
        said = "ok" if ok else (error or "refused")
        said = f"{said} as {', '.join(sorted(who)) or 'nobody'}"
        row.cells[state] = Cell(state, good, said, time.monotonic() - began, kept)


def _machine_token(_: object) -> Token:
    return Token(MACHINE["gcp"], datetime.now(UTC) + timedelta(seconds=3599))


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _lead_here(port: int) -> None:
    """In our own network namespace: 169.254.169.254:80 is the agent, for everybody."""
    rules = f"""
        table ip matrix {{
            chain output {{
                type nat hook output priority -100;
                ip daddr {LINK_LOCAL} tcp dport 80 redirect to :{port}
            }}
        }}
    """
    subprocess.run(["ip", "address", "add", f"{LINK_LOCAL}/32", "dev", "lo"], check=True)
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


def _mark(cell: Cell) -> str:
    if not cell.ok:
        return "✗"
    return "kept" if cell.kept else "✓"


def _table(rows: list[Row], all_clients: list[Client]) -> str:
    lines = ["| client | engine | mode | " + " | ".join(STATES) + " |", "|---|---|---|" + "---|" * len(STATES)]
    for row in rows:
        marks = " | ".join(_mark(row.cells[s]) for s in STATES)
        lines.append(f"| {row.client.name} | {row.client.kind} | {row.mode} | {marks} |")
    lines += [
        f"| {c.name} | {c.kind} | skipped: needs {c.missing} |" + " |" * len(STATES)
        for c in all_clients
        if c.argv is None
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__.split("\n")[0])
    parser.add_argument("--mode", choices=("env", "imds"), action="append")
    parser.add_argument("--only", action="append", help="a client by name; repeatable")
    parser.add_argument("--build", type=Path, default=Path("build/matrix"))
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--out", type=Path, help="write the table there")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.build.mkdir(parents=True, exist_ok=True)
    everyone = clients(options.build.resolve())
    chosen = [c for c in everyone if c.argv is not None and (not options.only or c.name in options.only)]
    if not chosen:
        print("no client is here: " + "; ".join(sorted({c.missing for c in everyone})))
        return 1
    modes = options.mode or ["env", "imds"]
    objects = _objects(options.build, chosen)
    rows: list[Row] = []
    began = time.monotonic()
    for mode in modes:
        if mode == "imds" and not options.inside:
            found = _inside(options)
            if found is None:
                print("skipped mode imds: needs root, ip, nft and unshare")
                continue
            by_name = {c.name: c for c in everyone}
            rows += [
                Row(by_name[r["client"]], r["mode"], {s: Cell(s, *cell) for s, cell in r["cells"].items()})
                for r in found
            ]
            continue
        root = Path(tempfile.mkdtemp(prefix="m-"))
        (root / "w").mkdir()
        try:
            rows += Stage(mode, root, objects, options.jobs).run([c for c in chosen if mode in c.modes])
        finally:
            shutil.rmtree(root, ignore_errors=True)
    if options.inside:
        print(json.dumps([
            {"client": r.client.name, "mode": r.mode, "cells": {s: [c.ok, c.said, c.seconds, c.kept] for s, c in r.cells.items()}} for r in rows
        ]))  # fmt: skip
        return 0
    table = _table(rows, everyone if not options.only else [])
    print(table)
    wrong = [(r, c) for r in rows for c in r.cells.values() if not c.ok]
    for row, cell in wrong:
        print(f"✗ {row.client.name} ({row.mode}), {cell.state}: {cell.said}")
    if options.out is not None:
        options.out.write_text(table + "\n")
    cells = sum(len(r.cells) for r in rows)
    print(f"{cells - len(wrong)} of {cells} cells as said, {len(rows)} rows, {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


def _objects(build: Path, chosen: list[Client]) -> Path:
    objects = build.resolve() / "objects"
    if not (objects / "hello.txt").exists():
        objects.mkdir(parents=True, exist_ok=True)
        python = next((c.argv[0] for c in chosen if c.argv and c.argv[1:] and c.argv[1].endswith(".py")), None)
        if python is None:
            (objects / "hello.txt").write_text("hello matrix\n")
        else:
            subprocess.run([python, "-W", "ignore", str(PROGRAMS / "prepare.py"), str(objects)], check=True)
    return objects


def _inside(options: argparse.Namespace) -> list[dict[str, object]] | None:
    """Run mode ``imds`` in a network namespace of its own, with its own /etc/hosts."""
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in ("ip", "nft", "unshare")):
        return None
    hosts = options.build.resolve() / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{LINK_LOCAL} metadata.google.internal metadata.google.internal. metadata\n")
    argv = [sys.executable, "-m", "tests.matrix", "--inside", "--mode", "imds", "--jobs", str(options.jobs)]
    argv += ["--build", str(options.build)]
    for name in options.only or []:
        argv += ["--only", name]
    script = f'ip link set lo up && mount --bind "{hosts}" /etc/hosts && exec "$@"'
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script, "sh", *argv], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"mode imds failed: {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, list)
    return found


if __name__ == "__main__":
    sys.exit(main())
