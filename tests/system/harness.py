"""The daemon as a real process over real sockets: start it, wait for what it says, ask it, stop it, kill it.

Everything that waits, waits for an event with a deadline: a line of the log, the end of the process, an answer. The
only polling is :func:`until`, for what announces itself to nobody (a file's new content).

Where things are:

* :class:`World`: a directory with a worker's keys, a signer, a configuration and its state. It makes grants
  (``session``, ``role_grant``, ``google``, ``variables``), seals them (``seal``, ``withdrawal``) and puts the bundle
  where the agent looks (``drop``). It outlives agents: a restart is a second ``agent()`` in the same world.
* :class:`Agent`: one process. Its log is read as it comes: ``wait_for`` an event with these fields, ``events`` so far,
  ``mark`` to look only at what comes after. ``imds``, ``credential`` and ``google_token`` ask as a worker does, ``status``,
  ``push`` and ``operate`` as an operator. ``stop`` and ``kill`` end it; leaving the block does, whatever happened.
* :func:`background`: services of :mod:`tests.fakes` (a metadata service, STS, a store) in a loop of their own beside
  the test; their URLs go into the configuration (``world.agent({"upstream": {"ec2": service.url}})``).
* :func:`until`, :func:`as_user`, :func:`exchange`: polling with a deadline, a command as somebody else, one request.

Which fake speaks what is in ``tests/fakes/README.md``; booted machines are in :mod:`tests.system.machine`, network
namespaces in :mod:`tests.system.lab`.

In a test::

    world = World(tmp_path)
    with world.agent() as agent:
        agent.ready()
        world.drop(world.seal(world.session("user")))
        agent.wait_for("bundle.accepted", seq=1)
        assert agent.credential()["AccessKeyId"] == "ASIA..."
"""

from __future__ import annotations

import asyncio
import copy
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from agent import bundle
from agent.core.model import Action, AwsAssumeRole, AwsSession, Cloud, Env, GcpToken, Grant
from agent.core.secret import Secret

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = f"{Path(__file__).with_name('as_installed')}:{REPOSITORY}"
"""Where an agent looks for modules (``PYTHONPATH``): ours, without what its workers do not have."""
DEADLINE_SECONDS = 15.0
"""For anything that should be instant: this machine may be very busy."""

AUDIENCE = bundle.audience_cluster("test")
ISSUER = "https://control.example"
SUBJECT = "user:alice"

T = TypeVar("T")


def toml(tree: Mapping[str, Any]) -> str:
    """``tree`` as TOML: sections are mappings, arrays of tables are lists of mappings. A JSON string is a TOML one."""

    def value(thing: Any) -> str:
        if isinstance(thing, Mapping):
            return "{ " + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in thing.items()) + " }"
        if isinstance(thing, list | tuple):
            return "[" + ", ".join(map(value, thing)) + "]"
        return json.dumps(str(thing) if isinstance(thing, Path) else thing)

    return "".join(f"{name} = {value(thing)}\n" for name, thing in tree.items())


def merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``tree`` with ``changes`` laid over it, section by section; ``None`` takes a key away."""
    result = copy.deepcopy(dict(tree))
    for name, thing in changes.items():
        if thing is None:
            result.pop(name, None)
        elif isinstance(thing, Mapping) and isinstance(result.get(name), Mapping):
            result[name] = merged(result[name], thing)
        else:
            result[name] = thing
    return result


def until(look: Callable[[], T], *, seconds: float = DEADLINE_SECONDS, what: str = "it") -> T:
    """The first true value of ``look``."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true in {seconds} s")
        pause.wait(0.01)
    return found


NOBODY = 65534
NICE = -10
"""As the agent's unit runs it."""


