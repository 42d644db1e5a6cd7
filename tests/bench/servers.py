"""The servers that are measured: the daemon as it is installed, and what else answers the same on this machine.

Each answers from memory what it can: EC2's sequence, the containers' document, Google's token. Peers that this machine
lacks are left out, and the report says so.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

from agent.daemon.unit import LASTED_SECONDS
from tests.bench.certificate import make_certificate
from tests.system.harness import NICE, Agent, World
from tests.system.serve_unit import ServeUnit

HERE = Path(__file__).resolve().parent
HELPER = "github.com/aws/rolesanywhere-credential-helper@v1.4.0"
CONTAINER, GOOGLE = "/v1/credentials", "/computeMetadata/v1/instance/service-accounts/default/token"
_SECONDS = 60


class Server(NamedTuple):
    """One that runs.

    Attributes:
        pid: its first process.
        started: seconds from exec to the first answer.
        kinds: what it answers: ``ec2``, ``container``, ``google``.
        token: what its container endpoint wants to see.
    """

    name: str
    port: int
    pid: int
    started: float
    kinds: tuple[str, ...]
    token: str = "token"


def nice() -> list[str]:
    """All run as the agent's unit runs it, so that none has an advantage; only root may."""
    return ["nice", "-n", str(NICE)] if os.geteuid() == 0 else []


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ask(port: int, request: bytes) -> bytes:
    """One exchange, or nothing when nobody is there yet."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
            sock.sendall(request)
            answer = b""
            while piece := sock.recv(4096):
                answer += piece
            return answer
    except OSError:
        return b""


def serves(port: int) -> bool:
    """Whether a whole sequence is answered."""
    host = f"Host: 127.0.0.1:{port}\r\nConnection: close\r\n".encode()
    put = b"PUT /latest/api/token HTTP/1.1\r\n" + host + b"X-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n"
    answer = ask(port, put)
    if not answer.startswith(b"HTTP/1.1 200"):
        return False
    token = b"X-aws-ec2-metadata-token: " + answer.rpartition(b"\r\n\r\n")[2] + b"\r\n\r\n"
    path = b"/latest/meta-data/iam/security-credentials/"
    answer = ask(port, b"GET " + path + b" HTTP/1.1\r\n" + host + token)
    if not answer.startswith(b"HTTP/1.1 200"):
        return False
    role = answer.rpartition(b"\r\n\r\n")[2].strip()
    return b"AccessKeyId" in ask(port, b"GET " + path + role + b" HTTP/1.1\r\n" + host + token)


def wait_for(port: int, process: subprocess.Popen[bytes], why: Callable[[], str]) -> float:
    """Seconds until it serves."""
    began = time.perf_counter()
    while not serves(port):
        if process.poll() is not None or time.perf_counter() - began > _SECONDS:
            raise SystemExit(f"{process.args!r} did not come up: {why()}")
        time.sleep(0.002)
    return time.perf_counter() - began


def installed(directory: Path) -> Path:
    """An environment as the install script leaves it: what is locked and nothing else, compiled. Its interpreter."""
    venv.create(directory, symlinks=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    root = HERE.parents[1]
    shutil.copytree(root / "agent", packages / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    locked = (root / "requirements/runtime.txt").read_text()
    for name in re.findall(r"^([\w-]+)==", locked, re.MULTILINE):
        with suppress(PackageNotFoundError):  # for another Python
            for file in files(name) or ():
                if ".." not in file.parts and file.suffix != ".pyc":
                    (packages / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file.locate(), packages / file)
    interpreter = directory / "bin/python"
    subprocess.run([interpreter, "-I", "-m", "agent.host.compiling", packages], check=True)
    return interpreter


@contextmanager
def agent(interpreter: Path, directory: Path) -> Iterator[Server]:
    """The daemon, with a bundle at hand for both clouds."""
    directory.mkdir()
    world = World(directory)
    world.drop(world.seal(world.session("ASIAUSER000000000000"), world.google()))
    port = free_port()
    config = world.write_config({"listen": {"http": [f"127.0.0.1:{port}"]}})
    through = [*nice(), "sh", "-c", 'shift && exec "$0" "$@"', str(interpreter)]  # in place of ours
    with Agent(config, environ={"PYTHONPATH": ""}, through=through) as process:
        started = wait_for(port, process.process, lambda: process.stderr)
        yield Server("agent", port, process.process.pid, started, ("ec2", "container", "google"), world.token)
        process.stop()


def server_seconds(directory: Path, times: int) -> list[float]:
    """Seconds from exec of what answers workers to the next credential, while the agent lives on (as two units).

    Its sockets are the service manager's, so whoever asks meanwhile waits in the kernel's queue: there is nothing to poll.
    """
    directory.mkdir()
    world = World(directory)
    took = []
    with (
        ServeUnit(directory) as unit,
        unit.agent(world, prelude="sys.modules['rich'] = None", through=nice()) as process,
    ):
        process.ready()
        world.drop(world.seal(world.session("ASIAUSER000000000000")))
        process.wait_for("bundle.accepted", seq=1)
        for _ in range(times):
            time.sleep(LASTED_SECONDS)  # sooner, and the agent takes it for one that cannot last
            unit.kill()
            began = time.perf_counter()
            with ThreadPoolExecutor(1) as starting:
                started = starting.submit(unit.start, stored=True)
                if not serves(unit.address[1]):
                    raise SystemExit(f"whoever was begun anew does not serve: {process.stderr}")
                took.append(time.perf_counter() - began)
                started.result()
        process.stop()
    return took


@contextmanager
def command(name: str, port: int, argv: Sequence[str], kinds: tuple[str, ...]) -> Iterator[Server]:
    """Any other."""
    with subprocess.Popen([*nice(), *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            started = wait_for(port, process, lambda: "it says nothing")
            yield Server(name, port, process.pid, started, kinds)
        finally:
            process.terminate()


def go(directory: Path, program: str, module: str | None = None) -> str | None:
    """A Go program, built; ``None`` where there is no Go, or the module cannot be had."""
    found = shutil.which("go")
    if found is None:
        return None
    environ = {**os.environ, "GOBIN": str(directory), "GOFLAGS": "-mod=mod"}
    argv = (
        [found, "build", "-o", str(directory / program), f"{program}.go"]
        if module is None
        else [found, "install", module]
    )
    done = subprocess.run(
        argv, cwd=HERE if module is None else directory, env=environ, capture_output=True, check=False
    )
    return str(directory / program) if done.returncode == 0 else None


_NGINX = """
daemon off; error_log {directory}/error.log; pid {directory}/pid; worker_processes 1;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_timeout 0; default_type text/plain;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /latest/api/token {{ return 200 '{token}'; }}
    location = /latest/meta-data/iam/security-credentials/ {{ return 200 'role'; }}
    location = /latest/meta-data/iam/security-credentials/role {{ return 200 '{document}'; }}
    location = {container} {{ return 200 '{document}'; }}
    location = {google} {{ return 200 '{google_token}'; }}
  }}
}}
"""
DOCUMENT = json.dumps(
    {
        "Code": "Success",
        "LastUpdated": "2026-11-24T12:00:00Z",
        "Type": "AWS-HMAC",
        "AccessKeyId": "ASIAUSER000000000000",
        "SecretAccessKey": "s" * 40,
        "Token": "t" * 80,
        "Expiration": "2026-11-24T18:00:00Z",
    }
)


@contextmanager
def nginx(program: str, directory: Path) -> Iterator[Server]:
    """Fixed texts: no token is made or checked, so it is what the kernel and HTTP cost at least."""
    directory.mkdir()
    port = free_port()
    (directory / "nginx.conf").write_text(
        _NGINX.format(
            directory=directory,
            port=port,
            token="A" * 56,
            document=DOCUMENT,
            container=CONTAINER,
            google=GOOGLE,
            google_token=json.dumps({"access_token": "ya29." + "g" * 40, "expires_in": 3599, "token_type": "Bearer"}),
        )
    )
    argv = [program, "-c", str(directory / "nginx.conf"), "-p", str(directory), "-e", str(directory / "error.log")]
    with command("nginx", port, argv, ("ec2", "container", "google")) as server:
        yield server


class _Session(http.server.BaseHTTPRequestHandler):
    """Roles Anywhere's ``CreateSession``: one that lasts."""

    def do_POST(self) -> None:
        """Answer whatever is asked, once it has come: the helper sends it in chunks."""
        if "Content-Length" in self.headers:
            self.rfile.read(int(self.headers["Content-Length"]))
        else:
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        credentials = {
            "accessKeyId": "ASIAUSER000000000000",
            "secretAccessKey": "s" * 40,
            "sessionToken": "t" * 80,
            "expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 6 * 3600)),
        }
        role = "arn:aws:iam::123456789012:role/role"
        body = json.dumps(
            {"credentialSet": [{"credentials": credentials, "roleArn": role}], "subjectArn": role}
        ).encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def roles_anywhere(program: str, directory: Path) -> Iterator[Server]:
    """AWS's own helper, ``serve``: with a certificate of ours, and a service of ours that gives it a session."""
    directory.mkdir()
    key, certificate = make_certificate(directory)
    service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Session)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    port, account = free_port(), "arn:aws:rolesanywhere:us-east-1:123456789012"
    argv = [program, "serve", "--port", str(port), "--certificate", str(certificate), "--private-key", str(key)]
    argv += ["--endpoint", f"http://127.0.0.1:{service.server_port}", "--region", "us-east-1"]
    argv += ["--trust-anchor-arn", f"{account}:trust-anchor/0", "--profile-arn", f"{account}:profile/0"]
    argv += ["--role-arn", "arn:aws:iam::123456789012:role/role"]
    try:
        with command("roles anywhere", port, argv, ("ec2",)) as server:
            yield server
    finally:
        service.shutdown()
        service.server_close()


def import_seconds() -> float:
    """What Python needs to start and import aiohttp: a measure of the machine."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import aiohttp"], check=True)
    return time.perf_counter() - began
