"""Files that do not answer, as on a mount whose server is gone: whoever opens one in this process waits.

No pipe does for that: what reads a file that somebody named takes a plain one only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_silent: dict[str, SilentFile] = {}
_real = os.open


class SilentFile:
    """A file that answers nobody, from now on until :meth:`answer`.

    Args:
        path: of a file that is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._asked = threading.Event()
        self._answers = threading.Event()
        _silent[self._path] = self
        os.open = _waiting

    @property
    def asked(self) -> bool:
        """Whether somebody waits for it."""
        return self._asked.is_set()

    def answer(self) -> None:
        """It answers again, whoever waits for it too."""
        if _silent.get(self._path) is self:
            del _silent[self._path]
        if not _silent:
            os.open = _real
        self._answers.set()

    def wait(self) -> None:
        """Wait as whoever opens it."""
        self._asked.set()
        self._answers.wait()


@contextmanager
def silent(path: Path) -> Iterator[SilentFile]:
    """A :class:`SilentFile` that answers afterwards."""
    file = SilentFile(path)
    try:
        yield file
    finally:
        file.answer()


def _waiting(path: Any, *args: Any, **kwargs: Any) -> int:
    found = _silent.get(os.fspath(path)) if isinstance(path, str | os.PathLike) else None
    if found is not None:
        found.wait()
    return _real(path, *args, **kwargs)
