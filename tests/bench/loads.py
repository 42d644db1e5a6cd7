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

COMPUTING = 8


class Load(NamedTuple):
    """One load.

    Attributes:
        how: the generator's options; ``-s`` is added to those that last.
        kind: who is asked: ``ec2`` (a sequence is three requests), ``container``, ``google`` (one request).
        computing: whether programs compute meanwhile.
    """

    name: str
    how: tuple[str, ...]
    kind: str = "ec2"
    computing: bool = False


LOADS = (
    Load("1, alike", ("-c", "1")),
    Load("32, alike", ("-c", "32")),
    Load("32, unlike", ("-c", "32", "-u")),
    Load("256, alike", ("-c", "256")),
    Load("256, unlike", ("-c", "256", "-u")),
    Load("burst of 512", ("-b", "512", "-r", "3")),
    Load("burst of 512, unlike", ("-b", "512", "-r", "3", "-u")),
    Load("container, 32", ("-c", "32"), "container"),
    Load("Google token, 32", ("-c", "32"), "google"),
    Load("200/s, 8 compute", ("-q", "200"), computing=True),
)
QUICK = ("1, alike", "32, alike", "32, unlike", "256, alike", "burst of 512", "container, 32", "Google token, 32")


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
    argv = [str(generator), "-p", str(server.port), *load.how]
    if "-b" not in load.how:
        argv += ["-s", str(seconds)]
    if load.kind == "container":
        argv += ["-k", "get", "-t", CONTAINER, "-H", f"Authorization: {server.token}"]
    elif load.kind == "google":
        argv += ["-k", "get", "-t", GOOGLE, "-H", "Metadata-Flavor: Google"]
    with computing(COMPUTING if load.computing else 0):
        before = cpu_seconds(server.pid)
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        used = cpu_seconds(server.pid) - before
    told = json.loads(done.stdout)
    return {
        "per_second": told["sequences"] / told["seconds"],
        "cpu_us": 1e6 * used / max(1, told["requests"]),
        **told["sequence_ms"],
        "errors": told["errors"],
        "error": told["error"],
    }
