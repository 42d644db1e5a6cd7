"""The stage: processes that end when the demonstration ends, and an agent started as its systemd unit starts it."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])

# What systemd does between fork and exec for a unit with sockets (sd_listen_fds(3)): the descriptors become 3, 4, ...,
# and LISTEN_PID is the process that gets them. argv: the descriptors, then the command.
_ACTIVATE = """
import os, sys
given = [int(fd) for fd in sys.argv[1].split(",")]
high = [os.dup2(fd, 100 + index) for index, fd in enumerate(given)]
for index, fd in enumerate(high):
    os.dup2(fd, 3 + index)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(given))
os.execv(sys.argv[2], sys.argv[2:])
"""

_PR_SET_PDEATHSIG = 1


class Failed(Exception):
    """Something did not go as said. The text is for a person; no secret is in it."""


@dataclass
class Program:
    """One process, its output in files."""

    name: str
    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        """What it wrote to its standard output so far."""
        return self.stdout.read_text(errors="replace")

    def complained(self) -> str:
        """What it wrote to its standard error so far."""
        return self.stderr.read_text(errors="replace")

    def last_words(self) -> str:
        """The last line of what went wrong."""
        lines = [line for line in (self.complained() or self.said()).splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("  hint: ")] or lines
        return lines[-1].strip()[:500] if lines else "it said nothing"

    def wait(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} did not end within {seconds:g} s") from None


@dataclass
class Stage:
    """Starts processes in a directory of the demonstration's own, and ends them all.

    Attributes:
        directory: everything that is written is below it.
        must_run: programs whose end at any moment is a failure.
    """

    directory: Path
    programs: list[Program] = field(default_factory=list)
    must_run: list[Program] = field(default_factory=list)
    count: int = 0

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path = ROOT,
        sockets: Sequence[socket.socket] = (),
        must_run: bool = False,
    ) -> Program:
        """Start a program with exactly this environment."""
        stdout, stderr = self.directory / f"{name}.out", self.directory / f"{name}.err"
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=[sock.fileno() for sock in sockets],
                # A session of its own: Ctrl-C reaches us alone, and we end the others in order.
                start_new_session=True,
                preexec_fn=_in_the_child,  # noqa: PLW1509 - one thread here
            )
        program = Program(name, process, stdout, stderr)
        self.programs.append(program)
        if must_run:
            self.must_run.append(program)
        return program

    def services(self, *modules: tuple[str, str]) -> list[str]:
        """Start parts of the embedded cloud, ``(name, module)``; returns their base URLs once they answer there."""
        env = {"PATH": PATH, "HOME": str(self.directory)}
        started = [self.start(name, [sys.executable, "-m", module], env=env, must_run=True) for name, module in modules]
        return [
            self.until(partial(_first_line, one.stdout), f"{one.name} to start", seconds=30)["url"] for one in started
        ]

    def run(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], seconds: float = 30) -> Program:
        """Run a program to its end, whatever that is."""
        program = self.start(name, argv, env=env)
        self.until(lambda: not program.running, f"{name} to end", seconds=seconds)
        return program

    def until(self, ready: Callable[[], Any], what: str, *, seconds: float, every: float = 0.02) -> Any:
        """Wait for ``ready`` to be true and give what it said; meanwhile see that everybody who must run does."""
        end = time.monotonic() + seconds
        while True:
            self.check()
            found = ready()
            if found:
                return found
            if time.monotonic() >= end:
                raise Failed(f"waited {seconds:g} s in vain for {what}")
            time.sleep(every)

    def check(self) -> None:
        """Fail if somebody who must run has ended."""
        for program in self.must_run:
            if not program.running:
                code = program.process.returncode
                if code < 0:
                    raise Failed(f"{program.name} was killed by {signal.Signals(-code).name}")
                raise Failed(f"{program.name} ended with status {code}: {program.last_words()}")

    def stop(self, program: Program, *, by: signal.Signals = signal.SIGTERM, seconds: float = 10) -> int:
        """Ask a program to end; returns its exit status."""
        if program in self.must_run:
            self.must_run.remove(program)
        if program.running:
            program.process.send_signal(by)
        return program.wait(seconds)

    def clear(self) -> None:
        """End everybody, the youngest first, politely and then not."""
        self.must_run.clear()
        for program in reversed(self.programs):
            if program.running:
                program.process.terminate()
        end = time.monotonic() + 3
        for program in reversed(self.programs):
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.process.wait(max(0.0, end - time.monotonic()))
            if program.running:
                program.process.kill()
                program.process.wait()


def _in_the_child() -> None:
    # If the demonstration itself is killed outright, nothing of it stays behind.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _first_line(path: Path) -> Any:
    line, newline, _ = path.read_text().partition("\n")
    return json.loads(line) if newline else None


@dataclass
class Agent:
    """The agent, as ``credential-agent.service`` and its sockets start it: Type=notify, socket activation, no terminal."""

    stage: Stage
    config: Path
    control: Path
    endpoint: socket.socket
    name: str = "credential-agent"
    program: Program = field(init=False)

    def start(self) -> None:
        """Start it and wait until it says ``READY=1``."""
        notify = self.stage.directory / f"notify-{self.name}"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
            inbox.bind(str(notify))
            inbox.setblocking(False)
            executable = Path(sys.executable).parent / "credential-agent"
            if not executable.exists():
                raise Failed(f"{executable} is not there; run `make venv`")
            command = [str(executable), "run", "--config", str(self.config)]
            self.program = self.stage.start(
                self.name,
                [sys.executable, "-c", _ACTIVATE, str(self.endpoint.fileno()), *command],
                env={"PATH": PATH, "NOTIFY_SOCKET": str(notify), "LISTEN_FDNAMES": "http"},
                sockets=[self.endpoint],
                must_run=True,
            )
            self.stage.until(lambda: _ready(inbox), "the agent to say READY=1", seconds=20)

    def status(self) -> dict[str, Any]:
        """The status document, from the control socket."""
        connection = _UnixConnection(str(self.control))
        try:
            connection.request("GET", "/v1/status", headers={"Host": "agent"})
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.stage.check()
            raise Failed(f"the agent does not answer on its control socket: {error}") from None
        finally:
            connection.close()
        return answer


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(5)
        self.sock.connect(self._path)


def _ready(inbox: socket.socket) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(inbox, selectors.EVENT_READ)
        while selector.select(0):
            if "READY=1" in inbox.recv(65536).decode(errors="replace").split("\n"):
                return True
    return False


def call(url: str, said: Any = None, *, content_type: str = "application/json") -> Any:
    """POST ``said`` (or GET, without it) to a part of the embedded cloud, past any proxy; returns the decoded answer."""
    data = said if isinstance(said, bytes) else None if said is None else json.dumps(said).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": content_type} if data is not None else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        body = answer.read()
    return json.loads(body) if body else None
