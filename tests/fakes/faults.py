"""An error at lines of our own code, whichever: no memory, no descriptor, no thread just then, and for a while.

Any call, and whatever makes an object, may fail for want of memory. Tests that have a fake fail find what somebody
thought of; this fails at the k-th such line that runs, wherever it is, and at some that follow: what is lacking for a
piece of work is lacking for what is done about that, too.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import functools
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CellType, CodeType, FunctionType, MappingProxyType
from typing import Any, Final, Self

_AGENT: Final = Path(__file__).parents[2] / "agent"
_MAKES: Final = (
    ast.Call, ast.List, ast.Dict, ast.Set, ast.BinOp, ast.JoinedStr, ast.Lambda, ast.ListComp, ast.SetComp,
    ast.DictComp, ast.GeneratorExp,
)  # fmt: skip
"""What takes memory, or runs other code. A statement without any, a mere assignment say, cannot fail."""
_HOLD: Final = (dict, tuple, CellType, MappingProxyType, property, staticmethod, classmethod, functools.cached_property)
_MARK: Final = "__a_line_of_the_agent__"


class Fault:
    """Within ``with``, lines fail, of those that may and that run in another task than the one that entered.

    Args:
        at: the first of them, from 0; ``None``: none does, they are only counted.
        error: makes what is raised.
        row: how many fail: that one, and those that the same task runs next.

    Attributes:
        places: the lines that have run, as ``file:line``.
    """

    def __init__(self, at: int | None, error: Callable[[], BaseException], row: int = 1) -> None:
        self._at, self._error, self._left = at, error, row
        self.places: list[str] = []
        self._test: asyncio.Task[Any] | None = None
        self._whose: asyncio.Task[Any] | None = None

    def __enter__(self) -> Self:
        self._test = asyncio.current_task()
        setattr(builtins, _MARK, self._runs)
        return self

    def __exit__(self, *_: object) -> None:
        self.over()

    def over(self) -> None:
        """Nothing fails from here on."""
        setattr(builtins, _MARK, _nothing)

    def _runs(self, place: str) -> None:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return  # in no loop
        if task is self._test:
            return
        self.places.append(place)
        if self._at is None or len(self.places) <= self._at or not self._left:
            return
        if len(self.places) - 1 == self._at:
            self._whose = task
        if task is self._whose:
            self._left -= 1
            raise self._error()


def _nothing(_place: str) -> None:
    """Nothing fails."""


class _Marking(ast.NodeTransformer):
    """Has each statement of a function that may fail announced before it runs."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._inside = False

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        before, self._inside = self._inside, True
        self.generic_visit(node)
        self._inside = before
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = _visit_function  # noqa: N815 - ast's names

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if self._inside:
            for field in ("body", "orelse", "finalbody"):
                statements = getattr(node, field, None)
                if isinstance(statements, list):
                    setattr(node, field, [marked for one in statements for marked in self._marked(one)])
        return node

    def _marked(self, statement: ast.stmt) -> Iterator[ast.stmt]:
        if _may_fail(statement):
            call = ast.Call(ast.Name(_MARK, ast.Load()), [ast.Constant(f"{self._file}:{statement.lineno}")], [])
            yield ast.fix_missing_locations(ast.copy_location(ast.Expr(call), statement))
        yield statement


def _may_fail(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Try):
        return isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
    inner = [one for _, value in ast.iter_fields(statement) for one in (value if isinstance(value, list) else [value])]
    own = [one for one in inner if isinstance(one, ast.AST) and not isinstance(one, ast.stmt | ast.match_case)]
    return any(isinstance(node, _MAKES) for one in own for node in ast.walk(one))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


def _key(code: CodeType) -> tuple[str, str, int, tuple[str, ...]]:
    return code.co_filename, code.co_qualname, code.co_firstlineno, code.co_freevars


@functools.cache
def _made(files: tuple[str, ...]) -> dict[tuple[str, str, int, tuple[str, ...]], CodeType]:
    """By what they stand for: the functions in which each line is announced."""
    found = {}
    for path in sorted(_AGENT.rglob("*.py")):
        name = str(path.relative_to(_AGENT))
        if name.startswith(files):
            tree = _Marking(name).visit(ast.parse(path.read_text()))
            made = compile(tree, str(path), "exec", dont_inherit=True)
            found.update({_key(code): code for code in _codes(made)})
    return found


def _functions(files: set[str]) -> Iterator[FunctionType]:
    """All that is reached from those modules: not by a list of all objects, since another test may have frozen those."""
    todo: list[Any] = [vars(one) for one in list(sys.modules.values()) if getattr(one, "__file__", None) in files]
    seen = set(map(id, todo))
    while todo:
        for one in gc.get_referents(todo.pop()):
            if id(one) in seen:
                continue
            seen.add(id(one))
            if isinstance(one, FunctionType):
                yield one
                todo += [vars(one), one.__closure__ or ()]
            elif isinstance(one, _HOLD) or (isinstance(one, type) and one.__module__.startswith("agent.")):
                todo.append(one)


@contextlib.contextmanager
def announced(files: str | tuple[str, ...]) -> Iterator[None]:
    """Within it the lines of those files can fail.

    Args:
        files: what their names begin with, below ``agent/``.
    """
    made = _made((files,) if isinstance(files, str) else files)
    functions = _functions({file for file, *_ in made})
    before = {one: one.__code__ for one in functions if _key(one.__code__) in made}
    assert before, "nothing of it is loaded"
    setattr(builtins, _MARK, _nothing)
    for one in before:
        one.__code__ = made[_key(one.__code__)]
    try:
        yield
    finally:
        for one, code in before.items():
            one.__code__ = code
        delattr(builtins, _MARK)


def broken_by(
    files: str | tuple[str, ...],
    run: Callable[[Fault], object],
    error: Callable[[], BaseException] = MemoryError,
    row: int = 1,
) -> dict[str, str]:
    """Have each line that runs fail, and the row that follows it, in a run of its own; returns which rule was broken.

    Args:
        files: see :func:`announced`.
        run: enters what it is given.
        error: see :class:`Fault`.
        row: see :class:`Fault`.
    """
    broken = {}
    with announced(files):
        run(fault := Fault(None, error))
        assert fault.places, "nothing was announced"
        for place, at in {place: at for at, place in enumerate(fault.places)}.items():
            try:
                run(Fault(at, error, row))
            except AssertionError as broke:
                broken[place] = str(broke)
    return broken
