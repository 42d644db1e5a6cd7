"""Standard error that never holds anybody up: a bounded queue, and a thread that empties it.

The reader of our standard error (the journal, a pipe, a terminal, a file) is not ours. It may hang, fill its disk, go
away, or never have been there; each of these stopped a process that only wanted to say something. So whoever writes
here puts a line into memory and goes on. A line that finds no room is dropped and counted, and a line in its place says
so.

The thread writes with ``write(2)`` on the descriptor itself: no buffered writer whose lock an ending interpreter would
wait for, and no ``O_NONBLOCK``, which would be set for everybody who shares the file. It is a daemon thread: a
``write`` that never returns holds up no exit.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from agent.log import journal

MAX_BYTES: Final = 1 << 20
"""The most bytes that wait in memory: some thousands of lines."""
MAX_LINE_BYTES: Final = 64 << 10
PATIENCE_SECONDS: Final = 1.0
"""How long an exit waits for a reader that takes nothing."""
FLUSH_SECONDS: Final = 5.0
"""How long an exit waits for a reader that is slow."""
BEGUN_SECONDS: Final = 2.0
"""A thread that has not begun after so long has died, or this machine has too much to do."""


def _told(count: int) -> bytes:
    return f"{count} lines of the log were dropped\n".encode()


class Spool:
    """Lines on their way to a descriptor.

    Args:
        descriptor: where to; it stays the caller's, and is never closed or changed.
        max_bytes: what may wait.
        otherwise: takes a line, without its end, for which the descriptor has no reader any more; whether it did.

    Attributes:
        marker: makes the line that reports a number of dropped lines.

    Resources: one daemon thread from the first line on.
    """

    def __init__(
        self, descriptor: int, *, max_bytes: int = MAX_BYTES, otherwise: Callable[[bytes], bool] | None = None
    ) -> None:
        self.marker: Callable[[int], bytes] = _told
        self._otherwise = otherwise
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        # Reentrant, since a finalizer that warns can run in the middle of anything, this included.
        self._news = threading.Condition(threading.RLock())
        self._lines: deque[bytes | int] = deque()  # a number stands for so many that were dropped there
        self._bytes = 0  # of what waits
        self._gap = 0  # lines dropped since the last one that found room
        self._lost = 0  # lines that were written and not taken
        self._dropped = 0  # in all
        self._busy = False
        self._moves = 0  # how often the reader took something
        self._cut = False  # the reader took only the beginning of a line
        self._writes = False  # whether the thread is there
        self._begin_at = float("-inf")  # when another is begun, if none has said that it is there

    @property
    def dropped(self) -> int:
        """How many lines nobody will ever read."""
        return self._dropped

    def put(self, line: bytes) -> None:
        """Take a line, its end included. Never blocks, never raises."""
        with self._news:
            try:
                self._put(line)
            except MemoryError:
                self._dropped += 1

    def _put(self, line: bytes) -> None:
        if len(line) > MAX_LINE_BYTES:
            line = line[: MAX_LINE_BYTES - 4] + b"...\n"
        if self._bytes + len(line) > self._max_bytes:
            self._gap += 1
            self._dropped += 1
            return
        if self._gap:
            self._lines.append(self._gap)
            self._gap = 0
        self._lines.append(line)
        self._bytes += len(line)
        if not self._writes:
            self._begin()
        self._news.notify()

    def close(self, *, patience: float = PATIENCE_SECONDS, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until everything is written, for as long as the reader takes something.

        Args:
            patience: how long it may take nothing, in seconds.
            seconds: how long in all.

        Returns:
            Whether nothing waits any more.
        """
        end = time.monotonic() + seconds
        with self._news:
            while (self._lines or self._busy) and time.monotonic() < end:
                moves, quiet = self._moves, time.monotonic() + patience
                while self._moves == moves and not self._idle():
                    left = quiet - time.monotonic()
                    if left <= 0:
                        return False
                    self._news.wait(left)
            return self._idle()

    def _idle(self) -> bool:
        return not self._lines and not self._busy

    def _begin(self) -> None:
        now = time.monotonic()
        if now < self._begin_at:
            return  # it is asked for, and comes
        # Not threading.Thread, whose start waits for the thread's first steps: without memory for those it is waited
        # for in vain (CPython's issue 140746).
        with contextlib.suppress(RuntimeError, MemoryError):  # no more threads, no memory, or the interpreter is ending
            _thread.start_new_thread(self._run, ())
            self._begin_at = now + BEGUN_SECONDS  # else the next line tries again

    def _run(self) -> None:
        with self._news:
            if self._writes:
                return  # another was begun meanwhile
            self._writes = True
        try:
            self._write()
        except Exception:  # noqa: BLE001 - no memory: the line is lost, and the next one has a thread of its own
            self._lost += 1
            self._dropped += 1
        finally:
            with self._news:
                self._writes = self._busy = False
                self._begin_at = float("-inf")
                self._news.notify_all()

    def _write(self) -> None:
        while True:
            with self._news:
                self._busy = False
                self._moves += 1
                self._news.notify_all()
                while not self._lines and not self._gap:
                    self._news.wait()
                gap, entry = self._next()
                self._busy = True
            self._lost += gap
            if self._lost:
                if not self._push(self.marker(self._lost)):
                    self._fail(entry)
                    continue
                self._lost = 0
            if entry and not self._push(entry):
                self._fail(entry)

    def _next(self) -> tuple[int, bytes]:
        """How many lines were dropped at this place, and the line that follows them, if there is one."""
        if not self._lines:
            gap, self._gap = self._gap, 0
            return gap, b""
        entry = self._lines.popleft()
        if isinstance(entry, int):
            return entry, b""
        self._bytes -= len(entry)
        return 0, entry

    def _fail(self, entry: bytes) -> None:
        if entry:
            self._lost += 1
            with self._news:
                self._dropped += 1
        elif not self._lines:
            # Only the notice of a loss was to be written, and nobody reads: it is tried again with the next line.
            with self._news:
                self._busy = False
                self._moves += 1
                self._news.notify_all()
                while not self._lines:
                    self._news.wait()

    def _push(self, data: bytes) -> bool:
        """Write all of ``data``; ``False``: the reader did not take it."""
        if self._cut:
            data = b"\n" + data
        left = memoryview(data)
        while left:
            try:
                count = os.write(self._descriptor, left)
            except BlockingIOError:
                # Somebody who shares the file made it non-blocking: wait, as for any other.
                with contextlib.suppress(OSError, ValueError):
                    select.select((), (self._descriptor,), (), 1.0)
                continue
            except OSError as error:
                if error.errno in journal.GONE and self._otherwise is not None:
                    return self._otherwise(data.strip(b"\n"))  # the whole of it: nobody reads the beginning
                self._cut |= len(left) < len(data)  # also of an earlier line, if nothing was taken since
                return False
            self._cut = True  # until the rest is taken, whatever breaks that off
            left = left[count:]
            with self._news:
                self._moves += 1
        self._cut = False
        return True


