"""Every client against every state, for real: ``make matrix``.

Each client is a program that its makers' users might have written, started with nothing but what the environment file says
(mode ``env``), or with no environment at all in a network namespace where 169.254.169.254 leads to the agent (mode
``imds``), or where only fd00:ec2::254 does and the client is told to use IPv6 (mode ``imds6``). What is looked at is the object store's diary: as whom did the client come?

The states, and what must be seen:

* ``none``: no bundle ever came: the machine's own identity;
* ``late``: under that live client a bundle comes, and the end that the machine's credential was told to have is reached: the
  user's. The client's clocks leap by twenty minutes (:mod:`tests.matrix.leap`);
* ``pending``: a bundle is awaited: nobody's identity, and never the machine's;
* ``asked while pending``: under that live client the bundle comes: the user's, or still nobody's where a client remembers the
  miss (after an hour of its clocks it is asked once more: later, or never?), and never the machine's;
* ``bundle``: the user's;
* ``renewed``: under a live client object the credential is replaced: no failed call, the new one;
* ``restarted``: it is replaced again, and the agent killed and started anew: no failed call, the new one;
* ``alone``: it is replaced again, and the machine's real metadata services go: no failed call, the new one;
* ``afresh``: a new process while they are gone: the user's;
* ``ended``: the bundle's lease is over: nobody's identity, and never the machine's.

In the three states under a live client every credential has so little time left that a client which looks at the clock asks
for another one at each call: so each call is one that needs the agent. Who may go on with the one that it has, and who may
remember a miss, is said in ``clients.py``, with the reason.

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
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.gce_metadata import GceMetadataServer, Token
from tests.matrix.clients import AWS, PROGRAMS, Client, clients
from tests.matrix.leap import Leap, build
from tests.matrix.store import ObjectStore
from tests.system.harness import Agent, World, background, until

ASKED = "asked while pending"
STATES = ("none", "late", "pending", ASKED, "bundle", "renewed", "restarted", "alone", "afresh", "ended")
MACHINE = {"aws": "ASIAMACHINE000000000", "gcp": "machine-token"}
READ_SECONDS = 120.0
NOBODY_SECONDS = 25.0  # where no answer may come: who still asks after that has not been given any identity either
START_SECONDS = 60.0  # of the agent, on a machine that runs a dozen interpreters on two cores
BATCH = 16  # clients that live through one renewal, one restart and one outage together
AWS_LEFT_SECONDS = 270.0  # less than the five minutes from which on most of the SDKs ask anew at each call
GCP_LEFT_SECONDS = 200.0  # google-auth: 225
EARLY_END = timedelta(minutes=20)  # the latest that a client is told for the machine's, where a bundle may come
LATER = timedelta(hours=1)  # who has not asked again by then will not
LINK_LOCAL = "169.254.169.254"
LINK_LOCAL_6 = "fd00:ec2::254"
MODES = ("env", "imds", "imds6")


Users = Sequence[dict[str, str]]
"""Whom the bundles made of us so far, by cloud."""


@dataclass
class Cell:
    """What was seen of one client in one state."""

    state: str
    ok: bool
    said: str
    seconds: float = 0.0
    mark: str = "✓"  # what is seen in the table, if ok


@dataclass
class Row:
    """One client in one mode."""

    client: Client
    mode: str
    cells: dict[str, Cell] = field(default_factory=dict)


class Program:
    """A client as a process of its own: asked to read, it says how it went."""

    def __init__(
        self, client: Client, store: ObjectStore, env: dict[str, str], home: Path, leap: Leap | None = None
    ) -> None:
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
        self.leap = leap
        self._owed = 0  # answers to what it was asked when nobody waited any longer
        preload = {} if leap is None else leap.environ
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the program
        self._process = subprocess.Popen(
            client.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
            env={**bare, **env, **client.env, **preload}, cwd=home, start_new_session=True,
        )  # fmt: skip

    def wait(self) -> None:
        """Wait until it has loaded its libraries: not to evaluate a client's patience while a dozen others start."""
        try:
            self._line(START_SECONDS)
        except OSError as error:
            raise AssertionError(f"it does not start: {error}") from error

    def read(self, seconds: float = READ_SECONDS) -> tuple[bool, str, set[str]]:
        """One read: whether it went well, what it said, and as whom it came."""
        before = len(self.store.who)
        try:
            answer = self._ask(seconds)
        except OSError as error:
            answer = {"ok": False, "error": str(error)}
        return bool(answer.get("ok")), str(answer.get("error", "")), {who for _, _, who in self.store.who[before:]}

    def _ask(self, seconds: float) -> dict[str, object]:
        assert self._process.stdin is not None
        # The answer to an earlier question is none to this one.
        for _ in range(self._owed):
            self._line(seconds)
            self._owed -= 1
        try:
            self._process.stdin.write(b"read\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise OSError(self._last_words()) from error
        self._owed += 1
        answer = json.loads(self._line(seconds))
        self._owed -= 1
        assert isinstance(answer, dict)
        return answer

    def _line(self, seconds: float) -> bytes:
        """What it says next.

        Raises:
            OSError: it says nothing in time, or ended.
        """
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise TimeoutError(f"no answer in {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise OSError(self._last_words())
        return line

    def _last_words(self) -> str:
        status = self._process.wait(10)
        self._stderr.seek(0)
        return f"ended with {status}: {self._stderr.read()[-300:].decode(errors='replace')}"

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
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
            self._ec2 = Ec2MetadataService()
            self._gce = GceMetadataServer()
            call = stack.enter_context(background(self._ec2, self._gce))
            self._leap = build(self.root)
            self._ec2.attach(
                "machine-role", Key(MACHINE["aws"], "s" * 40, "t" * 60, datetime.now(UTC) + timedelta(hours=6))
            )
            self._gce.mint = _machine_token
            port = _free_port()
            self._config = {
                "listen": {"http": [f"{'[::1]' if self.mode == 'imds6' else '127.0.0.1'}:{port}"]},
                "upstream": {"ec2": self._ec2.url, "gce": self._gce.url},
                "aws": {"region": "us-east-1"},
                "gcp": {"project_id": "p", "numeric_project_id": "1"},
            }
            if self.mode != "env":
                _lead_here(port, LINK_LOCAL_6 if self.mode == "imds6" else LINK_LOCAL)
            for start in range(0, len(chosen), BATCH):
                self._before_the_bundle(rows, chosen[start : start + BATCH], start)
            self._world = World(_made(self.root / "w"))
            self._current = self._agent()
            try:
                self._current.wait_for("agent.ready", seconds=START_SECONDS)
                for start in range(0, len(chosen), BATCH):
                    self._under_live_clients(rows, chosen[start : start + BATCH], call)
                for service in (self._ec2, self._gce):
                    call(service.stop())
                self._all(rows, chosen, "afresh", [self._push(young=True)])
                self._end()
                self._all(rows, chosen, "ended")
                self._current.stop()
            finally:
                self._current.__exit__(None, None, None)
        return list(rows.values())

    def _agent(self, changes: dict[str, object] | None = None) -> Agent:
        return self._world.agent({**self._config, **(changes or {})})

    def _env(self) -> dict[str, str]:
        if self.mode == "imds6":
            return {"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv6"}
        return self._world.env() if self.mode == "env" else {}

    def _push(self, *, lease: timedelta | None = None, young: bool = False) -> dict[str, str]:
        """Push the next bundle, whose credentials are old unless said; who it makes of us."""
        self.number += 1
        user = {AWS: f"ASIAUSER{self.number:012d}", "gcp": f"user-token-{self.number}"}
        more: dict[str, Any] = {} if lease is None else {"lease_until": datetime.now(UTC) + lease}
        sealed = self._world.seal(
            self._world.session(user[AWS], hours=6 if young else AWS_LEFT_SECONDS / 3600),
            self._world.google(user["gcp"], hours=1 if young else GCP_LEFT_SECONDS / 3600),
            **more,
        )
        ack = self._current.push(sealed)
        assert ack["outcome"] == "accepted", ack
        return user

    def _end(self) -> None:
        """Let the lease of the last bundle end."""
        mark = self._current.mark
        self._push(lease=timedelta(seconds=2))
        self._current.wait_for("identity.ended", after=mark, cloud="aws", seconds=START_SECONDS)

    @contextmanager
    def _started(self, client: Client, *, leaps: bool = False) -> Iterator[Program]:
        home = Path(tempfile.mkdtemp(dir=self.root))
        leap = None
        if leaps and self._leap is not None and not client.own_clock:
            leap = Leap(self._leap, home / "leap")
        with ObjectStore(self.objects) as store:
            program = Program(client, store, self._env(), home, leap)
            try:
                yield program
            finally:
                program.close()
        shutil.rmtree(home, ignore_errors=True)

    def _all(self, rows: dict[str, Row], chosen: list[Client], state: str, users: Users = ()) -> None:
        """One read of a fresh process of each client."""

        def one(client: Client) -> None:
            with self._started(client) as program:
                program.wait()
                self._evaluate(rows[client.name], program, state, users)

        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(one, chosen))

    def _before_the_bundle(self, rows: dict[str, Row], batch: list[Client], number: int) -> None:
        """Clients that ask before there is a bundle, and once more when it has come; each time on a new worker."""
        for state, then, event, grace in (
            ("none", self._late, "agent.ready", 0.0),
            ("pending", self._asked, "agent.started", 3600.0),
        ):
            self._world = World(_made(self.root / f"{state[0]}{number}"))
            self._current = self._agent({"identity": {"grace_seconds": grace}})
            with self._current, ExitStack() as stack:
                self._current.wait_for(event, seconds=START_SECONDS)
                if self.mode == "env":
                    until((self._world.root / "run" / "env").exists, what="the environment file")
                pairs = [(rows[c.name], stack.enter_context(self._started(c, leaps=True))) for c in batch]
                for _, program in pairs:
                    program.wait()
                self._each(pairs, partial(self._evaluate, state=state, users=()))
                user = self._push(young=True)
                self._each(pairs, partial(then, user=user))
                self._current.stop()

    def _each(self, pairs: Iterable[tuple[Row, Program]], work: Callable[[Row, Program], None]) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(lambda pair: work(*pair), pairs))

    def _late(self, row: Row, program: Program, user: dict[str, str]) -> None:
        """The bundle came, and what the client was told of the machine's credential is over."""
        if program.leap is not None:
            program.leap.by(EARLY_END + timedelta(seconds=1))
            self._evaluate(row, program, "late", [user])
            return
        program.close()
        with self._started(row.client) as anew:
            anew.wait()
            self._evaluate(row, anew, "late", [user])
        row.cells["late"].mark = "anew"

    def _asked(self, row: Row, program: Program, user: dict[str, str]) -> None:
        """The bundle came; the client has seen that there was no identity."""
        cloud, began = row.client.cloud, time.monotonic()
        nobody = {"anonymous"} if row.client.unsigned else set()
        ok, error, who = program.read(NOBODY_SECONDS)
        seen, mark = set(who), "✓"
        if not (ok and who == {user[cloud]}):
            mark = "not at once"
            if program.leap is not None:
                program.leap.by(LATER)
                ok, error, who = program.read(NOBODY_SECONDS)
                mark = "later" if ok and who == {user[cloud]} else "never"
                seen |= who
        # The machine's never; and who does not come must be known for it.
        good = seen <= {user[cloud], *nobody} and (mark == "✓" or row.mode in row.client.remembers)
        said = f"{'ok' if ok else error or 'refused'} as {', '.join(sorted(seen)) or 'nobody'} ({mark})"
        row.cells[ASKED] = Cell(ASKED, good, said, time.monotonic() - began, mark)

    def _under_live_clients(
        self, rows: dict[str, Row], batch: list[Client], call: Callable[[Awaitable[Any]], Any]
    ) -> None:
        with ExitStack() as stack:
            users: list[dict[str, str]] = []
            pairs = [(rows[c.name], stack.enter_context(self._started(c))) for c in batch]

            def each(state: str) -> None:
                self._each(pairs, lambda row, program: self._evaluate(row, program, state, users))

            users.append(self._push())
            for _, program in pairs:
                program.wait()
            each("bundle")
            users.append(self._push())
            each("renewed")
            users.append(self._push())
            self._current.kill()
            self._current = self._again()
            self._current.wait_for("agent.ready", seconds=START_SECONDS)
            each("restarted")
            users.append(self._push())
            for service in (self._ec2, self._gce):
                call(service.stop())
            each("alone")
            for service in (self._ec2, self._gce):
                call(service.start(port=urlsplit(service.url).port or 0))

    def _again(self) -> Agent:
        """The agent started anew in the place of one that was killed."""
        self._current.__exit__(None, None, None)
        return self._agent()

    def _evaluate(self, row: Row, program: Program, state: str, users: Users) -> None:
        began = time.monotonic()
        ok, error, who = program.read(NOBODY_SECONDS if state in ("pending", "ended") else READ_SECONDS)
        cloud, kept = row.client.cloud, False
        if state == "none":
            good = ok and who == {MACHINE[cloud]}
        elif state in ("pending", "ended"):
            # Nobody's: it fails, or (those that do) it asks anonymously; never as the machine, never as the user.
            good = who <= ({"anonymous"} if row.client.unsigned else set()) and (not ok or row.client.unsigned)
        else:
            newest = users[-1][cloud]
            kept = who != {newest}
            may_keep = state != "late" and row.mode in row.client.keeps
            mine = {user[cloud] for user in users} if may_keep else {newest}
            good = ok and bool(who) and who <= mine
        said = "ok" if ok else (error or "refused")
        said = f"{said} as {', '.join(sorted(who)) or 'nobody'}"
        row.cells[state] = Cell(state, good, said, time.monotonic() - began, "kept" if kept else "✓")


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _machine_token(_: object) -> Token:
    return Token(MACHINE["gcp"], datetime.now(UTC) + timedelta(seconds=3599))


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _lead_here(port: int, address: str) -> None:
    """In our own network namespace: port 80 of ``address`` is the agent, for everybody."""
    family, size = ("ip6", 128) if ":" in address else ("ip", 32)
    rules = f"""
        table {family} matrix {{
            chain output {{
                type nat hook output priority -100;
                {family} daddr {address} tcp dport 80 redirect to :{port}
            }}
        }}
    """
    subprocess.run(["ip", "address", "add", f"{address}/{size}", "dev", "lo"], check=True)
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