def as_user(argv: Sequence[str], user: int | None) -> list[str]:
    """The command, run as another user and group, without any other group and without capabilities."""
    if user is None:
        return list(argv)
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all", "--", *argv]


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float = DEADLINE_SECONDS) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Reply:
    """An answer, read to its end."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = {name.lower(): text for name, text in answer.getheaders()}
        self.body = answer.read()

    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<{self.status} {self.body[:300]!r}>"


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Reply:
    """One request on a connection of its own."""
    try:
        connection.request(method, path, body, dict(headers or {}))
        return Reply(connection.getresponse())
    finally:
        connection.close()


def _children(pid: int) -> list[int]:
    """The oldest first: of a master's, that is the one that answers."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Agent:
    """One run of the daemon.

    Args:
        config: the configuration file.
        environ: variables beside the bare minimum.
        passed: listening sockets and files to hand over as systemd does, ``(name, descriptor)``, from descriptor 3 on.
        prelude: Python source that runs in the process before the daemon (crash points, say).
        user: the numeric user and group to run as; ``None``: ours.
        through: a command that executes the daemon's own, which follows it: for another standard error, say.

    Attributes:
        lines: what it logged so far, decoded; a line that is no JSON is ``{"event": "raw", "text": LINE}``.
    """

    def __init__(
        self,
        config: Path,
        *,
        environ: Mapping[str, str] | None = None,
        passed: Sequence[tuple[str, int]] = (),
        prelude: str = "",
        command: str = "run",
        user: int | None = None,
        through: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.lines: list[dict[str, Any]] = []
        self.stderr = ""
        self._news = threading.Condition()
        self._ended = False
        env = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": MODULES,
            "PYTHONDONTWRITEBYTECODE": "1",
            **(environ or {}),
        }
        # A process learns its own pid only after the fork, and LISTEN_PID must be it.
        code = (
            "import fcntl, os, sys\n"
            f"given = {[(name, fd) for name, fd in passed]!r}\n"
            "high = [(name, fcntl.fcntl(fd, fcntl.F_DUPFD, 100)) for name, fd in given]\n"
            "for number, (name, fd) in enumerate(high, 3):\n"
            "    os.dup2(fd, number, inheritable=True)\n"
            "    os.close(fd)\n"
            "if given:\n"
            "    os.environ['LISTEN_PID'] = str(os.getpid())\n"
            "    os.environ['LISTEN_FDS'] = str(len(given))\n"
            "    os.environ['LISTEN_FDNAMES'] = ':'.join(name for name, _ in given)\n"
            f"{prelude}\n"
            "from agent.__main__ import main\n"
            f"main([{command!r}, '--config', {str(config)!r}])\n"
        )
        exact = not passed and not prelude
        argv = (
            [sys.executable, "-m", "agent", command, "--config", str(config)] if exact else [sys.executable, "-c", code]
        )
        self.process = subprocess.Popen(
            as_user([*through, *argv], user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            pass_fds=[fd for _, fd in passed],
            cwd="/",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            text = raw.decode(errors="replace")
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict):
                line = {"event": "raw", "text": text}
            with self._news:
                self.stderr += text
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    # -- waiting

    @property
    def mark(self) -> int:
        """The present end of the log: give it to :meth:`wait_for` as ``after``."""
        with self._news:
            return len(self.lines)

    def wait_for(
        self, event: str, *, after: int = 0, seconds: float = DEADLINE_SECONDS, **fields: object
    ) -> dict[str, Any]:
        """The first line with that event and those fields, logged or to be logged."""

        def found() -> dict[str, Any] | None:
            return next(
                (
                    line
                    for line in self.lines[after:]
                    if line.get("event") == event and all(line.get(k) == v for k, v in fields.items())
                ),
                None,
            )

        with self._news:
            self._news.wait_for(lambda: found() is not None or self._ended, seconds)
            line = found()
            log = self.stderr
        if line is None:
            raise AssertionError(f"no {event} {fields} within {seconds} s; the log:\n{log}")
        return line

    def events(self, event: str, *, after: int = 0) -> list[dict[str, Any]]:
        """Every line with that event so far."""
        with self._news:
            return [line for line in self.lines[after:] if line.get("event") == event]

    def started(self) -> Self:
        """Wait until the listeners are open."""
        self.wait_for("agent.started")
        return self

    def ready(self) -> Self:
        """Wait until it says that it is ready."""
        self.wait_for("agent.ready")
        return self

    # -- ending

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for the end; the exit status, negative for a signal."""
        status = self.process.wait(seconds)
        self._reader.join(seconds)
        return status

    def stop(self) -> int:
        """End it as systemd does; returns its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    @property
    def processes(self) -> list[int]:
        """The process ids of the agent, and of those that it began: the last is the one that answers workers.

        Before it, if it is there yet, is the one that stands by.
        """
        found = [self.process.pid]
        for pid in found:
            found += reversed(_children(pid))
        return found

    def every_process(self) -> list[int]:
        """:attr:`processes`, once one answers workers and one stands by."""

        def look() -> list[int]:
            found = self.processes
            return found if len(found) > 1 and len(_children(found[1])) == 2 else []

        return until(look, what="one that answers, and one that stands by")

    def kill(self) -> None:
        """End it as the out-of-memory killer does."""
        self.process.kill()
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    # -- asking

    @property
    def address(self) -> tuple[str, int]:
        """Where the workers' endpoint is."""
        host, _, port = str(self.wait_for("agent.started")["http"][0]).rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def url(self) -> str:
        host, port = self.address
        return f"http://{host}:{port}"

    @property
    def control(self) -> Path:
        return Path(str(self.wait_for("agent.started")["control"]))

    def ask(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Reply:
        """Ask the workers' endpoint."""
        host, port = self.address
        connection = http.client.HTTPConnection(host, port, timeout=DEADLINE_SECONDS)
        return exchange(connection, method, path, headers, body)

    def operate(self, path: str, *, method: str = "GET", body: bytes | None = None) -> Reply:
        """Ask the control socket."""
        return exchange(UnixConnection(self.control), method, path, None, body)

    def status(self) -> dict[str, Any]:
        reply = self.operate("/v1/status")
        assert reply.status == 200, reply
        document = reply.json()
        assert isinstance(document, dict)
        return document

    def push(self, sealed: bytes) -> dict[str, Any]:
        """Push a bundle; the acknowledgement."""
        reply = self.operate("/v1/bundle", method="PUT", body=sealed)
        assert reply.status in (200, 422), reply
        ack = reply.json()
        assert isinstance(ack, dict)
        return ack

    def imds_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        reply = self.ask("/latest/api/token", method="PUT", headers=headers)
        assert reply.status == 200, reply
        return reply.body.decode()

    def imds(self, path: str) -> Reply:
        return self.ask(path, headers={"X-aws-ec2-metadata-token": self.imds_token()})

    def role(self) -> str | None:
        """The role that IMDS lists; ``None`` when it lists none."""
        reply = self.imds("/latest/meta-data/iam/security-credentials/")
        return reply.body.decode() if reply.status == 200 else None

    def credential(self) -> dict[str, Any]:
        """The AWS credential, as an IMDS client gets it."""
        name = self.role()
        assert name is not None, self.status()["clouds"]["aws"]
        reply = self.imds(f"/latest/meta-data/iam/security-credentials/{name}")
        assert reply.status == 200, reply
        document = reply.json()
        assert isinstance(document, dict)
        return document

    def access_key(self) -> str | None:
        """The access key id that is served; ``None`` when AWS is not."""
        return str(self.credential()["AccessKeyId"]) if self.role() is not None else None

    def google_token(self) -> Reply:
        return self.ask(
            "/computeMetadata/v1/instance/service-accounts/default/token", headers={"Metadata-Flavor": "Google"}
        )


class World:
    """A worker's disk, and a control plane that has its keys.

    Args:
        root: an empty directory with a short name (a socket's path has 107 bytes).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("etc", "run", "state", "drop"):
            (root / name).mkdir(mode=0o700)
        self.signer = bundle.SigningKey.generate("Ed25519")
        self.key = bundle.OpeningKey.generate("P-256")
        self.recipient = bundle.RecipientKey.parse(json.dumps(self.key.public_jwk()))
        self.key_file = root / "etc" / "worker.jwk"
        self.key_file.touch(mode=0o600)
        self.key_file.write_text(json.dumps({**self.key.private_jwk(), "kid": self.key.kid}))
        self.signer_file = root / "etc" / "sender.jwk"
        self.signer_file.write_text(json.dumps({**self.signer.public_jwk(), "kid": self.signer.kid}))
        self.bundle_file = root / "drop" / "bundle"
        self.state = root / "state"
        self.seq = 0
        self.base: dict[str, Any] = {
            "listen": {"http": ["127.0.0.1:0"], "control": root / "run" / "control"},
            "identity": {"audience": [AUDIENCE], "instance_id": "i-1", "grace_seconds": 0.0},
            "keys": [{"kind": "file", "path": self.key_file}],
            "signers": [{"key": self.signer_file, "issuers": [ISSUER]}],
            "sources": [{"kind": "file", "path": self.bundle_file}],
            "upstream": {"ec2": "off", "gce": "off"},
            "environment": {
                "allow": ["*"],
                "file": root / "run" / "env",
                "shell_file": root / "run" / "env.sh",
                "token_file": root / "run" / "token",
                "mode": "0600",
            },
            "state": {"directory": self.state},
            "log": {"format": "json"},
        }

    # -- the worker

    def write_config(self, changes: Mapping[str, Any] | None = None, name: str = "config.toml") -> Path:
        path = self.root / "etc" / name
        path.write_text(toml(merged(self.base, changes or {})))
        return path

    def agent(self, changes: Mapping[str, Any] | None = None, **more: Any) -> Agent:
        """Start a daemon whose configuration is the base with ``changes``."""
        return Agent(self.write_config(changes), **more)

    def drop(self, sealed: bytes) -> None:
        """Put a bundle where the file source looks, by a rename."""
        temporary = self.bundle_file.with_suffix(".new")
        temporary.write_bytes(sealed)
        temporary.replace(self.bundle_file)

    def env(self) -> dict[str, str]:
        """The environment file, as systemd reads it."""
        text = (self.root / "run" / "env").read_text()
        found = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, quoted = line.partition("=")
                found[name] = quoted[1:-1].replace('\\"', '"').replace("\\$", "$").replace("\\\\", "\\")
        return found

    @property
    def token(self) -> str:
        """The bearer token of the container endpoint."""
        return (self.root / "run" / "token").read_text()

    # -- the control plane

    def session(
        self, key: str = "ASIAUSER000000000000", *, hours: float = 6, secret: str = "s" * 40, token: str = "t" * 80
    ) -> AwsSession:
        return AwsSession(
            id="user",
            access_key_id=key,
            secret_access_key=Secret(secret),
            session_token=Secret(token),
            expires_at=int((datetime.now(UTC) + timedelta(hours=hours)).timestamp()),
        )

    def role_grant(self, *, base: str = "instance") -> AwsAssumeRole:
        return AwsAssumeRole(id="role", role_arn="arn:aws:iam::123456789012:role/Data", base=base, region="us-east-1")

    def google(self, token: str = "ya29.google", *, hours: float = 1) -> GcpToken:
        return GcpToken(
            id="google",
            access_token=Secret(token),
            expires_at=int((datetime.now(UTC) + timedelta(hours=hours)).timestamp()),
            email="worker@project.iam.gserviceaccount.com",
        )

    def variables(self, **values: str) -> Env:
        return Env(id="env", variables={name: Secret(value) for name, value in values.items()})

    def seal(self, *grants: Grant, seq: int | None = None, **more: Any) -> bytes:
        """Seal a bundle for this worker; by default with the next number."""
        self.seq = self.seq + 1 if seq is None else max(self.seq, seq)
        settings: dict[str, Any] = {
            "signer": self.signer,
            "recipients": [self.recipient],
            "issuer": ISSUER,
            "subject": SUBJECT,
            "audiences": [AUDIENCE],
            "now": datetime.now(UTC),
            "grants": grants,
            "seq": self.seq if seq is None else seq,
            **more,
        }
        if "routes" not in settings and any(grant.id == "role" for grant in grants):
            settings["routes"] = {Cloud.AWS: "role"}
        return bundle.seal(**settings)

    def withdrawal(self, **more: Any) -> bytes:
        return self.seal(action=Action.WITHDRAW, **more)


@contextmanager
def background(*services: Any) -> Iterator[Callable[[Awaitable[T]], T]]:
    """Run the fakes of :mod:`tests.fakes.served` in a thread; gives a function that runs a coroutine in their loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def call(work: Awaitable[T]) -> T:
        async def waited() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(waited(), loop).result(DEADLINE_SECONDS)

    try:
        for service in services:
            call(service.start())
        yield call
    finally:
        for service in services:
            call(service.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_SECONDS)
        loop.close()
