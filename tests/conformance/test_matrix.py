"""The matrix of tests/matrix for the clients that this environment has: every state, as ``make matrix`` judges it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.harness import REPOSITORY

pytest.importorskip("boto3")
pytest.importorskip("google.auth")
pytest.importorskip("requests", reason="google-auth's own transport needs it")


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "cells"), [("env", 14), ("imds", 14), ("imds6", 7)])
def test_every_state(mode: str, cells: int, tmp_path: Path) -> None:
    """boto3 and google-auth come as whom they should in all seven states, however they are led to the agent."""
    argv = [sys.executable, "-m", "tests.matrix", "--mode", mode, "--build", str(tmp_path / "build")]
    done = subprocess.run(
        [*argv, "--only", "boto3", "--only", "google-auth"], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=400, check=False, env={**os.environ, "MATRIX_PYTHON": sys.executable},
    )  # fmt: skip
    said = done.stdout + done.stderr
    if f"skipped mode {mode}" in said:
        pytest.skip(said[said.index("skipped mode") :].splitlines()[0])
    assert f"{cells} of {cells} cells as said" in said, said
    assert done.returncode == 0, said
