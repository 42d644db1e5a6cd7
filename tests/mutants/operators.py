"""The changes a stranger would place by hand: a method that does nothing, a condition turned, two effects swapped.

Each is a change of one place in one function. Text is never changed: not the words of a message, nor those of a
protocol (mutmut's turn). What only speaks is left alone: log calls, what is raised with, ``__repr__`` and its like.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Final

Function = ast.FunctionDef | ast.AsyncFunctionDef

SPEAKS: Final = frozenset({"debug", "info", "notice", "warning", "error", "exception", "critical", "log"})
"""Methods that only tell."""

TELLING: Final = frozenset({"__repr__", "__str__", "__format__"})

TURNED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}

OTHER_NAME: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Change:
    """One mutant: in which function of which file, by which operator, on which line, and the code it makes.

    ``text``: the whole changed file, for processes that the tests start; empty unless that was asked for.
    """

    path: Path
    module: str
    function: str
    operator: str
    line: int
    was: str
    now: str
    code: CodeType
    text: str = ""

    @property
    def name(self) -> str:
        return f"{self.module}.{self.function}"


def changes(path: Path, module: str, *, whole: bool = False) -> Iterator[Change]:
    """Every change of every function of the file; ``whole``: with its text."""
    tree = ast.parse(path.read_text())
    for holder, at, qualname in _functions(tree, ""):
        original = holder[at]
        assert isinstance(original, Function)
        for operator, line, was, now, changed in _changed(original):
            holder[at] = changed
            try:
                code = _find(compile(ast.fix_missing_locations(tree), str(path), "exec"), qualname, changed.name)
                text = ast.unparse(tree) if whole else ""
            except (SyntaxError, LookupError):
                continue
            finally:
                holder[at] = original
            yield Change(path, module, qualname, operator, line, was, now, code, text)


def _functions(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[list[ast.stmt], int, str]]:
    for at, child in enumerate(node.body):
        if isinstance(child, Function):
            if child.name not in TELLING:
                yield node.body, at, prefix + child.name
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")


def _find(code: CodeType, qualname: str, name: str) -> CodeType:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_qualname == qualname and constant.co_name == name:
                return constant
            if qualname.startswith(constant.co_qualname + "."):
                return _find(constant, qualname, name)
    raise LookupError(qualname)


def _changed(function: Function) -> Iterator[tuple[str, int, str, str, Function]]:
    """``(operator, line, was, now, the changed function)``."""
    yield from _hollowed(function)
    for index, node in enumerate(_walk(function)):
        for operator, change in _of(node):
            twin = copy.deepcopy(function)
            found = next(n for i, n in enumerate(_walk(twin)) if i == index)
            # The text of a block is its first line: the rest is the same.
            was = ast.unparse(found)
            result = change(found)
            now = ast.unparse(result)
            yield operator, getattr(node, "lineno", function.lineno), was, now, twin
        for at, field, pair in _pairs(node):
            twin = copy.deepcopy(function)
            found = next(n for i, n in enumerate(_walk(twin)) if i == index)
            body = getattr(found, field)
            body[at], body[at + 1] = body[at + 1], body[at]
            was = "\n".join(ast.unparse(one) for one in pair)
            yield "swapped", pair[0].lineno, was, "\n".join(ast.unparse(one) for one in reversed(pair)), twin


def _hollowed(function: Function) -> Iterator[tuple[str, int, str, str, Function]]:
    """The whole function does nothing, or always gives the same answer."""
    body = [s for s in function.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    if not body or isinstance(body[0], ast.Pass) or _yields(function):
        return
    returns = ast.unparse(function.returns) if function.returns else ""
    answers: list[bool | None] = [True, False] if returns == "bool" else [None]
    for answer in answers:
        first = body[0].value if isinstance(body[0], ast.Return) else None
        if isinstance(first, ast.Constant) and first.value is answer:
            continue
        twin = copy.deepcopy(function)
        twin.body = [ast.Return(ast.Constant(answer)), *twin.body]  # what follows keeps the closure as it was
        yield "hollow", function.lineno, f"def {function.name}(...): ...", f"return {answer}", twin


def _yields(function: Function) -> bool:
    return any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(function))


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but what only speaks, defaults and annotations, in an order that a copy shares."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.arguments | ast.expr_context) or _is_speech(child):
            continue
        if isinstance(node, Function) and (child is node.returns or child in node.decorator_list):
            continue
        yield child
        if not isinstance(child, ast.Raise):
            yield from _walk(child)


def _is_speech(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr):
        return True
    if not isinstance(node, ast.Expr):
        return False
    value = node.value.value if isinstance(node.value, ast.Await) else node.value
    if isinstance(value, ast.Constant):
        return True
    if not isinstance(value, ast.Call):
        return False
    called = value.func
    return (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) in SPEAKS


Edit = Callable[[ast.AST], ast.AST]


def _of(node: ast.AST) -> Iterator[tuple[str, Edit]]:
    """The operators that apply to one node; each edits its copy in place and says what became of it."""
    match node:
        case ast.If() | ast.While() | ast.IfExp() | ast.Assert():
            if not isinstance(node.test, ast.Constant):
                yield "negated", _negate
        case ast.comprehension() if node.ifs:
            yield "unfiltered", _unfilter
        case ast.Compare() if len(node.ops) == 1 and type(node.ops[0]) in TURNED:
            yield "turned", _turn
        case ast.Compare() if type(node.ops[0]) in TURNED:
            yield "turned", _turn
        case ast.BoolOp():
            yield "and-or", _and_or
            for at in range(len(node.values)):
                yield "weakened", _without_operand(at)
        case ast.Constant() if isinstance(node.value, bool):
            yield "flipped", _flip
        case ast.Constant() if isinstance(node.value, int | float):
            yield "number", _more
        case ast.BinOp() if isinstance(node.op, ast.Add | ast.Sub) and not isinstance(
            node.left, ast.Constant | ast.JoinedStr
        ):
            yield "sign", _other_sign
        case ast.Name() if node.id in OTHER_NAME:
            yield "min-max", _other_name
        case ast.Raise():
            yield "dropped", _drop
        case ast.Continue() | ast.Break() | ast.Delete():
            yield "dropped", _drop
        case ast.Expr() if isinstance(node.value, ast.Call | ast.Await):
            yield "dropped", _drop
            if isinstance(node.value, ast.Await):
                yield "unawaited", _unawait
        case ast.Assign() if any(isinstance(t, ast.Attribute | ast.Subscript) for t in node.targets):
            yield "dropped", _drop
        case ast.AugAssign():
            yield "dropped", _drop
        case ast.ExceptHandler() if isinstance(node.type, ast.Tuple):
            for at in range(len(node.type.elts)):
                yield "uncaught", _uncaught(at)


def _negate(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert)
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return node.test


def _unfilter(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.comprehension)
    node.ifs = []
    return node


def _turn(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.Compare)
    node.ops[0] = TURNED[type(node.ops[0])]()
    return node


def _and_or(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.BoolOp)
    node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    return node


def _without_operand(at: int) -> Edit:
    def edit(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.BoolOp)
        node.values[at] = ast.Constant(isinstance(node.op, ast.And))
        return node

    return edit


def _flip(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.Constant)
    node.value = not node.value
    return node


def _more(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int | float)
    node.value += 1
    return node


def _other_sign(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.BinOp)
    node.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
    return node


def _other_name(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.Name)
    node.id = OTHER_NAME[node.id]
    return node


def _drop(node: ast.AST) -> ast.AST:
    """The statement becomes ``...``: its class is changed in place, so that its holder need not be known."""
    node.__class__ = ast.Expr
    for field in ("exc", "cause", "targets", "target", "op"):
        node.__dict__.pop(field, None)
    assert isinstance(node, ast.Expr)
    node.value = ast.Constant(...)
    return node


def _unawait(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.Expr)
    assert isinstance(node.value, ast.Await)
    node.value = node.value.value
    return node


def _uncaught(at: int) -> Edit:
    def edit(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.ExceptHandler)
        assert isinstance(node.type, ast.Tuple)
        del node.type.elts[at]
        return node.type

    return edit


def _pairs(node: ast.AST) -> Iterator[tuple[int, str, list[ast.stmt]]]:
    """Two effects that stand one after the other."""
    for field in ("body", "orelse", "finalbody"):
        body = getattr(node, field, None)
        if isinstance(body, list):
            for at in range(len(body) - 1):
                if _is_effect(body[at]) and _is_effect(body[at + 1]):
                    yield at, field, body[at : at + 2]


def _is_effect(node: ast.stmt) -> bool:
    if _is_speech(node):
        return False
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    return isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await)
    )
