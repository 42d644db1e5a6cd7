"""A journal that was stopped and is back has our lines again, though our stream to it is gone for good."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from agent.log import journal
from agent.log.spool import Spool


@pytest.fixture
def stream() -> Iterator[tuple[int, socket.socket]]:
    """Our end of a stream, and the journal's."""
    ours, its = socket.socketpair()
    with ours, its:
        yield ours.fileno(), its


def listening(path: Path) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    found.bind(str(path))
    found.settimeout(15)
    return found


def message(received: bytes) -> bytes:
    name, priority, said, rest = received.split(b"\n")
    assert (name, priority, rest) == (b"SYSLOG_IDENTIFIER=credential-agent", b"PRIORITY=6", b"")
    return said.removeprefix(b"MESSAGE=")


def test_what_finds_no_reader_is_sent(stream: tuple[int, socket.socket], tmp_path: Path) -> None:
    """By the stream as long as that has a reader, then otherwise, in order and nothing lost."""
    descriptor, its = stream
    with listening(tmp_path / "j") as there:
        spool = Spool(descriptor, otherwise=partial(journal.send, address=tmp_path / "j"))
        spool.put(b"one\n")
        assert its.recv(100) == b"one\n"
        its.close()
        for line in (b"two\n", b"three\n"):
            spool.put(line)
        assert [message(there.recv(1000)) for _ in range(2)] == [b"two", b"three"]
        assert spool.close()
        assert spool.dropped == 0


def test_while_it_is_away_lines_are_counted(stream: tuple[int, socket.socket], tmp_path: Path) -> None:
    """Lines that nobody takes are dropped, and the first that is taken comes after the number of those."""
    descriptor, its = stream
    its.close()
    spool = Spool(descriptor, otherwise=partial(journal.send, address=tmp_path / "j"))
    for line in (b"one\n", b"two\n"):
        spool.put(line)
        assert spool.close()
    assert spool.dropped == 2
    with listening(tmp_path / "j") as there:
        spool.put(b"three\n")
        assert [message(there.recv(1000)) for _ in range(2)] == [b"2 lines of the log were dropped", b"three"]
    assert spool.close()
    assert spool.dropped == 2


def test_another_stream_than_the_journal_s_is_left_alone(stream: tuple[int, socket.socket], tmp_path: Path) -> None:
    """A terminal, a pipe or a file that went away is not the journal's to replace."""
    descriptor, its = stream
    found = os.fstat(descriptor)
    for named, is_its in ((found.st_ino, True), (found.st_ino + 1, False)):
        assert journal.is_its_stream(descriptor, {"JOURNAL_STREAM": f"{found.st_dev}:{named}"}) is is_its
    assert not journal.is_its_stream(descriptor, {})
    its.close()
    assert not journal.is_its_stream(1 << 20, {"JOURNAL_STREAM": "1:1"})
    spool = Spool(descriptor)
    spool.put(b"one\n")
    assert spool.close()
    assert spool.dropped == 1


def test_no_line_makes_fields_of_its_own(tmp_path: Path) -> None:
    """What somebody has logged cannot name another unit: a line is one line."""
    with listening(tmp_path / "j"):
        assert not journal.send(b"one\n_SYSTEMD_UNIT=other", tmp_path / "j")
        assert journal.send(b"one", tmp_path / "j")


def test_who_was_started_while_it_was_away_is_heard(tmp_path: Path) -> None:
    """The service manager gives /dev/null then; a person who asks for /dev/null has it."""
    own = {"SYSTEMD_EXEC_PID": str(os.getpid())}
    with open(os.devnull, "wb", buffering=0) as null, (tmp_path / "f").open("wb") as file:  # noqa: PTH123
        assert journal.was_away(null.fileno(), own)
        assert not journal.was_away(null.fileno(), {**own, "JOURNAL_STREAM": "1:1"})
        assert not journal.was_away(null.fileno(), {"SYSTEMD_EXEC_PID": "1"})
        assert not journal.was_away(null.fileno(), {})
        assert not journal.was_away(file.fileno(), own)
        assert not journal.was_away(1 << 20, own)
        journal.end(null.fileno())
        with listening(tmp_path / "j") as there:
            spool = Spool(null.fileno(), otherwise=partial(journal.send, address=tmp_path / "j"))
            spool.put(b"one\n")
            assert message(there.recv(1000)) == b"one"
            assert spool.close()
