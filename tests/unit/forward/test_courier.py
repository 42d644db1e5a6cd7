"""The courier's document: what it promises to whoever brings identities to a cluster of another kind."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from agent.forward import Job, LateError, State
from agent.forward.courier import read_reply
from tests.unit.forward.support import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with World(tmp_path, monkeypatch) as made:
        yield made


def test_what_runs_on_workers_is_the_language_of_an_old_python() -> None:
    """A worker's Python may be older than ours: 3.8 can read both forms of what is sent."""
    job = Job(steps=(("GET", "/v1/status", None),))
    ast.parse(job.script, feature_version=(3, 8))
    ast.parse(job.expression, mode="eval", feature_version=(3, 8))
    # The expression holds the program as text.
    (program,) = [
        one.value
        for one in ast.walk(ast.parse(job.expression))
        if isinstance(one, ast.Constant) and isinstance(one.value, str) and "def main" in one.value
    ]
    ast.parse(program, feature_version=(3, 8))


def pythons() -> list[str]:
    """Every Python from 3.7 on of this machine: on the path, and of pyenv."""
    places = [Path(one) for one in os.environ["PATH"].split(":")]
    places += Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin")
    found: dict[str, str] = {}
    for path in (place / f"python3.{minor}" for place in places for minor in range(7, 20)):
        if os.access(path, os.X_OK):
            ran = subprocess.run([path, "-V"], capture_output=True, text=True, check=False)
            if ran.returncode == 0:
                found.setdefault(ran.stdout.strip(), str(path))
    return list(found.values())


def test_it_runs_on_every_python_of_this_machine(world: World) -> None:
    """Both forms of what is sent, with warnings as errors, carry a question to the agent and its answer back."""
    world.machine("m")
    job = Job(steps=(("GET", "/v1/status", None),))
    tried = pythons()
    for python in tried:
        for program in (job.script, f"print({job.expression})"):
            ran = subprocess.run(
                [python, "-I", "-W", "error", "-"],
                input=program,
                env={"CREDENTIAL_AGENT_COURIER": str(world.courier.sockets["m-0"])},
                text=True,
                capture_output=True,
                check=False,
            )
            assert ran.returncode == 0, f"{python}: {ran.stderr}"
            assert read_reply(ran.stdout).answers[0].status == 200, python
    assert tried


class Slurm:
    """As the document of couriers has it."""

    name, private, named = "slurm", False, False

    def __init__(self, where: Path) -> None:
        self.where = where

    def workers(self) -> Sequence[str]:
        return subprocess.check_output([self.where / "scontrol", "show", "hostnames"], text=True).split()

    def one(self, job: Job, node: str) -> str | Exception:
        command = [str(self.where / "srun"), "--overlap", "--nodes=1", f"--nodelist={node}", "python3", "-"]
        try:
            ran = subprocess.run(
                command, input=job.script, text=True, capture_output=True, check=True, timeout=job.seconds + 5
            )
        except subprocess.TimeoutExpired:
            return LateError("no answer in time")
        except subprocess.CalledProcessError as error:
            return error
        return ran.stdout

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        with ThreadPoolExecutor(32) as pool:
            return dict(zip(workers, pool.map(partial(self.one, job), workers), strict=True))

    def watch(self, _joined: object) -> object:
        return lambda: None


def test_the_document_of_couriers_suffices_for_another_cluster(world: World) -> None:
    """Three methods of a few lines serve the nodes of an allocation, and tell which of them failed."""
    machine = world.machine("n1")
    socket = world.courier.sockets["n1-0"]
    down = 'case "$3" in *n2) echo "srun: error: n2: down" >&2; exit 1;; esac'
    run = f'{down}; shift 3; echo "a prolog says hello"; CREDENTIAL_AGENT_COURIER={socket} exec "$@"'
    for name, text in (("scontrol", "echo n1; echo n2"), ("srun", run)):
        (world.home / name).write_text(f"#!/bin/sh\n{text}\n")
        (world.home / name).chmod(stat.S_IRWXU)
    world.courier = Slurm(world.home)  # type: ignore[assignment]
    with world.forward() as f:
        assert [(one.name, one.state) for one in f.status().workers] == [
            ("n1", State.SERVED),
            ("n2", State.UNREACHABLE),
        ]
    assert machine.bundle is None
