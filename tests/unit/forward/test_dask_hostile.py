"""A Dask cluster whose scheduler is somebody's who wants the laptop's identity: what it can send back, and to whom."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.forward import test_dask
from tests.unit.forward.support import World
from tests.unit.forward.test_dask import Cluster

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
            form = FORMS[open(os.environ["HOSTILE_FORM"]).read()]
        except FileNotFoundError:
            return await honest(workers=workers, **more)
        return {one: form() for one in workers or ()}

    scheduler.handlers["broadcast"] = broadcast
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with World(tmp_path, monkeypatch) as made:
        yield made


@pytest.mark.slow
def test_a_scheduler_runs_nothing_in_a_program_that_only_forwards(world: World, cluster: Cluster) -> None:
    """``credential-agent forward`` reads texts and errors of a cluster: code that comes is refused, and that is told."""
    mark, form, preload = (world.home / name for name in ("code-was-run", "form", "hostile.py"))
    preload.write_text(HOSTILE)
    cluster.file = world.home / "hostile.json"
    cluster.run(
        "distributed.cli.dask_scheduler",
        *("--port", "0", "--no-dashboard", "--no-jupyter", "--scheduler-file", cluster.file, "--preload", preload),
        HOSTILE_FORM=str(form),
        HOSTILE_MARK=str(mark),
    )
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
    form.unlink()
    ran = run()
    assert ran.returncode == 0, ran.stderr
    assert len(one.accepted) == 1
