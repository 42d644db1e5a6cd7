"""Work that may crash the process that does it: done in a child, so that the crash is the child's.

A defect of a library in C ends its process: an assertion, a segmentation fault. Whoever holds the rules would be
started again, meet the same input, and end again.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Final

from agent.core.errors import AgentError, HostError
from agent.core.text import os_reason

SECONDS: Final = 10.0
_RETURNED, _RAISED = b"=", b"!"
_LENGTH_BYTES: Final = 8
"""Before all that it says: one that is killed as it says it has said nothing."""


class CrashedError(HostError):
    """The child ended in the middle of it, or did not end."""


def _child(work: Callable[[], str], reader: int, writer: int) -> None:
    said = _RAISED
    try:
        os.close(reader)
        said = _RETURNED + work().encode()
    except AgentError as error:
        said = _RAISED + error.message.encode()
    except BaseException as error:  # noqa: BLE001 - the child ends here, whatever it was
        said = _RAISED + type(error).__name__.encode()
    finally:
        try:
            _write(writer, len(said).to_bytes(_LENGTH_BYTES, "big") + said)
        finally:  # also when nobody reads it any more: the child must not go on as its parent
            os.kill(os.getpid(), signal.SIGKILL)  # at once, so that no exit handler of the parent runs twice


def apart(work: Callable[[], str], *, what: str, seconds: float = SECONDS) -> str:
    """Call ``work`` in a child; returns what it returns. A process with threads must not do this. Blocks.

    Args:
        work: what to do. Its effects on this process are the child's alone.
        what: does it, for the words of an error.
        seconds: how long it may take.

    Raises:
        HostError: ``work`` raised it, or another error; or there is no process to be had.
        CrashedError: it did not come to an end.
    """
    try:
        reader, writer = os.pipe()
    except OSError as error:
        raise HostError(f"{what}: {os_reason(error)}") from None
    try:
        pid = os.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        raise HostError(f"{what}: {os_reason(error)}") from None
    if pid == 0:
        _child(work, reader, writer)
    os.close(writer)
    data, until = b"", time.monotonic() + seconds
    try:
        while select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
            if not (piece := os.read(reader, 1 << 16)):
                break
            data += piece
        else:
            raise CrashedError(f"{what}: no end within {seconds:.0f} s")
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)  # until it is waited for, the number is its own
        status = os.waitpid(pid, 0)[1]
    length, said = data[:_LENGTH_BYTES], data[_LENGTH_BYTES:]
    if not said or len(said) != int.from_bytes(length, "big"):
        raise CrashedError(f"{what} crashed: {_end(status)}")
    text = said[1:].decode(errors="replace")
    if said[:1] == _RAISED:
        raise HostError(text)
    return text


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _end(status: int) -> str:
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status >> 8}"
