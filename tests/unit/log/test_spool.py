"""What a reader of the log gets that takes a part of what is written, or nothing for a while."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from agent.log.spool import Spool

NUMBER = -1
"""Of the file: nobody else writes there."""


class Disk:
    """A file on a disk that has so much room left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.written, self.room = bytearray(), room
        self._others = os.write
        monkeypatch.setattr(os, "write", self._write)

    def _write(self, descriptor: int, data: bytes) -> int:
        if descriptor != NUMBER:
            return self._others(descriptor, data)
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.written += taken
        return len(taken)


@pytest.mark.parametrize("lost", [1, 2, 5])
def test_half_a_line_stays_apart_from_the_next(monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    """However many lines found no room after it: what says how many is a line of its own, which a program can read."""
    with monkeypatch.context() as patched:
        disk = Disk(patched, 3)
        spool = Spool(NUMBER)
        for _ in range(lost):
            spool.put(b"a line\n")
            assert spool.close()
        disk.room = 1000
        spool.put(b"another\n")
        assert spool.close()
    assert disk.written == b"a l\n%d lines of the log were dropped\nanother\n" % lost


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), MemoryError()], ids=["no number", "no memory"]
)
def test_a_line_that_no_thread_can_be_had_for_is_written_with_the_next(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whoever logs goes on: for want of a thread, or of memory for one, nothing that is logged is lost or raises."""

    def refused(_thread: threading.Thread) -> None:
        raise error

    with monkeypatch.context() as patched:
        disk, spool = Disk(patched, 1000), Spool(NUMBER)
        with monkeypatch.context() as none:
            none.setattr(threading.Thread, "start", refused)
            spool.put(b"a line\n")
        spool.put(b"another\n")
        assert spool.close()
    assert disk.written == b"a line\nanother\n"