def _mark(cell: Cell) -> str:
    return cell.mark if cell.ok else "✗"


def _table(rows: list[Row], all_clients: list[Client]) -> str:
    """The rows in Markdown; the modes of a client that went alike share one."""
    lines = ["| client | engine | mode | " + " | ".join(STATES) + " |", "|---|---|---|" + "---|" * len(STATES)]
    alike: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    order = [client.name for client in all_clients]
    for row in sorted(rows, key=lambda r: (order.index(r.client.name), MODES.index(r.mode))):
        marks = tuple(_mark(row.cells[state]) for state in STATES)
        alike.setdefault((row.client.name, row.client.kind, marks), []).append(row.mode)
    for (name, kind, marks), modes in alike.items():
        lines.append(f"| {name} | {kind} | {', '.join(modes)} | {' | '.join(marks)} |")
    ran = {row.client.name for row in rows}
    lines += [
        f"| {c.name} | {c.kind} | not run: needs {c.missing} |" + " |" * len(STATES)
        for c in all_clients
        if c.argv is None and c.name not in ran
    ]
    lines += _reasons(
        "Who may keep a credential that has five minutes left, though there is a new one:",
        {(row.client.kind, mode, why) for row in rows for mode, why in row.client.keeps.items() if mode == row.mode},
    )
    lines += _reasons(
        "Who may remember that there was no identity, and must start after `credential-agent wait`:",
        {
            (row.client.name, mode, why)
            for row in rows
            for mode, why in row.client.remembers.items()
            if mode == row.mode
        },
    )
    return "\n".join(lines)


