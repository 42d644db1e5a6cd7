"""Logs: dotted facts in the past tense, with fields; JSON lines off a terminal, readable ones on one.

What can leak is shut here once: tracebacks carry no locals (structlog's own default would print them, keys included),
and the SDKs' debug loggers, which print request parameters and whole answers, stay shut whatever our own level is.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, TextIO

import structlog

CLAMPED: Final = (
    "aiohttp",
    "asyncio",
    "boto3",
    "botocore",
    "google",
    "joserfc",
    "s3transfer",
    "urllib3",
)
"""Loggers of libraries that print bodies, headers or parameters at DEBUG. They are held at WARNING."""


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
    readable = style == "console" or (style == "auto" and out.isatty())
    number = logging.getLevelNamesMapping()[level.upper()]
    traceback = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_secrets,
    ]
    if readable:
        processors.append(
            structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)
        )
    else:
        processors += [structlog.processors.ExceptionRenderer(traceback), structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    # What libraries say at WARNING and above still reaches the journal, in the same form.
    root = logging.getLogger()
    root.handlers[:] = [_Bridge()]
    root.setLevel(max(number, logging.WARNING))
    for name in CLAMPED:
        logging.getLogger(name).setLevel(logging.WARNING)


class _Bridge(logging.Handler):
    """Hands a library's record to structlog: its text, never its arguments apart, and no locals."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = "a message that could not be formatted"
        log.log(record.levelno, "library.message", logger=record.name, message=text[:500])
