"""A program that only forwards runs nothing that a cluster sends it.

Dask's clients unpickle what the scheduler sends, and a pickle names functions that are to be called. So whoever is the
scheduler, or is between it and a program over ``tcp://``, runs code in that program, with everything that its user may
do. A program that only forwards needs no more of a pickle than texts and errors: there each other name that a pickle
looks up is refused by Python's own event of it (``pickle.find_class``), whichever library unpickles.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_PACKAGES: Final = frozenset({"asyncio", "builtins", "concurrent", "distributed", "tornado"})
"""Errors of these are taken: a worker's that has left, or whose connection broke off."""
_ERRORS: Final = (Exception, asyncio.CancelledError)
"""No others: ``SystemExit`` and its like, raised by a reply, would end the loop or the thread that reads it, unseen."""


class CodeRefusedError(TypeError):
    """A pickle names something that could be called. To distributed a ``TypeError`` is a pickle that it cannot read."""


class _Watch:
    def __init__(self) -> None:
        self.open = 0
        self.installed = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class" and self.open:
            module, name = arguments
            if not _is_error(module, name):
                # Also what an honest cluster sends: tblib has errors of its own classes made by a function.
                raise CodeRefusedError(
                    f"the cluster sent more than texts and plain errors, which is not read here: {module}.{name}"[:200]
                )


_watch: Final = _Watch()


@contextmanager
def texts_and_errors_only() -> Iterator[None]:
    """Until the block is left no pickle of this process, whichever thread reads it, can name code."""
    if not _watch.installed:
        sys.addaudithook(_watch)  # for good: Python takes none back
        _watch.installed = True
    _watch.open += 1
    try:
        yield
    finally:
        _watch.open -= 1


def _is_error(module: object, name: object) -> bool:
    if not isinstance(module, str) or not isinstance(name, str) or module.partition(".")[0] not in _PACKAGES:
        return False
    # Nothing is imported for it, and a name with dots, which could lead out of a class, is no member of a module.
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return isinstance(found, type) and issubclass(found, _ERRORS)
