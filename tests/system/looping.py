"""Clients that call without a pause, in processes of their own, as kills are tried under: thirty-two in all."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

PROGRAM: Final = Path(__file__).resolve().parents[1] / "matrix" / "programs" / "loop.py"
PROCESSES: Final = {"boto3-container": (2, 6), "boto3-imds": (2, 6), "plain": (1, 8)}
"""By kind: processes, clients in each."""
PLAIN: Final = PROCESSES["plain"][0] * PROCESSES["plain"][1]
BROKEN: Final = ("ConnectionResetError:", "RemoteDisconnected:", "IncompleteRead:")
"""How the error of a client begins whose connection was cut off with the process that had it."""
_END_SECONDS: Final = 120


class Looping:
    """One process of them.

    Args:
        kind: of :data:`PROCESSES`.
        command: what runs :data:`PROGRAM` with that kind.
        env: of the process; ``None``: ours.
    """

    def __init__(self, kind: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=None if env is None else dict(env)
        )

    def calls(self) -> int:
        """How often they have called."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("calls\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> dict[str, Any]:
        """Have them end; how it went."""
        said, _ = self.process.communicate(timeout=_END_SECONDS)
        found = json.loads(said)
        assert isinstance(found, dict)
        return found

    def close(self) -> None:
        """End them now."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
