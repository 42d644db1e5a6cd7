"""A Dask cluster whose scheduler is somebody's who wants the laptop's identity: what it can send back, and to whom."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.model import Action
from agent.forward.unpickling import texts_and_errors_only
from tests.system.harness import until
from tests.unit.forward import test_dask
from tests.unit.forward.support import World
from tests.unit.forward.test_dask import Cluster, forward

pytest.importorskip("distributed")

cluster = test_dask.cluster

# On the scheduler: whatever it is asked to have workers do, it answers with a pickle that makes a directory where that is
# read. The forms are those in which distributed reads pickles: a result, an error of a function, an error of a connection.
# It reads which one from a file; without that it does as it is asked.
HOSTILE = """
import os, pickle
from distributed.protocol import to_serialize
from distributed.protocol.pickle import dumps

class Code:
    def __reduce__(self):
        return os.mkdir, (os.environ["HOSTILE_MARK"],)

LIES = {
    "drop": lambda workers, replies: {},
    "huge": lambda workers, replies: {one: {"status": "OK", "result": "x" * 10_000_000} for one in workers},
    "junk": lambda workers, replies: {one: {"status": "OK", "result": [1]} for one in workers},
    "swapped": lambda workers, replies: dict(zip(workers, reversed(replies.values()))),
    "replayed": lambda workers, replies: {one: FIRST.setdefault((one, STEP(replies)), replies[one]) for one in workers},
}
FIRST = {}

def STEP(replies):
    # Which of the questions it was, by the form of what came: a status, an enrolment, a verdict.
    text = str(sorted(map(str, replies.values())))
    return "evidence" in text, "outcome" in text

FORMS = {
    "result": lambda: {"status": "OK", "result": to_serialize(Code())},
    "error": lambda: {"status": "error", "exception": dumps(Code()), "traceback": dumps(Code())},
    "connection": lambda: dumps(Code()),
    "traceback": lambda: {"status": "error", "exception": dumps(ValueError("x")), "traceback": dumps(Code())},
}

def dask_setup(scheduler):
    honest = scheduler.handlers["broadcast"]

    async def broadcast(workers=None, **more):
        try:
            form = open(os.environ["HOSTILE_FORM"]).read()
        except FileNotFoundError:
            return await honest(workers=workers, **more)
        names = list(scheduler.workers) if workers is None else list(workers)
        if form == "print":
            # As a task of anybody's does by dask's own print() and warn().
            scheduler.log_event("print", {"args": ("PRINTED \\x1b[2J",)})
            scheduler.log_event("warn", "WARNED \\x1b[2J")
            return await honest(workers=[one for one in names if one in scheduler.workers], **more)
        if form in FORMS:
            return {one: FORMS[form]() for one in names}
        if form.startswith("gone"):
            # Of one worker there is only an error, of a class of its own or as tblib has it made: by a function.
            found = await honest(workers=[one for one in names if one in scheduler.workers], **more)
            gone = [one for one, state in scheduler.workers.items() if state.name == "gone" and one in names]
            return {**found, **{one: FORMS[form.split()[1]]() for one in gone}}
        if form == "elsewhere":
            # Whatever is asked of anybody is asked of the imposter.
            (imposter,) = [one for one, state in scheduler.workers.items() if state.name == "imposter"]
            said = await honest(workers=[imposter], **more)
            return {one: said[imposter] for one in names}
        real = [one for one in names if one in scheduler.workers]
        return LIES[form](real, await honest(workers=real, **more))

    scheduler.handlers["broadcast"] = broadcast
    count = scheduler.handlers["ncores"]

    def ncores(*given, **more):
        found = dict(count(*given, **more))
        if os.path.exists(os.environ["HOSTILE_FORM"]):
            found.update({"tcp://127.0.0.1:1": 1, "\\x1b[2J" * 99: 1, 5: 1})
        return found

    scheduler.handlers["ncores"] = ncores
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with World(tmp_path, monkeypatch) as made:
        yield made


