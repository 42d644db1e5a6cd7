"""Tells the story as it happens: steps, what was seen and how long it took, a summary. Colours only on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

WIDTH = 110


@dataclass
class Step:
    """One chapter, and how it went."""

    letter: str
    title: str
    seconds: float = 0.0
    state: str = "not reached"
    result: str = ""


@dataclass
class Teller:
    """Writes to ``out``; remembers everything it wrote, so that it can be searched for secrets too."""

    out: TextIO = sys.stdout
    steps: list[Step] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    _mark: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._colour = self.out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        encoding = (getattr(self.out, "encoding", None) or "ascii").lower().replace("-", "")
        self._yes, self._no, self._bullet = ("✓", "✗", "·") if encoding == "utf8" else ("ok", "FAILED", "-")

    def line(self, text: str = "") -> None:
        """One line."""
        self.told.append(text)
        self.out.write(text + "\n")
        self.out.flush()

    def plan(self, *steps: tuple[str, str]) -> None:
        """Announce the steps, so that those never reached are in the summary too."""
        self.steps = [Step(letter, title) for letter, title in steps]

    @contextmanager
    def step(self, letter: str) -> Iterator[Step]:
        """Tell one step; an exception marks it as failed and goes on its way."""
        step = next(step for step in self.steps if step.letter == letter)
        self.line()
        self.line(f"{self.paint('1', f'{letter}  {step.title}')}")
        begun = self._mark = time.monotonic()
        step.state = "failed"
        try:
            yield step
            step.state = "done"
        finally:
            step.seconds = time.monotonic() - begun

    def done(self, text: str) -> None:
        """Something went as said; the time since the last mark stands at the end of the line."""
        now = time.monotonic()
        took, self._mark = f"{now - self._mark:.2f} s", now
        self.line(f"   {self.paint('32', self._yes)} {text:<{WIDTH - 14}} {self.paint('2', took.rjust(8))}")

    def note(self, text: str) -> None:
        """Something to know."""
        self.line(self.paint("2", f"     {self._bullet} {text}"))

    def failed(self, text: str) -> None:
        """It did not go as said."""
        self.line(f"   {self.paint('31;1', self._no)} {text}")

    def summary(self, seconds: float) -> None:
        """The steps once more, with what came of them."""
        self.line()
        self.line("-" * WIDTH)
        for step in self.steps:
            sign, colour = (self._yes, "32") if step.state == "done" else (self._no, "31;1")
            shown = step.result if step.state == "done" else step.state
            took = f"{step.seconds:.1f} s".rjust(7)
            self.line(
                f" {self.paint(colour, sign)} {step.letter}  {step.title:<44} {shown:<46} {self.paint('2', took)}"
            )
        self.line("-" * WIDTH)
        good = all(step.state == "done" for step in self.steps)
        verdict = "every step went as said" if good else "the demonstration FAILED"
        self.line(f" {self.paint('32;1' if good else '31;1', verdict)} in {seconds:.0f} s")

    def paint(self, code: str, text: str) -> str:
        """Colour on a terminal, nothing elsewhere."""
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text
