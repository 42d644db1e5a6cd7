"""What a program that only forwards reads of a pickle: texts and plain errors, whatever it names."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
from typing import Any

import pytest

from agent.forward.unpickling import CodeRefusedError, texts_and_errors_only


class Calling:
    """Pickled, it is a call of a function."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return self.function, ()


class Plain(pickle.Pickler):
    """Writes as Python does by itself: distributed has tblib write errors, for the whole process."""

    dispatch_table: dict[type, Any] = {}  # noqa: RUF012 - pickle's own interface


def pickled(said: object) -> bytes:
    file = io.BytesIO()
    Plain(file).dump(said)
    return file.getvalue()


@pytest.mark.parametrize("said", ["text", {"a": [1, b"x", None]}, OSError(5, "x"), asyncio.CancelledError("gone")])
def test_texts_and_errors_are_read(said: object) -> None:
    """What workers answer, and how a connection fails."""
    with texts_and_errors_only():
        assert repr(pickle.loads(pickled(said))) == repr(said)


@pytest.mark.parametrize(
    "sent",
    [
        Calling(os.getpid), Calling(dict), Calling(list.append), len,
        SystemExit(0), KeyboardInterrupt(), GeneratorExit(),
    ],
    ids=["function", "class", "method", "a function itself", "SystemExit", "KeyboardInterrupt", "GeneratorExit"],
)  # fmt: skip
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_could_be_called_or_ends_a_thread_is_not(sent: object, protocol: int) -> None:
    """No function, no other class; and no error that, raised by a reply, ends the thread that reads it without a word."""
    data = pickle.dumps(sent, protocol)
    with texts_and_errors_only(), pytest.raises(CodeRefusedError):
        pickle.loads(data)


def test_it_holds_as_long_as_the_block() -> None:
    """A program that embeds the command reads its own pickles before and after."""
    data = pickle.dumps(Calling(os.getpid))
    with texts_and_errors_only():
        pass
    assert pickle.loads(data) == os.getpid()
