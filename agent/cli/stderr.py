"""What is told to a person, on standard error."""

from __future__ import annotations

import atexit
import os
from functools import cache

import click


def say(text: str = "") -> None:
    """Tell a person; where standard error fails, what is done and the exit status stay the same."""
    try:
        click.echo(text, err=True)
    except OSError:
        _give_up_at_the_end()


@cache
def _give_up_at_the_end() -> None:
    # Not at once: a disk that is full may be emptied while a command goes on.
    atexit.register(_unless_said)


def _unless_said() -> None:
    try:
        click.echo(nl=False, err=True)  # what is left
    except OSError:
        give_up(2)


def give_up(descriptor: int) -> None:
    """Point an output at /dev/null: what is left in its buffer would fail again at the end, and make the status 120."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    if nowhere != descriptor:
        os.close(nowhere)
