"""In a process that a test has started: has it import one file of the product as it was changed.

While ``make mutants ARGS="... --processes"`` runs, every interpreter of the virtual environment that begins with the
variable imports this first.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

VARIABLE: Final = "CREDENTIAL_AGENT_MUTANT"
"""``MODULE=FILE``."""


class _Changed:
    """Finds the one module that was changed."""

    def __init__(self, module: str, file: str) -> None:
        self._module, self._file = module, file

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        del path, target
        return importlib.util.spec_from_file_location(name, self._file) if name == self._module else None


if VARIABLE in os.environ:
    sys.meta_path.insert(0, _Changed(*os.environ[VARIABLE].split("=", 1)))
