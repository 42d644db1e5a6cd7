"""Logs cannot leak."""

from __future__ import annotations

import io
import json
import logging
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
