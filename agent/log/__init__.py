"""Logs: dotted facts in the past tense, with fields; JSON lines off a terminal, readable ones on one.

Leaks are prevented here, once: tracebacks carry no locals (structlog's own default would print them, keys included),
and the SDKs' debug loggers, which print request parameters and whole answers, stay off whatever our own level is.

Logging must stop nobody: nothing here raises, whatever is logged, and after :func:`take_over` nothing blocks, whatever
happens to the reader (:mod:`agent.log.spool`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO

import structlog

from agent.log.spool import Spool, take_standard_error

_stamp: Final = structlog.processors.TimeStamper(fmt="iso", utc=True)
_spools: list[Spool] = []  # of this process: none, or one


def take_over(environ: Mapping[str, str]) -> None:
    """Put a queue before standard error, for the whole process: whoever writes to it never waits and never fails.

    Args:
        environ: says whether that is the journal's.
    """
    if not _spools:
        _spools.append(take_standard_error(environ))


def dropped() -> int:
    """How many lines were dropped because nobody read them."""
    return sum(spool.dropped for spool in _spools)


def _name_secrets(_logger: Any, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Turn values into what JSON and people can read. A ``Secret`` says that it is one; bytes are never dumped."""
    for key, value in event.items():
        if isinstance(value, bytes | bytearray | memoryview):
            event[key] = f"[{len(value)} bytes]"
        elif not isinstance(value, str | int | float | bool | type(None) | list | tuple | dict):
            event[key] = str(value)
    return event


def set_up(*, level: str = "info", style: str = "auto", stream: TextIO | None = None) -> None:
    """Set up logging for the process.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        style: ``json``, ``console``, or ``auto``: console when ``stream`` is a terminal.
        stream: where to; standard error by default (the journal, under systemd).
    """
    out = stream if stream is not None else sys.stderr
    terminal = _is_terminal(out)
    readable = style == "console" or (style == "auto" and terminal)
    number = logging.getLevelNamesMapping()[level.upper()]
    traceback = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        _stamp,
        _name_secrets,
    ]
    if readable:
        processors.append(
            structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=structlog.dev.plain_traceback)
        )
    else:
        processors += [structlog.processors.ExceptionRenderer(traceback), structlog.processors.JSONRenderer()]
    for spool in _spools:
        spool.marker = _marker_readable if readable else _marker
    structlog.configure(
        processors=[_Safe(processors)],
        wrapper_class=_never_raising(number),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    # Messages of libraries reach the journal from WARNING on, in the same form. Those below never do: at DEBUG
    # libraries print bodies, headers and parameters.
    root = logging.getLogger()
    threshold = max(number, logging.WARNING)
    root.handlers[:] = [_Bridge(threshold)]  # also for a library that gave its own logger a level
    root.setLevel(threshold)


def _is_terminal(stream: TextIO) -> bool:
    """Whether a person reads it: nobody reads a stream that was closed."""
    try:
        return stream.isatty()
    except (OSError, ValueError):
        return False


def _never_raising(level: int) -> type[structlog.typing.FilteringBoundLogger]:
    """What is logged with from that level on: a stream that is closed, full or gone costs the line, and nobody else."""
    filtering = structlog.make_filtering_bound_logger(level)

    def proxy(self: Any, method_name: str, event: str | None = None, **fields: Any) -> None:
        with contextlib.suppress(Exception):
            filtering._proxy_to_logger(self, method_name, event, **fields)  # type: ignore[attr-defined] # noqa: SLF001 - structlog's border for such classes

    return type("NeverRaising", (filtering,), {"_proxy_to_logger": proxy})


class _Safe:
    """All processors as one that never raises: an event that cannot be rendered must not stop whoever logs it."""

    def __init__(self, processors: Sequence[structlog.typing.Processor]) -> None:
        self._processors = processors

    def __call__(self, logger: Any, name: str, event: structlog.typing.EventDict) -> str:
        said: Any = event
        title = event.get("event")
        try:
            for processor in self._processors:
                said = processor(logger, name, said)
            return str(said)
        except Exception as error:  # noqa: BLE001 - as said
            title = title if isinstance(title, str) else "log.unreadable"
            return _line(event=title, level=name, log_error=type(error).__name__)


def _line(**fields: Any) -> str:
    return json.dumps(_stamp(None, "", fields))


def _marker(count: int) -> bytes:
    return _line(event="log.dropped", level="warning", count=count).encode() + b"\n"


def _marker_readable(count: int) -> bytes:
    return f"{_stamp(None, '', {})['timestamp']} [warning  ] log.dropped count={count}\n".encode()


class _Bridge(logging.Handler):
    """Hands a library's record to structlog: its text, never its arguments apart, and no locals."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - an argument's own __str__ may raise anything
            text = "a message that could not be formatted"
        with contextlib.suppress(Exception):
            log = structlog.get_logger()
            # A library may have levels of its own, for which structlog has no name.
            say = log.error if record.levelno >= logging.ERROR else log.warning
            say("library.message", logger=record.name, message=text[:500])