def hostile(cluster: Cluster) -> tuple[Path, Path]:
    """Begin a hostile scheduler; returns what its code would make, and the file that says how it is hostile."""
    home = cluster.world.home
    mark, form, preload = (home / name for name in ("code-was-run", "form", "hostile.py"))
    preload.write_text(HOSTILE)
    cluster.file = home / "hostile.json"
    cluster.run(
        "distributed.cli.dask_scheduler",
        *("--port", "0", "--no-dashboard", "--no-jupyter", "--scheduler-file", cluster.file, "--preload", preload),
        HOSTILE_FORM=str(form),
        HOSTILE_MARK=str(mark),
    )
    return mark, form


@pytest.mark.slow
def test_a_scheduler_runs_nothing_in_a_program_that_only_forwards(world: World, cluster: Cluster) -> None:
    """``credential-agent forward`` reads texts and errors of a cluster: code that comes is refused, and that is told."""
    mark, form = hostile(cluster)
    cluster.worker("one")
    with cluster.connect() as client:
        client.wait_for_workers(1, timeout=60)
        address = client.scheduler.address
    one = world.agents["one"]
    known = ["--thumbprint", one.key.recipient_key().kid]
    command = [sys.executable, "-m", "agent", "forward", "--dask", address, "--once", "--no-gcp", *known]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--signer", world.signer], env=dict(os.environ), capture_output=True, text=True, check=False
        )

    for name in ("result", "error", "connection", "traceback"):
        form.write_text(name)
        ran = run()
        assert not mark.exists(), f"{name}: {ran.stderr}"
        assert (ran.returncode, one.accepted) == (69, []), ran.stderr
        assert "not served" in ran.stderr
        assert "Traceback" not in ran.stderr
    form.write_text("print")
    ran = run()
    assert (ran.returncode, len(one.accepted)) == (0, 1), ran.stderr
    assert not re.findall(r"PRINTED|WARNED|\x1b", ran.stdout + ran.stderr)
    form.unlink()
    ran = run()
    assert ran.returncode == 0, ran.stderr
    assert len(one.accepted) == 2


@pytest.mark.slow
def test_what_a_scheduler_withholds_alters_and_makes_up(world: World, cluster: Cluster) -> None:
    """Dropped, replayed, swapped, sent elsewhere, made up: nobody else gets it, nothing served is lost, and it goes on."""
    _, form = hostile(cluster)
    honest, imposter = world.machine("one"), world.machine("imposter", account="999900001111")
    for name in ("one", "imposter"):
        cluster.worker(name)
    with cluster.connect() as client:
        client.wait_for_workers(2, timeout=60)
        with forward(world, client) as f:
            assert f.status().served == 1
            for name in ("drop", "huge", "junk", "swapped", "replayed", "elsewhere"):
                form.write_text(name)
                world.sign_on()
                for _ in range(2):
                    f.refresh()
                assert len(f.status().workers) <= 4, name
                assert (imposter.accepted, honest.bundle is None) == ([], False), name
                form.unlink()
                before = len(honest.accepted)
                world.sign_on()
                until(lambda: f.refresh().served == 1)
                assert len(honest.accepted) > before, name
        assert honest.bundle is None
        # What takes away is no secret, and anybody may have it.
        assert {one.action for one in imposter.accepted} <= {Action.WITHDRAW}


@pytest.mark.slow
def test_an_error_of_one_worker_that_is_not_read_is_no_trouble_of_the_others(world: World, cluster: Cluster) -> None:
    """A worker leaves, and of its error only the pickle comes: the others of the same call are served, and it is told."""
    mark, form = hostile(cluster)
    for name in ("one", "gone"):
        cluster.worker(name)
    one = world.agents["one"]
    with texts_and_errors_only(), cluster.connect() as client:
        client.wait_for_workers(2, timeout=60)
        found = client.scheduler_info()["workers"].items()
        (gone,) = [address for address, worker in found if worker["name"] == "gone"]
        with forward(world, client) as f:
            assert f.status().served == 2
            for name in ("gone connection", "gone error"):
                form.write_text(name)
                world.sign_on()
                before = len(one.accepted)
                told = f.refresh()
                assert (told.served, len(one.accepted) > before) == (1, True), f"{name}: {told}"
                (reason,) = [str(worker.reason) for worker in told.workers if worker.name == gone]
                assert "not read here" in reason
                assert "x80" not in reason
                form.unlink()
            assert f.refresh().served == 2
    assert not mark.exists()