class Stream(io.TextIOBase):
    """A text stream on a :class:`Spool`, for everything that writes to ``sys.stderr``: Python itself, too.

    Lines are put together separately for each thread, since Python writes a traceback in pieces.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, spool: Spool, descriptor: int) -> None:
        self._spool = spool
        self._descriptor = descriptor
        self._begun = threading.local()

    def writable(self) -> bool:
        """Whether it can be written to: always (:class:`io.RawIOBase`)."""
        return True

    def fileno(self) -> int:
        """The descriptor, for code that must bypass the spool (a crash)."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether a person reads it."""
        try:
            return os.isatty(self._descriptor)
        except OSError:
            return False

    def write(self, text: str, /) -> int:
        """Take ``text``; whole lines are on their way when it returns."""
        begun = getattr(self._begun, "text", "") + text
        while (end := begun.find("\n")) >= 0:
            self._put(begun[: end + 1])
            begun = begun[end + 1 :]
        if len(begun) > MAX_LINE_BYTES:
            self._put(begun + "\n")
            begun = ""
        self._begun.text = begun
        return len(text)

    def flush(self) -> None:
        """Do nothing: whoever flushes must not wait."""

    def close(self) -> None:
        """Do nothing: somebody may have something to say until the very end."""

    def end(self) -> None:
        """Send on the line that this thread has begun, and wait, for a bounded time, until everything is written."""
        begun = getattr(self._begun, "text", "")
        if begun:
            self._begun.text = ""
            self._put(begun + "\n")
        self._spool.close()

    def _put(self, line: str) -> None:
        self._spool.put(line.encode("utf-8", "backslashreplace"))


def keep_standard_descriptors() -> None:
    """Point standard input, output and error at ``/dev/null`` if they were closed at the start.

    Else the next file or socket that is opened takes the number, and messages for a person go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY)  # a write there fails, and is counted
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)


def take_standard_error(environ: Mapping[str, str]) -> Spool:
    """Put a spool before standard error, for this whole process and to its end. See :func:`agent.log.take_over`."""
    keep_standard_descriptors()
    if isinstance(sys.stderr, Stream):
        return sys.stderr._spool  # noqa: SLF001 - our own
    was_away = journal.was_away(2, environ)
    if was_away:
        journal.end(2)
    is_its = was_away or journal.is_its_stream(2, environ)
    spool = Spool(2, otherwise=journal.send if is_its else None)
    sys.stderr = stream = Stream(spool, 2)
    atexit.register(stream.end)
    return spool
