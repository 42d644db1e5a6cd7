"""Files and durations on the command line, for the sender's commands.

No secret is ever taken from the command line, where every user of the machine can read it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from agent.cli.stderr import say
from agent.core.errors import BundleError, FormatError
from agent.core.variables import passes
from agent.sender import files

Key = TypeVar("Key")

FILE: Final = click.Path(path_type=Path, dir_okay=False, allow_dash=True)


class _NewFile(click.Path):
    """A file to write a key to. ``-`` is refused: stdout ends in logs and scrollback, and nobody wants ``./-``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse ``-``."""
        if str(value) == "-":
            self.fail("expected the name of a file, got '-'; the public key goes to stdout anyway", param, ctx)
        return super().convert(value, param, ctx)


NEW: Final = _NewFile(path_type=Path, dir_okay=False)


class _Length(click.ParamType[timedelta]):
    """A length of time: ``90s``, ``15m``, ``12h``, ``2d``, ``1h30m``."""

    name = "length"
    _PARTS: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?\Z")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read a length of time; click says what is wrong with it."""
        if isinstance(value, timedelta):
            return value
        match = self._PARTS.match(str(value))
        if match is None or not value:
            self.fail(f"expected a length of time such as 90s, 15m, 12h or 1h30m, got {value!r}", param, ctx)
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        length = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if not timedelta(0) < length <= timedelta(days=366):
            self.fail(f"expected between 1s and 366d, got {value!r}", param, ctx)
        return length


LENGTH: Final = _Length()


def read(path: Path) -> bytes:
    """The bytes of a file; ``-`` is stdin."""
    if str(path) == "-":
        return sys.stdin.buffer.read(files.MAX_INPUT_BYTES)
    return files.read(path)


def spare_inputs(out: Path | None, inputs: Sequence[tuple[str, Path]]) -> None:
    """Refuse to write over a file that the same command reads: a key that is replaced is lost.

    Args:
        out: where the output goes; ``-`` or ``None`` is stdout, to which a shell may have led a file.
        inputs: what reads each (an option), and its path; ``-`` is stdin.

    Raises:
        UsageError: of click: it is one of them, by whatever name.
    """
    written = _file_of(out or Path("-"), standard=1)
    for reader, path in inputs:
        if written is not None and written == _file_of(path, standard=0):
            name = "stdout" if out is None or str(out) == "-" else f"--out {out}"
            raise click.UsageError(f"{name}: expected another file than {path}, which {reader} reads")


def _file_of(path: Path, *, standard: int) -> tuple[int, int] | None:
    """Which regular file it is, links followed; ``None``: none. Devices, pipes and terminals may be both."""
    try:
        found = os.fstat(standard) if str(path) == "-" else path.stat()
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def policy_of(path: Path | None) -> str | None:
    """A session policy without its white space, which counts against STS's limit of 2,048 characters.

    Raises:
        UsageError: of click: it is no JSON, or longer.
    """
    if path is None:
        return None
    try:
        text = json.dumps(json.loads(read(path)), separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--policy {path}: expected JSON, got something else ({error})") from None
    if len(text) > 2048:
        raise click.UsageError(f"--policy {path}: expected at most 2048 characters without spaces, got {len(text)}")
    return text


def variables_of(given: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to send, with their values.

    Args:
        given: each a name of ``environment``, or ``NAME=VALUE``.
        environment: the caller's.

    Raises:
        UsageError: of click: a variable is not there, or its value is no UTF-8.
    """
    values: dict[str, str] = {}
    for one in given:
        name, has_value, value = one.partition("=")
        if not has_value:
            if name not in environment:
                raise click.UsageError(
                    f"--env {name}: your environment has no such variable; --env {name}=VALUE gives it one"
                )
            value = environment[name]
        try:
            # Its bytes as UTF-8, whatever the locale: in a POSIX locale they are read as ASCII.
            values[name] = os.fsencode(value).decode()
        except UnicodeDecodeError:
            raise click.UsageError(f"--env {name}: expected UTF-8 in its value") from None
        if not passes(name):
            say(
                f"warning: --env {name}: workers pass it on only if their environment.allow names it; "
                "names such as MYAPP_TOKEN or DATABASE_URL pass by themselves"
            )
    return values


def keys_in(path: Path, parse: Callable[[bytes], Sequence[Key]]) -> Sequence[Key]:
    """Read keys, saying which file is at fault.

    Raises:
        FormatError: the file holds no such key.
        HostError: it cannot be read.
    """
    try:
        return parse(read(path))
    except BundleError as error:
        raise FormatError(f"{path}: {error.message}", hint=error.hint, code=error.code) from None
