"""A program that ends without ``with`` and without :meth:`close`: what it began ends with it."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Final, Protocol


class Closing(Protocol):
    """What is to be closed."""

    def close(self) -> None:
        """End it. Idempotent."""


_open: Final[dict[Closing, int]] = {}
_registered: Final = threading.Event()


def remember(what: Closing) -> None:
    """Close it when the program ends, unless :func:`forget` comes first."""
    _open[what] = os.getpid()
    if not _registered.is_set():
        _registered.set()
        # Where ``atexit`` comes Python starts no thread and no program any more, and no executor takes work.
        threading._register_atexit(_close_all)  # type: ignore[attr-defined]  # noqa: SLF001 - as concurrent.futures does


def forget(what: Closing) -> None:
    """It is closed."""
    _open.pop(what, None)


def _close_all() -> None:
    for what, process in list(_open.items()):
        # A child that was forked has a copy of it, and its end is not that of the program.
        if process == os.getpid():
            with contextlib.suppress(Exception):
                what.close()