def _reasons(title: str, found: set[tuple[str, str, str]]) -> list[str]:
    """Whom a rule of the table does not bind, and why: who, in which mode, the reason."""
    whys: dict[tuple[str, str], list[str]] = {}
    for who, mode, why in sorted(found):
        whys.setdefault((who, why), []).append(mode)
    listed = [f"- {who} ({', '.join(modes)}): {why}." for (who, why), modes in whys.items()]
    return ["", title, "", *listed] if listed else []


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__.split("\n")[0])
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--only", action="append", help="a client by name; repeatable")
    parser.add_argument("--build", type=Path, default=Path("build/matrix"))
    parser.add_argument("--jobs", type=int, default=4, help="clients at a time, in each mode")
    parser.add_argument(
        "--readme", action="store_true", help="put the table into tests/matrix/README.md when all is as said"
    )
    parser.add_argument("--slowest", type=int, default=0, metavar="N", help="say which N reads took longest")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.build.mkdir(parents=True, exist_ok=True)
    everyone = clients(options.build.resolve())
    chosen = [c for c in everyone if c.argv is not None and (not options.only or c.name in options.only)]
    if not chosen:
        print("no client is here: " + "; ".join(sorted({c.missing for c in everyone})))
        return 1
    modes = options.mode or list(MODES)
    objects = _objects(options.build, chosen)
    began = time.monotonic()

    def one(mode: str) -> list[Row] | None:
        mine = [client for client in chosen if mode in client.modes]
        if not mine:
            return []
        if mode != "env" and not options.inside:
            return _inside(options, mode, mine)
        root = Path(tempfile.mkdtemp(prefix="m-"))
        try:
            return Stage(mode, root, objects, options.jobs).run(mine)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    # Side by side: most of the time a client waits before it tries once more.
    with ThreadPoolExecutor(len(modes)) as pool:
        rows = [row for found in pool.map(one, modes) for row in found or []]
    if options.inside:
        print(json.dumps([
            {"client": r.client.name, "cells": {s: [c.ok, c.said, c.seconds, c.mark] for s, c in r.cells.items()}} for r in rows
        ]))  # fmt: skip
        return 0
    table = _table(rows, chosen if options.only else everyone)
    print(table)
    for mode in modes:
        if mode != "env" and not _namespaces():
            print(f"skipped mode {mode}: needs root, ip, nft and unshare")
    wrong = [(r, c) for r in rows for c in r.cells.values() if not c.ok]
    for row, cell in wrong:
        print(f"✗ {row.client.name} ({row.mode}), {cell.state}: {cell.said}")
    (options.build / "table.md").write_text(table + "\n")
    if options.readme and not wrong:
        _put_in_readme(table)
    for row, cell in sorted(((r, c) for r in rows for c in r.cells.values()), key=lambda x: -x[1].seconds)[
        : options.slowest
    ]:
        print(f"{cell.seconds:6.1f} s  {row.client.name} ({row.mode}), {cell.state}: {cell.said[:120]}")
    cells = sum(len(r.cells) for r in rows)
    print(f"{cells - len(wrong)} of {cells} cells as said, {len(rows)} rows, {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


def _objects(build: Path, chosen: list[Client]) -> Path:
    """What the clients read; a table and a picture, where a client that needs one is here to make it."""
    objects = build.resolve() / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    (objects / "hello.txt").write_text("hello matrix\n")
    (objects / "data.csv").write_text("a,b\n1,2\n3,4\n")
    python = next((c.argv[0] for c in chosen if c.argv and c.name in ("deltalake", "rasterio", "rasterio-gcs")), None)
    if python is not None and not (objects / "raster.tif").exists():
        subprocess.run([python, "-W", "ignore", str(PROGRAMS / "prepare.py"), str(objects)], check=True)
    return objects


def _put_in_readme(table: str) -> None:
    readme = Path(__file__).with_name("README.md")
    before, begin, rest = readme.read_text().partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of table -->\n")
    assert begin, readme
    assert end, readme
    readme.write_text(f"{before}{begin}\n{table}\n\n{end}{after}")


def _namespaces() -> bool:
    """Whether this process can make itself a network."""
    return os.geteuid() == 0 and all(shutil.which(tool) for tool in ("ip", "nft", "unshare"))


def _inside(options: argparse.Namespace, mode: str, chosen: list[Client]) -> list[Row] | None:
    """Run a mode in a network namespace of its own, with its own /etc/hosts."""
    if not _namespaces():
        return None
    hosts = options.build.resolve() / f"hosts-{mode}"
    hosts.write_text(f"127.0.0.1 localhost\n{LINK_LOCAL} metadata.google.internal metadata.google.internal. metadata\n")
    argv = [sys.executable, "-m", "tests.matrix", "--inside", "--mode", mode, "--jobs", str(options.jobs)]
    argv += ["--build", str(options.build)]
    for client in chosen:
        argv += ["--only", client.name]
    script = f'ip link set lo up && mount --bind "{hosts}" /etc/hosts && exec "$@"'
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script, "sh", *argv], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"mode {mode} failed: {done.returncode}")
    by_name = {client.name: client for client in chosen}
    return [
        Row(by_name[found["client"]], mode, {state: Cell(state, *cell) for state, cell in found["cells"].items()})
        for found in json.loads(done.stdout.splitlines()[-1])
    ]


if __name__ == "__main__":
    sys.exit(main())
