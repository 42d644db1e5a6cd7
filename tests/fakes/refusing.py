"""A file that the system refuses to read, though it is there: no descriptor is left, or the disk errs."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable
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


class Refused:
    """Reads plain files, but for those of some names, which the system refuses.

    Args:
        number: of the error.
        name: of the files, with wildcards.
        read: reads all else, and them once they are refused no more.

    Attributes:
        refuses: whether they are; a test ends it.
        asked: how many reads there were of such files.
    """

    def __init__(self, number: int, name: str, read: Callable[[Path, int], bytes]) -> None:
        self.refuses = True
        self.asked = 0
        self._number, self._name, self._read = number, name, read

    def __call__(self, path: Path, most: int) -> bytes:
        if fnmatch.fnmatch(path.name, self._name):
            self.asked += 1
            if self.refuses:
                raise OSError(self._number, os.strerror(self._number))
        return self._read(path, most)
