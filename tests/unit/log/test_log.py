"""Logs cannot leak."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
from collections.abc import Iterator

import pytest
import structlog

from agent import log
from agent.core.secret import Secret


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_off_a_terminal_every_line_is_json(stream: io.StringIO) -> None:
    """Off a terminal each event is one JSON object with its level and time."""
    log.set_up(stream=stream)
    structlog.get_logger().info("bundle.accepted", seq=7)
    line = json.loads(stream.getvalue())

    assert (line["event"], line["seq"], line["level"]) == ("bundle.accepted", 7, "info")
    assert "timestamp" in line


@pytest.mark.parametrize("style", ["json", "console"])
def test_nothing_secret_is_written(stream: io.StringIO, style: str) -> None:
    """Secrets, bytes and the locals of a traceback reach no log, in either form, at any level."""
    log.set_up(level="debug", style=style, stream=stream)

    def fails() -> None:
        canary = "CANARY-local"
        raise ValueError(f"{len(canary)}")

    try:
        fails()
    except ValueError:
        structlog.get_logger().error("x", s=Secret("CANARY-secret"), b=b"CANARY-bytes", exc_info=True)

    assert "ValueError" in stream.getvalue()
    assert "CANARY" not in stream.getvalue()


def test_debug_does_not_open_the_sdks(stream: io.StringIO) -> None:
    """Our own debug level never raises the SDKs' loggers, which print bodies."""
    log.set_up(level="debug", stream=stream)
    for name in ("aiohttp", "asyncio", "boto3", "botocore.parsers", "google.auth.transport", "urllib3.connectionpool"):
        logging.getLogger(name).debug("CANARY")
        logging.getLogger(name).info("CANARY")

    assert stream.getvalue() == ""


def test_what_libraries_warn_of_is_heard(stream: io.StringIO) -> None:
    """A library's warning reaches the journal in our form, cut to a line's length."""
    log.set_up(stream=stream)
    logging.getLogger("aiohttp.server").warning("odd %s", "x" * 2000)
    line = json.loads(stream.getvalue())

    assert (line["event"], line["logger"]) == ("library.message", "aiohttp.server")
    assert len(line["message"]) == 500


class Refusing(io.StringIO):
    """A stream that nothing can be written to."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.tried = error, 0

    def write(self, _text: str, /) -> int:
        self.tried += 1
        raise self.error


REFUSED: list[Exception] = [OSError(number, os.strerror(number)) for number in errno.errorcode]


@pytest.mark.parametrize(
    "errors",
    [REFUSED, [MemoryError()], [ValueError("I/O operation on closed file")]],
    ids=["errno", "memory", "closed"],
)
def test_whatever_refuses_a_line_whoever_logs_goes_on(stream: io.StringIO, errors: list[Exception]) -> None:
    """Neither we nor a library hear of a log that cannot be written, whatever it is refused with."""
    for error in errors:
        log.set_up(stream=(refusing := Refusing(error)))
        structlog.get_logger().error("work.crashed", work="w")
        structlog.get_logger().bind(work="w").info("work.begun")
        logging.getLogger("aiohttp.server").warning("odd")
        assert refusing.tried == 3


def test_a_closed_stream_can_be_set_up(stream: io.StringIO) -> None:
    """A stream that somebody has closed is no terminal, and nobody fails for it."""
    stream.close()
    log.set_up(stream=stream)
    structlog.get_logger().error("work.crashed", work="w")


def test_no_memory_for_a_line_is_nobody_s_error(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever logs goes on where there is no memory for the line, nor for a shorter one in its place."""

    class Large:
        def __str__(self) -> str:
            raise MemoryError

    def no_memory(*_: object, **__: object) -> str:
        raise MemoryError

    monkeypatch.setattr(json, "dumps", no_memory)
    log.set_up(stream=stream)
    structlog.get_logger().error("work.crashed", work=Large())
    assert stream.getvalue() == ""


def test_a_library_s_own_level_is_heard(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a library says at a level of its own is a warning or an error, and one that it opens below those stays shut."""
    log.set_up(level="debug", stream=stream)
    library = logging.getLogger("a_library")
    monkeypatch.setattr(library, "level", logging.DEBUG)
    for level in (logging.INFO, logging.WARNING + 5, logging.CRITICAL + 5):
        library.log(level, "%s", level)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [("warning", "35"), ("error", "55")]
