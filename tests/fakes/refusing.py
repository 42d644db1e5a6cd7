"""A file that the system refuses to read, though it is there: no descriptor is left, or the disk errs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


def refuse(patch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """Have nobody in this process read ``path`` by :class:`pathlib.Path`; all else is read as ever."""
    for name in ("open", "read_bytes"):
        real = getattr(Path, name)

        def refusing(file: Path, *given: Any, real: Any = real, **more: Any) -> Any:
            if file == path:
                raise OSError(number, os.strerror(number), str(path))
            return real(file, *given, **more)

        patch.setattr(Path, name, refusing)
