"""An error at one line of our own code, whichever: no memory, no descriptor, no thread just then.

Any call, and whatever makes an object, may fail for want of memory. Tests that have a fake fail find what somebody
thought of; this fails at the k-th such line that runs, wherever it is.
"""

from __future__ import annotations

import asyncio
import dis
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, Self

_AGENT: Final = str(Path(__file__).parents[2] / "agent") + "/"
_MAKES: Final = ("CALL", "BUILD_", "BINARY_OP", "FORMAT_VALUE", "MAKE_FUNCTION")
"""Operations that take memory, or run other code. A line without any, a mere assignment say, cannot fail."""


@functools.cache
def _may_fail(code: CodeType) -> frozenset[int]:
    found, line = set(), code.co_firstlineno
    for one in dis.get_instructions(code):
        line = one.starts_line if one.starts_line is not None else line
        if one.opname.startswith(_MAKES):
            found.add(line)
    return frozenset(found)


class Fault:
    """Within ``with``, one line fails, of those that may and that run in another task than the one that entered.

    Args:
        at: which of them, from 0; ``None``: none does, they are only counted.
        error: makes what is raised.
        files: what the names of their files begin with, below ``agent/``.

    Attributes:
        places: the lines that have run, up to the one that failed, as ``file:line``.
    """

    def __init__(self, at: int | None, error: Callable[[], Exception], files: str | tuple[str, ...]) -> None:
        self._at, self._error = at, error
        self._files = tuple(_AGENT + file for file in ((files,) if isinstance(files, str) else files))
        self.places: list[str] = []
        self._test: asyncio.Task[Any] | None = None
        self._before: Any = None

    def __enter__(self) -> Self:
        self._test, self._before = asyncio.current_task(), sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        self.over()

    def over(self) -> None:
        """Nothing fails from here on."""
        sys.settrace(self._before)

    def _called(self, frame: FrameType, _event: str, _arg: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(self._files):
            return None
        try:
            return None if asyncio.current_task() is self._test else self._line
        except RuntimeError:
            return None  # in no loop

    def _line(self, frame: FrameType, event: str, _arg: Any) -> Callable[..., Any]:
        if event == "line" and frame.f_lineno in _may_fail(frame.f_code):
            self.places.append(f"{frame.f_code.co_filename.removeprefix(_AGENT)}:{frame.f_lineno}")
            if len(self.places) - 1 == self._at:
                raise self._error()  # which ends the tracing
        return self._line


def broken_by(files: str, run: Callable[[Fault], object]) -> dict[str, str]:
    """Have each line that runs fail once, in a run of its own; returns which rule was broken then, by the line."""
    run(fault := Fault(None, MemoryError, files))
    assert fault.places, "nothing was traced"
    broken = {}
    for place, at in {place: at for at, place in enumerate(fault.places)}.items():
        try:
            run(Fault(at, MemoryError, files))
        except AssertionError as error:
            broken[place] = str(error)
    return broken
