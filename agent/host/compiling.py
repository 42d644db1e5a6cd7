"""``python -m agent.host.compiling DIRECTORY``: compiles what is installed there, without the docstrings.

For the install script: whoever runs the service may not write there, and would compile every source anew at each start.
Docstrings are text that a running daemon keeps and nothing reads; only the commands show theirs, as their help.
``python -OO`` would leave out the assertions of every library too, some of which refuse what a peer sent, and where a
distribution has no byte code of the standard library for it, each start would compile that.
"""

from __future__ import annotations

import ast
import importlib.util
import marshal
import sys
import warnings
from pathlib import Path
from types import CodeType
from typing import Final, TypeGuard

from agent.core.errors import HostError

_UNCHECKED_HASH: Final = (1).to_bytes(4, "little")
"""PEP 552: found by its source's name, and not compared with that at each start."""
_HAS_HELP: Final = ("agent", "cli")


def main(directory: Path) -> None:
    """Compile every module below it, in place of what was compiled before.

    Raises:
        HostError: a module cannot be compiled or written; its words say which one and why.
    """
    for path in sorted(directory.rglob("*.py")):
        try:
            source = path.read_bytes()
            target = Path(importlib.util.cache_from_source(path))
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(
                importlib.util.MAGIC_NUMBER
                + _UNCHECKED_HASH
                + importlib.util.source_hash(source)
                + marshal.dumps(_compiled(source, path))
            )
        except (OSError, SyntaxError, ValueError) as error:
            raise HostError(f"{path}: {error}") from None


def _compiled(source: bytes, path: Path) -> CodeType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library: nobody here can mend it
        tree = ast.parse(source, path)
        if path.parts[-1 - len(_HAS_HELP) : -1] != _HAS_HELP:
            for node in ast.walk(tree):
                if _is_told(node) and ast.get_docstring(node, clean=False) is not None:
                    # No body may be empty, nor the next text be one. (Before an import of the future is nothing.)
                    node.body[:1] = (
                        [] if isinstance(node, ast.Module) else [ast.copy_location(ast.Pass(), node.body[0])]
                    )
        return compile(tree, path, "exec", dont_inherit=True)


def _is_told(node: ast.AST) -> TypeGuard[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    # A dataclass without one makes itself one from its signature: as long, and at each start.
    if isinstance(node, ast.ClassDef):
        return not node.decorator_list
    return isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
