"""Twenty minutes at once, for a program that runs: its clocks leap when it is told.

Unlike :mod:`tests.conformance.warp` every clock of the program leaps (``object_store`` and ``aws-c-auth`` keep their deadlines
on the monotonic one), and only the program's: the agent and the fakes stay where they are, so nothing that they tell ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

SHIM = Path(__file__).with_name("leap.c")


def build(directory: Path) -> Path | None:
    """Compile the shim into ``directory``; ``None`` where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = directory / "leap.so"
    subprocess.run([compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SHIM)], check=True)
    return library


class Leap:
    """How far a program's clocks are ahead: nothing, until :meth:`by`.

    Args:
        library: from :func:`build`.
        file: to be made; the program and its children read it.
    """

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        file.write_bytes(bytes(8))
        self.environ = {"LD_PRELOAD": str(library), "LEAP_FILE": str(file)}

    def by(self, length: timedelta) -> None:
        """Let the program's clocks be ahead by that (whole seconds)."""
        # In place, and in one write: the program has the page mapped.
        with self._file.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), int(length.total_seconds()).to_bytes(8, "little"), 0)
