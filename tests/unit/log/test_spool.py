"""What a reader of the log gets that takes a part of what is written, or nothing for a while."""

from __future__ import annotations

import _thread
import errno
import os

import pytest

from agent.log import spool as rules
from agent.log.spool import Spool

NUMBER = -1
"""Of the file: nobody else writes there."""


PATIENCE = 60.0
"""In seconds: a busy machine may let a thread wait."""


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
            assert spool.close(patience=PATIENCE, seconds=PATIENCE)
        disk.room = 1000
        spool.put(b"another\n")
        assert spool.close(patience=PATIENCE, seconds=PATIENCE)
    assert disk.written == b"a l\n%d lines of the log were dropped\nanother\n" % lost


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), MemoryError()], ids=["no number", "no memory"]
)
def test_a_line_that_no_thread_can_be_had_for_is_written_with_the_next(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whoever logs goes on: for want of a thread, or of memory for one, nothing that is logged is lost or raises."""

    def refused(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        disk, spool = Disk(patched, 1000), Spool(NUMBER)
        with monkeypatch.context() as none:
            none.setattr(_thread, "start_new_thread", refused)
            spool.put(b"a line\n")
        spool.put(b"another\n")
        assert spool.close(patience=PATIENCE, seconds=PATIENCE)
    assert disk.written == b"a line\nanother\n"


def test_a_thread_that_dies_in_its_first_steps_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for its first steps a thread never begins: nobody waits for that, and a later line has another."""
    with monkeypatch.context() as patched:
        disk, spool = Disk(patched, 1000), Spool(NUMBER)
        with monkeypatch.context() as dying:
            dying.setattr(_thread, "start_new_thread", lambda *_: 1)
            dying.setattr(rules, "BEGUN_SECONDS", 0.0)
            spool.put(b"a line\n")
        spool.put(b"another\n")
        assert spool.close(patience=PATIENCE, seconds=PATIENCE)
    assert disk.written == b"a line\nanother\n"


def test_a_thread_that_breaks_off_has_a_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the writing breaks off with costs the line that it was at, which is counted, and none after it."""

    def no_memory(_count: int) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patched:
        disk, spool = Disk(patched, 0), Spool(NUMBER)
        told, spool.marker = spool.marker, no_memory
        spool.put(b"a line\n")
        assert spool.close(patience=PATIENCE, seconds=PATIENCE)
        spool.put(b"another\n")
        assert spool.close(patience=PATIENCE, seconds=PATIENCE)
        spool.marker, disk.room = told, 1000
        spool.put(b"a third\n")
        assert spool.close(patience=PATIENCE, seconds=PATIENCE)
    assert disk.written.endswith(b"lines of the log were dropped\na third\n")
    assert spool.dropped == 2


def test_a_line_without_memory_for_its_place_is_counted() -> None:
    """Whoever logs goes on where the queue itself has no memory."""

    class Large(bytes):
        def __len__(self) -> int:
            raise MemoryError

    spool = Spool(NUMBER)
    spool.put(Large(b"a line\n"))
    assert spool.dropped == 1
