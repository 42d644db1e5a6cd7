"""The loads, and the generator that makes them: :file:`load.c`, compiled when it is needed, in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.processes import cpu_seconds
from tests.bench.servers import CONTAINER, GOOGLE, HERE, Server
from tests.system.harness import as_user

COMPUTING = 8
USERS = 4
COLD = 200
HEADS = ("-f", str(HERE / "heads"))


class Load(NamedTuple):
    """One load.

    Attributes:
        how: the generator's options; ``-s`` is added to those that last.
        kind: who is asked: ``ec2`` (a sequence is three requests), ``container``, ``google`` (one request).
        computing: whether programs compute meanwhile.
        first: whether the generator goes before all else that wants a processor, so that nobody waits for it; only root
            may have that.
        users: the generator runs as so many users at once; only root can be them.
        boto3: so many programs in place of the generator (:file:`cold.py`).
    """

    name: str
    how: tuple[str, ...] = ()
    kind: str = "ec2"
    computing: bool = False
    first: bool = False
    users: int = 1
    boto3: int = 0

    @property
    def needs_root(self) -> bool:
        """Whether only root can put it on anybody."""
        return self.first or self.users > 1


LOADS = (
    Load("1, alike", ("-c", "1")),
    Load("32, alike", ("-c", "32")),
    Load("32, unlike", ("-c", "32", "-u")),
    Load("32, other SDKs", ("-c", "32", *HEADS)),
    Load("32, bent", ("-c", "32", *HEADS, "-x")),
    Load("32, beside 256 that wait", ("-c", "32", *HEADS, "-w", "256")),
    Load("256, alike", ("-c", "256")),
    Load("256, unlike", ("-c", "256", "-u")),
    Load("256 of 4 users", ("-c", "64", *HEADS), users=USERS),
    Load("burst of 512", ("-b", "512", "-r", "3")),
    Load("burst of 512, unlike", ("-b", "512", "-r", "3", "-u")),
    Load("container, 32", ("-c", "32"), "container"),
    Load("Google token, 32", ("-c", "32"), "google"),
    Load("1000/s, sent late", ("-q", "1000", *HEADS, "-d", "300")),
    Load("200/s, 8 compute", ("-q", "200"), computing=True),
    Load("200/s, 8 compute, asked first", ("-q", "200"), computing=True, first=True),
    Load("200 cold boto3", boto3=COLD),
)
QUICK = (
    *("1, alike", "32, alike", "32, unlike", "32, other SDKs", "256, alike", "burst of 512"),
    *("container, 32", "Google token, 32", "200/s, 8 compute, asked first"),
)


def compiled(directory: Path) -> Path:
    """The generator.

    Raises:
        SystemExit: there is no C compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("expected a C compiler (cc) for the load generator, got none; apt install gcc libc6-dev")
    target = directory / "load"
    subprocess.run([compiler, "-O2", "-Wall", "-Werror", "-o", str(target), str(HERE / "load.c")], check=True)
    return target


@contextmanager
def computing(count: int) -> Iterator[None]:
    """As many programs that compute."""
    programs = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def put_on(generator: Path, load: Load, server: Server, seconds: float) -> dict[str, Any]:
    """What came of it: ``per_second``, ``cpu_us`` of the server for each request, ``p50`` to ``max`` in ms, ``errors``."""
    with computing(COMPUTING if load.computing else 0):
        before = cpu_seconds(server.pid)
        told = [json.loads(text) for text in _said(_commands(generator, load, server, seconds))]
        used = cpu_seconds(server.pid) - before
    return {
        "per_second": sum(one["sequences"] / one["seconds"] for one in told),
        "cpu_us": 1e6 * used / max(1, sum(one["requests"] for one in told)),
        # Of several: whoever waited longest.
        **{mark: max(one["sequence_ms"].get(mark, 0.0) for one in told) for mark in told[0]["sequence_ms"]},
        "errors": sum(one["errors"] for one in told),
        "error": next((one["error"] for one in told if one["error"]), ""),
    }


def _commands(generator: Path, load: Load, server: Server, seconds: float) -> list[list[str]]:
    if load.boto3:
        return [[sys.executable, str(HERE / "cold.py"), str(server.port), str(load.boto3)]]
    argv = [str(generator), "-p", str(server.port), *load.how]
    if "-b" not in load.how:
        argv += ["-s", str(seconds)]
    if load.kind == "container":
        argv += ["-k", "get", "-t", CONTAINER, "-H", f"Authorization: {server.token}"]
    elif load.kind == "google":
        argv += ["-k", "get", "-t", GOOGLE, "-H", "Metadata-Flavor: Google"]
    if load.first:
        return [["chrt", "--fifo", "50", *argv]]
    if load.users == 1:
        return [argv]
    return [as_user(argv, 50_000 + number) for number in range(load.users)]


def _said(commands: list[list[str]]) -> list[str]:
    """What all of them print, begun at once."""
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for argv in commands]
    said = [one.communicate()[0] for one in running]
    for one in running:
        if one.returncode:
            raise subprocess.CalledProcessError(one.returncode, one.args)
    return said
